"""CTs that are stored as DICOM series: a folder with one file for each slice.

SimpleITK's own series reader takes slices that are missing, doubled or shifted against each other
without an error. Here each slice's position is looked at, and what is no regular stack is
refused. SimpleITK (GDCM) still reads the files: headers, compressed pixels, the rescaling to HU.

The standard: DICOM PS3.3, C.7.6.2 (where a slice lies) and C.8.2.1 (CT); PS3.10, 7.1 (the file).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.errors import CaseError, last_line
from inference.paths import is_file, is_there, is_unicode
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
_CT = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2(\.[12])?")  # also enhanced, legacy converted
_ENDINGS = (
    ".dcm",
    ".ima",
)  # of files that are taken for slices where they do not say what they are

_SAME_PLACE = 0.01  # mm
_SAME_DIRECTION = 1e-3  # of unit vectors, as headers round
_SAME_SPACING = 1e-3  # relative
_UNEVEN = 0.1  # of the distance between slices; from here on it is said
_GAP = 0.5  # of that distance; from here on labels would lie in another slice than their organ
_SHIFTED = 1.0  # pixels; from here on a stack leans

_SERIES, _NUMBER, _MODALITY, _IMAGE_TYPE = "0020|000e", "0020|0011", "0008|0060", "0008|0008"
_POSITION, _ORIENTATION, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"


@dataclass(frozen=True)
class Series:
    """The files of one CT.

    Attributes:
        folder: where they lie.
        uid: the Series Instance UID.
        number: the Series Number, as text; may be empty.
        files: the slices, in no order that means anything.
        problem: why they cannot be read, known before; ``None`` if they can.
    """

    folder: Path
    uid: str
    number: str
    files: tuple[Path, ...]
    problem: str | None = None


@dataclass(frozen=True)
class _Slice:
    """What a slice's header says.

    Attributes:
        path: the file.
        series: the Series Instance UID.
        number: the Series Number, as text; may be empty.
        placed: whether it has a place in a volume: not so localizers and reports.
        size: columns, rows and frames.
        position: of the first pixel's centre, in mm along DICOM's axes (LPS).
        axes: array (2, 3): the directions along a row and along a column.
        spacing: of columns and of rows, in mm.
        whole: whether HU are whole numbers.
    """

    path: Path
    series: str
    number: str
    placed: bool
    size: tuple[int, ...]
    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    spacing: tuple[float, ...]
    whole: bool


class _OtherError(CaseError):
    """A DICOM file of another modality."""


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, or is named so.

    Raises:
        OSError: it cannot be read.
    """
    return _kind(path) is not None


def find_series(folder: Path) -> list[Series]:
    """The CT series in a folder and its subfolders: folder by folder, sorted by number.

    Left alone: hidden files and folders, other modalities, reports, localizers, images without a
    position, single slices, and series in one place (those that watch the contrast agent come).
    A file that may be a slice but cannot be read is a problem of all series beside it.
    """
    found: list[Series] = []
    for place, files, reason in _folders(folder):
        slices, lost = _slices(files)
        groups: dict[str, list[_Slice]] = {}
        for one in slices:
            if one.placed or one.size[2] > 1:
                groups.setdefault(one.series, []).append(one)
        here = [
            Series(
                place,
                uid,
                group[0].number,
                tuple(one.path for one in group),
                lost or _several_in_a_file(group),
            )
            for uid, group in groups.items()
            if _is_volume(group)
        ]
        found += sorted(here, key=lambda series: (_rank(series.number), series.uid))
        if not here and (lost or reason):
            found.append(Series(place, "", "", (), lost or reason))
    return found


