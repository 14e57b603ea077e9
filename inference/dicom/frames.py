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

from inference.dicom.file import damaged
from inference.errors import CaseError

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
        spacing: of columns and of rows, in mm; may be empty.
        rescaling: slope and intercept; ``None`` if it has none of its own.
        kernel: of the reconstruction; may be empty.
        acquisition: its number, as text; may be empty.
    """

    kind: frozenset[str]
    position: tuple[float, ...]
    axes: tuple[float, ...]
    spacing: tuple[float, ...]
    rescaling: tuple[float, float] | None
    kernel: str
    acquisition: str

    @property
    def placed(self) -> bool:
        """Whether all is said of where it lies."""
        return bool(self.position and self.axes and self.spacing)


def read_frames(path: Path, count: int) -> list[Frame]:
    """Read what a file says of its frames.

    Args:
        path: a DICOM file.
        count: how many frames it has.

    Raises:
        CaseError: its header cannot be read, tells of another number of frames, or does not say
            in one place how they become HU. The message names the file.
    """
    try:
        with warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")  # of values that break the standard's rules
            header = pydicom.dcmread(
                path, stop_before_pixels=True, force=True, specific_tags=[_SHARED, _OWN]
            )
            shared = list(header.get(_SHARED) or [])
            frames = [_frame([own, *shared]) for own in header.get(_OWN) or []]
    except CaseError as error:
        raise CaseError(f"{error}: {path.name}") from None
    except Exception as error:  # pydicom raises many kinds for a file that is damaged
        raise CaseError(damaged(path, error)) from None
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

    def floats(group: str, key: str, count: int) -> tuple[float, ...]:
        """So many; none where there are others, or one of them is no number."""
        found = tuple(map(float, _several(value(group, key))))
        return found if len(found) == count and all(map(math.isfinite, found)) else ()

    position, axes, spacing = (floats(*place) for place in _PLACES)
    return Frame(
        kind=frozenset(map(str.upper, _several(value("CTImageFrameTypeSequence", "FrameType")))),
        position=position,
        axes=axes,
        spacing=spacing[::-1],
        rescaling=_rescaling(groups),
        kernel=str(value("CTReconstructionSequence", "ConvolutionKernel") or ""),
        acquisition=str(value("FrameContentSequence", "FrameAcquisitionNumber") or ""),
    )


def _rescaling(groups: list[pydicom.Dataset]) -> tuple[float, float] | None:
    """Slope and intercept.

    Raises:
        CaseError: one of them is missing or impossible, or they stand in several places, of which
            GDCM would take another than the standard means. The message does not name the file.
    """
    items = [item for each in groups for item in each.get("PixelValueTransformationSequence") or []]
    if not items:
        return None
    slope, intercept = (
        float(math.nan if (value := items[0].get(key)) is None else value)
        for key in ("RescaleSlope", "RescaleIntercept")
    )
    if len(items) > 1 or not slope or not math.isfinite(slope + intercept):
        raise CaseError("does not say clearly what its values are in HU")
    return slope, intercept


def _several(value: Any) -> list[Any]:
    """A header's value as a list, whether it has none, one or several."""
    if value is None:
        return []
    return [value] if isinstance(value, str | float | int) else list(value)
