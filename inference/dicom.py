"""Reading a CT that is stored as DICOM: one file for each slice.

SimpleITK's own series reader takes slices that are missing, doubled or shifted against each other
without an error. Here each slice's header is looked at, and what is no regular stack is refused.
SimpleITK (GDCM) still reads the files: headers, compressed pixels, the rescaling to HU.

The standard: DICOM PS3.3, C.7.6.2 (where a slice lies) and C.8.2.1 (CT); PS3.10, 7.1 (the file).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.errors import CaseError, last_line
from inference.paths import is_unicode
from inference.reading import (
    Scan,
    Watch,
    check_geometry,
    check_room,
    check_spacing,
    without_noise,
    writable,
)

_HEAD = 1024  # bytes in which a file says that it is DICOM, and of which kind
_MARK = slice(128, 132)
# How older files begin: group 8's length, or one of its first elements with a type or a length.
_WITHOUT_MARK = re.compile(
    rb"\x08\x00(?:\0\0(?:UL\x04\0|\x04\0\0\0)|[\x05\x08\x16]\0(?:CS|UI|[\0-\x80]\0\0\0))"
)
_CT = "1.2.840.10008.5.1.4.1.1.2"  # and with .1 and .2: enhanced, and legacy converted to it
_NO_VOLUME = {"LOCALIZER", "SCREEN SAVE"}  # of the image type

ENDINGS = (".dcm", ".ima")
"""Endings of files that are taken for slices where they do not say it."""

SAME_PLACE = 0.01
"""Millimetres within which two slices lie in one place."""

_SAME_DIRECTION = 1e-3  # of unit vectors, as headers round
_PERPENDICULAR = 0.05  # from here on axes make no sense
_SAME_SPACING = 1e-3  # relative
_UNEVEN = 0.1  # of the distance between slices; from here on it is said
_GAP = 0.75  # of the least distance; headers of thin slices round, a lost slice doubles it
_OFF = 0.5  # of the distance; from here on labels would lie in another slice than their organ
_SHIFTED = 1.0  # pixels; from here on a stack leans
_AIR, _DENSEST = -1024, 3071  # HU; higher padding would look like metal around the patient

_PIXELS = re.compile(rb"\xe0\x7f\x10\x00(?:O[BW]\0\0(?P<long>.{4})|(?P<plain>.{4}))", re.DOTALL)
_PIXEL_GROUP = 0x7FE0
_ENCAPSULATED = 0xFFFFFFFF  # the length of compressed pixels


@dataclass(frozen=True)
class Slice:
    """What a slice's header says.

    Attributes:
        path: the file.
        patient: the Patient ID and the Study Instance UID; may be empty.
        series: the Series Instance UID; may be empty.
        number: the Series Number, as text; may be empty.
        enhanced: whether it is of a kind that holds several slices in a file.
        volume: whether it may be a part of a volume: not so localizers and pictures of a screen.
        placed: whether it says where it lies.
        size: columns, rows and frames.
        position: of the first pixel's centre, in mm along DICOM's axes (LPS).
        axes: the direction along a row, then that along a column.
        spacing: of columns and of rows, in mm.
        whole: whether HU are whole numbers.
        inverted: whether it says that low values are bright.
        kernel: of the reconstruction.
        acquisition: its number, as text.
        padding: HU that stand for nothing, outside the round field of view; nan if none do.
        nbytes: of its pixels, where they are not compressed.
    """

    path: Path
    patient: tuple[str, str]
    series: str
    number: str
    enhanced: bool
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
    nbytes: int


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, or is named so.

    Raises:
        OSError: it cannot be read.
    """
    return _kind(path) is not None