def read_series(files: Sequence[Path], watch: Watch | None = None) -> Scan:
    """Read a CT from its slices.

    Args:
        files: the slices, in any order.
        watch: is called after each slice.

    Returns:
        The CT in HU, stacked along the slices' normal as SimpleITK does. Whole numbers become
        int16: what lies beyond is cut off there (HU have no meaning so far out).

    Raises:
        CaseError: a slice cannot be read, they are no regular stack, or too large for the memory
            there is. The message names the slice, not the folder.
    """
    slices = [_header(path) for path in files]
    _check_alike(slices)
    row, column = slices[0].axes
    normal = np.cross(row, column)
    slices.sort(key=lambda one: float(one.position @ normal))
    step, warnings = _distance(slices, normal)
    _check_upright(slices)

    columns, rows, _ = slices[0].size
    size = (columns, rows, len(slices))
    pixel = sitk.sitkInt16 if all(one.whole for one in slices) else sitk.sitkFloat32
    check_room(size, pixel)
    spacing = (*slices[0].spacing, step)
    check_spacing(spacing)
    image = sitk.Image(size, pixel)
    image.SetSpacing(spacing)
    image.SetOrigin(slices[0].position.tolist())
    image.SetDirection(np.column_stack([row, column, normal]).ravel().tolist())
    check_geometry(image)
    volume = writable(image)
    limits = np.iinfo(np.int16) if pixel == sitk.sitkInt16 else np.finfo(np.float32)
    for index, one in enumerate(slices):
        reader = _reader(one.path)
        with without_noise():
            try:
                plane = reader.Execute()
            except RuntimeError as error:
                raise CaseError(_damaged(one.path, error)) from None
        volume[index] = np.clip(sitk.GetArrayViewFromImage(plane)[0], limits.min, limits.max)
        if watch is not None:
            watch(image, index + 1)
    return Scan(image, warnings=warnings)


def bytes_needed(files: Sequence[Path]) -> int:
    """How many bytes the CT of these slices takes in memory, or twice so many.

    Raises:
        CaseError: the first slice cannot be read.
    """
    return math.prod(_header(files[0]).size) * len(files) * np.dtype(np.float32).itemsize


def _folders(top: Path) -> Iterator[tuple[Path, list[Path], str | None]]:
    """Every folder with its files, sorted; and why it cannot be read, if so.

    Links to folders are followed, but none is taken twice.
    """
    seen: set[str] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
            below = [path for path in paths if path.is_dir()]
        except OSError as error:
            yield folder, [], f"cannot be read ({error.strerror})"
            continue
        yield folder, [path for path in paths if path not in below], None
        waiting += reversed(below)


def _slices(files: Sequence[Path]) -> tuple[list[_Slice], str | None]:
    """The CT slices among files, and what is wrong with one that may be a slice too."""
    slices, lost = [], None
    for path in files:
        if is_there(path) and not is_file(path):  # a device
            continue
        try:
            kind = _kind(path)
            if kind == "" or (kind and _CT.fullmatch(kind)):
                slices.append(_header(path))
        except OSError as error:
            lost = f"may lack a slice: {path.name} cannot be read ({error.strerror})"
        except _OtherError:
            pass
        except CaseError as error:
            lost = str(error)
    return slices, lost


