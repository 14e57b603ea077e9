"""What the headers of DICOM files say of a CT's slices: where they lie, and what they are like.

A file holds one slice, or several as frames of an enhanced CT. SimpleITK (GDCM) reads the headers.

The standard: DICOM PS3.3, C.7.6.2 (where a slice lies) and C.8.2.1 (CT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import SimpleITK as sitk

from inference.dicom.file import check_fragments, damaged, reader_of, storage_class
from inference.errors import CaseError
from inference.paths import is_unicode
from inference.read.itk_noise import without_noise

_CT = "1.2.840.10008.5.1.4.1.1.2"  # and with .1 and .2: enhanced, and legacy converted to it
_NO_VOLUME = {"LOCALIZER", "SCREEN SAVE"}  # of the image type


@dataclass(frozen=True)
class Slice:
    """What the header says of a slice.

    Attributes:
        path: the file.
        frame: which of the file's frames it is, counted from 0.
        frames: how many there are.
        patient: the Patient ID and the Study Instance UID; may be empty.
        series: the Series Instance UID; may be empty.
        number: the Series Number, as text; may be empty.
        volume: whether it may be a part of a volume: not so localizers and pictures of a screen.
        placed: whether it says where it lies.
        size: columns and rows.
        position: of the first pixel's centre, in mm along DICOM's axes (LPS).
        axes: the direction along a row, then that along a column.
        spacing: of columns and of rows, in mm.
        whole: whether HU are whole numbers.
        inverted: whether it says that low values are bright.
        kernel: of the reconstruction.
        acquisition: its number, as text.
        padding: the stored value that stands for nothing, outside the round field of view; nan if
            none does.
        rescaling: slope and intercept that make HU of stored values.
        applied: those that GDCM applies; to all frames of a file it is those of the first.
        files: how many files the volume has by itself, where it was cut into several.
        nbytes: of the file's pixels, where they are not compressed.
        problem: why it cannot be read; ``None`` if it can.
    """

    path: Path
    frame: int
    frames: int
    patient: tuple[str, str]
    series: str
    number: str
    volume: bool
    placed: bool
    size: tuple[int, ...]
    position: tuple[float, ...]
    axes: tuple[float, ...]
    spacing: tuple[float, ...]
    whole: bool
    inverted: bool
    kernel: str
    acquisition: str
    padding: float
    rescaling: tuple[float, float]
    applied: tuple[float, float]
    files: int
    nbytes: int
    problem: str | None = None

    @property
    def name(self) -> str:
        """The file's, and which frame of it, for messages."""
        return f"{self.path.name}, frame {self.frame + 1}" if self.frames > 1 else self.path.name


def read_slices(path: Path) -> list[Slice]:
    """Read the header of a slice, or of all slices that a file holds.

    Returns:
        The slices in the file's order; none for a file that is no DICOM, or no CT.

    Raises:
        CaseError: it is a CT, by what it says or by its name, that cannot be read. The message
            names the file.
        OSError: it cannot be read.
    """
    kind = storage_class(path)
    if kind is None or not (kind in ("", _CT) or kind.startswith(f"{_CT}.")):
        return []
    if not is_unicode(path):
        raise CaseError("has a slice whose name is not UTF-8; rename it")
    check_fragments(path)
    reader = reader_of(path)
    with without_noise():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise CaseError(damaged(path, error)) from None

    def text(key: str) -> str:
        return reader.GetMetaData(key).strip("\0 ") if reader.HasMetaDataKey(key) else ""

    def number(key: str, otherwise: float) -> float:
        return next(iter(numbers(text(key))), otherwise)

    modality = text("0008|0060") or ("CT" if kind else "")
    if modality != "CT" or reader.GetNumberOfComponents() != 1:  # in colour: a picture of a screen
        return []
    place = [numbers(text(key)) for key in ("0020|0032", "0020|0037", "0028|0030")]
    placed = [len(each) for each in place] == [3, 6, 2]
    position, axes, spacing = place if placed else [(0.0,) * 3, (0.0,) * 6, (0.0,) * 2]
    columns, rows, frames = reader.GetSize()
    bits, padding = number("0028|0100", 16), number("0028|0120", math.nan)
    if padding < 0 and text("0028|0103") == "0":  # written as if pixels were signed
        padding += 2.0**bits
    rescaling = number("0028|1053", 1.0), number("0028|1052", 0.0)
    file = Slice(
        path=path,
        frame=0,
        frames=frames,
        patient=(text("0010|0020"), text("0020|000d")),
        series=text("0020|000e"),
        number=text("0020|0011"),
        volume=not _NO_VOLUME.intersection(text("0008|0008").upper().split("\\")),
        placed=placed,
        size=(columns, rows),
        position=position,
        axes=axes,
        spacing=spacing[::-1],
        whole=reader.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64),
        inverted=text("0028|0004") == "MONOCHROME1",
        kernel=text("0018|1210"),
        acquisition=text("0020|0012"),
        padding=padding,
        rescaling=rescaling,
        applied=rescaling,
        files=int(number("0020|9163", 1)),
        nbytes=columns * rows * frames * int(bits) // 8,
    )
    kind = kind or text("0008|0016")
    several = frames > 1 or kind.startswith(f"{_CT}.")
    return _frames(file, rescaling, kind) if several else [file]


def _frames(file: Slice, rescaling: tuple[float, float], kind: str) -> list[Slice]:
    """The slices of a file that may hold several.

    Args:
        file: what the file says of all of them.
        rescaling: slope and intercept of those frames that have none of their own.
        kind: the storage class.

    Returns:
        What is wrong with them is the problem of the only one.
    """
    if not file.volume:
        return [file]
    try:
        if not kind.startswith(f"{_CT}."):
            raise CaseError(f"has a file of several slices that is no enhanced CT: {file.name}")
        from inference.dicom.frames import read_frames  # which takes a while to import

        frames = read_frames(file.path, file.frames)
    except CaseError as error:
        return [replace(file, placed=False, problem=str(error))]
    rescalings = [frame.rescaling or rescaling for frame in frames]
    return [
        replace(
            file,
            frame=index,
            volume=not _NO_VOLUME & frame.kind,
            placed=frame.placed,
            position=frame.position,
            axes=frame.axes,
            spacing=frame.spacing,
            whole=file.whole and slope.is_integer() and intercept.is_integer(),
            kernel=frame.kernel,
            acquisition=frame.acquisition,
            rescaling=(slope, intercept),
            applied=rescalings[0],
        )
        for index, (frame, (slope, intercept)) in enumerate(zip(frames, rescalings, strict=True))
    ]


def numbers(text: str) -> tuple[float, ...]:
    """The numbers of a DICOM value, which backslashes part; none if one of them is none."""
    try:
        found = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return ()
    return found if all(map(math.isfinite, found)) else ()