def read_slice(path: Path) -> Slice | None:
    """Read a slice's header.

    Returns:
        ``None`` for a file that is no DICOM, or no CT.

    Raises:
        CaseError: it is a CT slice, by what it says or by its name, that cannot be read. The
            message names the file.
        OSError: it cannot be read.
    """
    kind = _kind(path)
    if kind is None or not (kind in ("", _CT) or kind.startswith(f"{_CT}.")):
        return None
    if not is_unicode(path):
        raise CaseError("has a slice whose name is not UTF-8; rename it")
    reader = _reader(path)
    with without_noise():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise CaseError(_damaged(path, error)) from None

    def text(key: str) -> str:
        return reader.GetMetaData(key).strip("\0 ") if reader.HasMetaDataKey(key) else ""

    def number(key: str, otherwise: float) -> float:
        return next(iter(numbers(text(key))), otherwise)

    modality = text("0008|0060") or ("CT" if kind else "")
    if modality != "CT" or reader.GetNumberOfComponents() != 1:  # in colour: a picture of a screen
        return None
    place = [numbers(text(key)) for key in ("0020|0032", "0020|0037", "0028|0030")]
    placed = [len(each) for each in place] == [3, 6, 2]
    position, axes, spacing = place if placed else [(0.0,) * 3, (0.0,) * 6, (0.0,) * 2]
    size = reader.GetSize()
    bits, padding = number("0028|0100", 16), number("0028|0120", math.nan)
    if padding < 0 and text("0028|0103") == "0":  # written as if pixels were signed
        padding += 2.0**bits
    return Slice(
        path=path,
        patient=(text("0010|0020"), text("0020|000d")),
        series=text("0020|000e"),
        number=text("0020|0011"),
        enhanced=kind.startswith(f"{_CT}.") or size[2] > 1,
        volume=not _NO_VOLUME.intersection(text("0008|0008").upper().split("\\")),
        placed=placed,
        size=size,
        position=position,
        axes=axes,
        spacing=spacing[::-1],
        whole=reader.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64),
        inverted=text("0028|0004") == "MONOCHROME1",
        kernel=text("0018|1210"),
        acquisition=text("0020|0012"),
        padding=padding * number("0028|1053", 1) + number("0028|1052", 0),
        nbytes=math.prod(size) * int(bits) // 8,
    )


def stack(slices: Sequence[Slice]) -> tuple[list[Slice], float, tuple[str, ...]]:
    """Put slices into their order along the body.

    Returns:
        The slices along their normal, the distance between them in mm, and what a user should
        know about it.

    Raises:
        CaseError: they are no regular stack. The message names slices, not the folder.
    """
    check_alike(slices)
    axes, perpendicular = axes_of(slices[0])
    normal = np.cross(*axes)
    ordered = sorted(slices, key=lambda one: float(np.dot(one.position, normal)))
    positions = np.array([one.position for one in ordered])
    heights = positions @ normal
    steps = np.diff(heights)
    closest, widest = int(steps.argmin()), int(steps.argmax())

    def names(index: int) -> str:
        return f"({ordered[index].path.name}, {ordered[index + 1].path.name})"

    if steps[closest] < SAME_PLACE:
        raise CaseError(f"has slices in one place, of several phases perhaps {names(closest)}")
    step = float(heights[-1] - heights[0]) / len(steps)
    off = np.abs(heights - heights[0] - step * np.arange(len(heights))).max()
    span = f"{steps[closest]:.4g} to {steps[widest]:.4g} mm apart"
    if steps[widest] > (1 + _GAP) * steps[closest] or off > _OFF * step:
        raise CaseError(f"has slices {span}: some are missing perhaps {names(widest)}")
    if _mixed([one.acquisition for one in ordered]):
        raise CaseError("has slices of several acquisitions among each other")
    if _mixed([one.kernel for one in ordered]):
        raise CaseError("has slices of several reconstructions among each other")
    beside = np.ptp((positions - positions[0]) @ axes.T, axis=0)
    if (beside > _SHIFTED * np.array(slices[0].spacing)).any():
        raise CaseError(
            "has slices that are shifted against each other, by a tilted gantry perhaps"
        )
    warnings = []
    if off > _UNEVEN * step:
        warnings.append(f"its slices are {span}; taken as {step:.4g} mm")
    if not perpendicular:
        warnings.append("its axes are not perpendicular; taken as if they were")
    return ordered, step, tuple(warnings)


def read_series(slices: Sequence[Slice], watch: Watch | None = None) -> Scan:
    """Read a CT from its slices.

    Args:
        slices: all of them, in any order.
        watch: is called after each slice.

    Returns:
        The CT in HU, stacked along the slices' normal as SimpleITK does. Whole numbers become
        int16: what lies beyond is cut off there (HU have no meaning so far out).

    Raises:
        CaseError: a slice cannot be read, they are no regular stack, or too large for the memory
            there is. The message names slices, not the folder.
    """
    slices, step, warnings = stack(slices)
    first = slices[0]
    spacing = (*first.spacing, step)
    check_spacing(spacing)
    size = (*first.size[:2], len(slices))
    pixel = sitk.sitkInt16 if all(one.whole for one in slices) else sitk.sitkFloat32
    check_room(size, pixel)
    image = sitk.Image(size, pixel)
    image.SetSpacing(spacing)
    image.SetOrigin(first.position)
    row, column = axes_of(first)[0]
    image.SetDirection(np.column_stack([row, column, np.cross(row, column)]).ravel().tolist())
    check_geometry(image)
    volume = writable(image)
    for index, one in enumerate(slices):
        volume[index] = _pixels(one, volume.dtype)
        if watch is not None:
            watch(image, index + 1)
    return Scan(image, warnings=warnings)