def _kind(path: Path) -> str | None:
    """The storage class that a DICOM file names ("" if none); ``None`` for any other file."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[128:132] != b"DICM":
        return "" if path.name.lower().endswith(_ENDINGS) else None
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


def _header(path: Path) -> _Slice:
    """Read a slice's header.

    Raises:
        CaseError: it cannot be read.
        _OtherError: it is no CT.
    """
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

    if text(_MODALITY) != "CT":
        raise _OtherError(f"has a slice that is no CT: {path.name}")
    place = [_numbers(text(key)) for key in (_POSITION, _ORIENTATION, _PIXEL_SPACING)]
    placed = [len(numbers) for numbers in place] == [3, 6, 2]
    position, axes, spacing = place if placed else [(0.0,) * 3, (0.0,) * 6, (0.0,) * 2]
    return _Slice(
        path,
        text(_SERIES),
        text(_NUMBER),
        placed and "LOCALIZER" not in text(_IMAGE_TYPE).upper().split("\\"),
        reader.GetSize(),
        np.array(position),
        np.reshape(axes, (2, 3)),
        spacing[::-1],
        reader.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64),
    )


def _numbers(text: str) -> tuple[float, ...]:
    """The numbers of a DICOM value, which backslashes part; none if one of them is none."""
    try:
        numbers = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()


def _rank(number: str) -> float:
    return next(iter(_numbers(number)), math.inf)


def _damaged(path: Path, error: RuntimeError) -> str:
    return f"has a slice that cannot be read, perhaps damaged: {path.name} ({last_line(error)})"


def _is_volume(group: Sequence[_Slice]) -> bool:
    first = group[0].position
    apart = any(np.abs(one.position - first).max() > _SAME_PLACE for one in group)
    return apart or _several_in_a_file(group) is not None


def _several_in_a_file(group: Sequence[_Slice]) -> str | None:
    """What is wrong with a series whose files hold several slices each."""
    if all(one.size[2] == 1 for one in group):
        return None
    # Their order lies in sequences of the header that SimpleITK does not show.
    return "is enhanced (multi-frame) DICOM; convert it to NIfTI first, with dcm2niix for example"


def _check_alike(slices: Sequence[_Slice]) -> None:
    """Raise CaseError where slices do not belong to one volume."""
    first = slices[0]
    for one in slices:
        names = f"({first.path.name}, {one.path.name})"
        if one.size != first.size:
            a, b = (f"{each.size[0]} x {each.size[1]}" for each in (first, one))
            raise CaseError(f"has slices of {a} and of {b} pixels {names}")
        if not np.allclose(one.spacing, first.spacing, rtol=_SAME_SPACING, atol=0):
            raise CaseError(f"has slices of different pixel spacing {names}")
        if not np.allclose(one.axes, first.axes, atol=_SAME_DIRECTION):
            raise CaseError(f"has slices in different directions {names}")
    if not np.allclose(first.axes @ first.axes.T, np.eye(2), atol=_SAME_DIRECTION):
        raise CaseError("has impossible axis directions")


def _distance(
    slices: Sequence[_Slice], normal: NDArray[np.float64]
) -> tuple[float, tuple[str, ...]]:
    """The distance between sorted slices, in mm, and what a user should know about it.

    Raises:
        CaseError: they are not evenly spaced, or two lie in one place.
    """
    heights = np.array([one.position @ normal for one in slices])
    steps = np.diff(heights)

    def names(index: int) -> str:
        return f"{slices[index].path.name} and {slices[index + 1].path.name}"

    closest, widest = int(steps.argmin()), int(steps.argmax())
    if steps[closest] < _SAME_PLACE:
        raise CaseError(f"has slices in one place, of several phases perhaps: {names(closest)}")
    usual = float(np.median(steps))
    if steps[widest] > (1 + _GAP) * usual:
        raise CaseError(
            f"lacks slices: {names(widest)} are {steps[widest]:.4g} mm apart, others {usual:.4g} mm"
        )
    step = float(heights[-1] - heights[0]) / len(steps)
    off = np.abs(heights - heights[0] - step * np.arange(len(heights))).max()
    span = f"{steps[closest]:.4g} to {steps[widest]:.4g} mm apart"
    if off > _GAP * step:
        raise CaseError(f"has slices that are {span}")
    return step, (f"its slices are {span}; taken as {step:.4g} mm",) * bool(off > _UNEVEN * step)


def _check_upright(slices: Sequence[_Slice]) -> None:
    """Raise CaseError where slices do not lie straight above each other."""
    first = slices[0]
    shifts = (np.array([one.position for one in slices]) - first.position) @ first.axes.T
    if (np.ptp(shifts, axis=0) > _SHIFTED * np.array(first.spacing)).any():
        raise CaseError(
            "has slices that are shifted against each other, by a tilted gantry perhaps"
        )
