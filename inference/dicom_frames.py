"""What the header of an enhanced (multi-frame) CT says of each of its frames.

It stands in functional groups: sequences, for all frames or for each, which SimpleITK does not show
and pydicom reads.

The standard: DICOM PS3.3, C.7.6.16 (functional groups) and C.8.15.3 (those of CT).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.config import disable_value_validation

from inference.errors import CaseError, last_line

_PLACES = (
    ("PlanePositionSequence", "ImagePositionPatient", 3),
    ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
    ("PixelMeasuresSequence", "PixelSpacing", 2),
)
_SHARED, _OWN = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


@dataclass(frozen=True)
class Frame:
    """What a header says of a frame.

    Attributes:
        kind: the frame type's values.
        position: of the first pixel's centre, in mm along DICOM's axes (LPS); may be empty.
        axes: the direction along a row, then that along a column; may be empty.
        spacing: of rows and of columns, in mm; may be empty.
        rescaling: slope and intercept; may be empty.
        kernel: of the reconstruction; may be empty.
        acquisition: its number, as text; may be empty.
    """

    kind: frozenset[str]
    position: tuple[float, ...]
    axes: tuple[float, ...]
    spacing: tuple[float, ...]
    rescaling: tuple[float, ...]
    kernel: str
    acquisition: str


def read_frames(path: Path, count: int) -> list[Frame]:
    """Read what a file says of its frames.

    Args:
        path: a DICOM file.
        count: how many frames it has.

    Raises:
        CaseError: its header cannot be read, or tells of another number of frames. The message
            names the file.
    """
    try:
        with warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")  # of values that break the standard's rules
            header = pydicom.dcmread(
                path, stop_before_pixels=True, force=True, specific_tags=[_SHARED, _OWN]
            )
            shared = list(header.get(_SHARED) or [])
            frames = [_frame([own, *shared]) for own in header.get(_OWN) or []]
    except Exception as error:  # pydicom raises many kinds for a file that is damaged
        reason = last_line(error) or type(error).__name__
        raise CaseError(f"cannot be read, perhaps damaged: {path.name} ({reason})") from None
    if len(frames) != count:
        raise CaseError(
            f"does not say where its slices lie: {path.name} tells it of {len(frames)} of {count}"
        )
    return frames


def _frame(groups: list[pydicom.Dataset]) -> Frame:
    """A frame of its own groups, and those that all frames share."""

    def value(group: str, key: str) -> Any:
        """Of the first that has it; ``None`` if none does."""
        for each in groups:
            for item in each.get(group) or []:
                if (found := item.get(key)) is not None:
                    return found
        return None

    def numbers(group: str, key: str, count: int) -> tuple[float, ...]:
        """So many; none where there are others, or one of them is no number."""
        found = value(group, key)
        if found is None:
            return ()
        found = tuple(map(float, [found] if isinstance(found, str | float | int) else found))
        return found if len(found) == count and all(map(math.isfinite, found)) else ()

    position, axes, spacing = (numbers(*place) for place in _PLACES)
    rescaling = "PixelValueTransformationSequence"
    slope = numbers(rescaling, "RescaleSlope", 1)
    intercept = numbers(rescaling, "RescaleIntercept", 1)
    return Frame(
        kind=frozenset(map(str.upper, value("CTImageFrameTypeSequence", "FrameType") or ())),
        position=position,
        axes=axes,
        spacing=spacing,
        rescaling=slope + intercept if slope and intercept else (),
        kernel=str(value("CTReconstructionSequence", "ConvolutionKernel") or ""),
        acquisition=str(value("FrameContentSequence", "FrameAcquisitionNumber") or ""),
    )