def bytes_needed(slices: Sequence[Slice]) -> int:
    """How many bytes the CT of these slices takes in memory at most."""
    return math.prod(slices[0].size) * len(slices) * np.dtype(np.float32).itemsize


def numbers(text: str) -> tuple[float, ...]:
    """The numbers of a DICOM value, which backslashes part; none if one of them is none."""
    try:
        found = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return ()
    return found if all(map(math.isfinite, found)) else ()


def _kind(path: Path) -> str | None:
    """The storage class that a DICOM file names ("" if none); ``None`` for any other file."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[_MARK] != b"DICM":
        named = path.name.lower().endswith(ENDINGS)
        return "" if named or _WITHOUT_MARK.match(head) else None
    found = re.search(rb"\x02\x00\x02\x00UI(..)", head, re.DOTALL)
    if not found:
        return ""
    value = head[found.end() : found.end() + int.from_bytes(found[1], "little")]
    return value.rstrip(b"\0 ").decode("ascii", "replace")


def _reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _damaged(path: Path, error: RuntimeError) -> str:
    return f"has a slice that cannot be read, perhaps damaged: {path.name} ({last_line(error)})"


def axes_of(one: Slice) -> tuple[NDArray[np.float64], bool]:
    """A slice's axes (2, 3), made perpendicular, and whether they were, as well as headers say.

    Raises:
        CaseError: they are far from it.
    """
    axes = np.reshape(one.axes, (2, 3))
    off = np.abs(axes @ axes.T - np.eye(2)).max()
    if off > _PERPENDICULAR:
        raise CaseError("has impossible axis directions")
    row = axes[0] / np.linalg.norm(axes[0])
    column = axes[1] - (axes[1] @ row) * row
    return np.array([row, column / np.linalg.norm(column)]), bool(off < _SAME_DIRECTION)


def check_alike(slices: Sequence[Slice]) -> None:
    """Raise CaseError where slices do not belong to one volume."""
    if len(slices) < 2:
        raise CaseError("is a single slice")
    first = slices[0]
    for one in slices:
        names = f"({first.path.name}, {one.path.name})"
        if one.inverted:
            raise CaseError(f"has a slice with inverted values (MONOCHROME1): {one.path.name}")
        if one.size != first.size:
            a, b = (f"{each.size[0]} x {each.size[1]}" for each in (first, one))
            raise CaseError(f"has slices of {a} and of {b} pixels {names}")
        if not np.allclose(one.spacing, first.spacing, rtol=_SAME_SPACING, atol=0):
            raise CaseError(f"has slices of different pixel spacing {names}")
        if not np.allclose(one.axes, first.axes, atol=_SAME_DIRECTION):
            raise CaseError(f"has slices in different directions {names}")


def _mixed(values: Sequence[str]) -> bool:
    """Whether values come back after others, where they are known at all."""
    known = [value for value in values if value]
    return sum(1 for _ in itertools.groupby(known)) > len(set(known))


def _pixels(one: Slice, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A slice's HU (rows, columns).

    Raises:
        CaseError: it cannot be read.
    """
    reader = _reader(one.path)
    with without_noise():
        try:
            plane = sitk.GetArrayFromImage(reader.Execute())[0]
        except RuntimeError as error:
            raise CaseError(_damaged(one.path, error)) from None
    if plane.shape != one.size[1::-1] or _lacks_pixels(one):
        raise CaseError(f"has a slice with too few pixels: {one.path.name}")
    limits = np.iinfo(dtype) if dtype.kind == "i" else np.finfo(dtype)
    values = np.clip(plane, limits.min, limits.max).astype(dtype)
    if one.padding > _DENSEST:
        values[plane == one.padding] = _AIR
    return values


def _lacks_pixels(one: Slice) -> bool:
    """Whether a file's own count of its pixels' bytes is too low: GDCM then leaves some unset.

    Raises:
        CaseError: the file cannot be read any more.
    """
    try:
        data = one.path.read_bytes()
    except OSError as error:
        raise CaseError(f"cannot be read: {one.path.name} ({error.strerror})") from None
    most = None
    for found in _PIXELS.finditer(data):
        length = int.from_bytes(found["long"] or found["plain"], "little")
        if length == _ENCAPSULATED:
            return False
        end = found.end() + length
        follows = int.from_bytes(data[end : end + 2], "little")
        # The same bytes may lie in a private element: after pixels there is padding at most.
        if end == len(data) or (end < len(data) and follows > _PIXEL_GROUP):
            most = max(most or 0, length)
    return most is not None and most < one.nbytes
