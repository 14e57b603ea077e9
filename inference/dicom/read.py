"""Reading a CT that is stored as DICOM: a file for each slice, or one for many.

SimpleITK (GDCM) reads the files: compressed pixels, the rescaling to HU. How the slices lie is
found out beforehand, in `inference.dicom.stack`.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.dicom.file import damaged, reader_of
from inference.dicom.header import Slice
from inference.dicom.stack import axes_of, stack
from inference.errors import CaseError, last_line
from inference.hounsfield import AIR, DENSEST
from inference.read.checks import check_geometry, check_room, check_spacing
from inference.read.file import Scan, Watch, writable
from inference.read.itk_noise import without_noise

_PIXELS = re.compile(rb"\xe0\x7f\x10\x00(?:O[BW]\0\0(?P<long>.{4})|(?P<plain>.{4}))", re.DOTALL)
_PIXEL_GROUP, _PIXEL_DATA = 0x7FE0, 0x7FE00010
_MOST_AT_ONCE = 1 << 25  # bytes
_ENCAPSULATED = 0xFFFFFFFF  # the length of compressed pixels


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
    slices, step, notes = stack(slices)
    first = slices[0]
    spacing = (*first.spacing, step)
    check_spacing(spacing)
    size = (*first.size, len(slices))
    pixel = sitk.sitkInt16 if all(one.whole for one in slices) else sitk.sitkFloat32
    check_room(size, pixel, _bytes_beside(slices))
    image = sitk.Image(size, pixel)
    image.SetSpacing(spacing)
    image.SetOrigin(first.position)
    row, column = axes_of(first)[0]
    image.SetDirection(np.column_stack([row, column, np.cross(row, column)]).ravel().tolist())
    check_geometry(image)
    volume = writable(image)
    of_file: dict[Path, list[int]] = {}
    for index, one in enumerate(slices):
        of_file.setdefault(one.path, []).append(index)
    ready = 0
    for indices in of_file.values():
        held = _read(slices[indices[0]])
        planes = sitk.GetArrayViewFromImage(held)
        for index in indices:
            volume[index] = _pixels(slices[index], planes, volume.dtype)
        del planes, held  # before the next file's come
        ready += len(indices)
        if watch is not None:
            watch(image, ready)
    return Scan(image, warnings=notes)


def bytes_needed(slices: Sequence[Slice]) -> int:
    """How many bytes the CT of these slices takes in memory at most."""
    volume = math.prod(slices[0].size) * len(slices) * np.dtype(np.float32).itemsize
    return volume + _bytes_beside(slices)


def _bytes_beside(slices: Sequence[Slice]) -> int:
    """How many bytes reading takes beside the volume.

    Of a file that holds several slices GDCM reads all at once, as they are stored and rescaled.
    """
    rescaled = np.dtype(np.int32 if all(one.whole for one in slices) else np.float64).itemsize
    return max(
        one.nbytes + math.prod(one.size) * one.frames * rescaled if one.frames > 1 else 0
        for one in slices
    )


def _read(one: Slice) -> sitk.Image:
    """All that a slice's file holds (columns, rows, frames), as GDCM rescales it.

    Raises:
        CaseError: it cannot be read.
    """
    lacking = CaseError(f"has a slice with too few pixels: {one.path.name}")
    if _lacks_pixels(one):
        raise lacking
    reader = reader_of(one.path)
    with without_noise():
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise CaseError(damaged(one.path, error)) from None
    if image.GetSize() != (*one.size, one.frames):
        raise lacking
    return image


def _pixels(one: Slice, planes: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A slice's HU (rows, columns), of what its file holds (frames, rows, columns)."""
    plane = planes[one.frame]
    slope, intercept = one.applied
    padding = one.padding * slope + intercept
    # Padding that high would look like metal around the patient.
    blank = np.abs(plane - padding) < abs(slope) / 2 if padding > DENSEST else None
    if one.rescaling != one.applied:
        stored = np.rint((plane - intercept) / slope)
        plane = stored * one.rescaling[0] + one.rescaling[1]
    limits = np.iinfo(dtype) if dtype.kind == "i" else np.finfo(dtype)
    values = np.clip(plane, limits.min, limits.max).astype(dtype)
    if blank is not None:
        values[blank] = AIR
    return values


def _lacks_pixels(one: Slice) -> bool:
    """Whether a file's own count of its pixels' bytes is too low: GDCM then leaves some unset.

    Raises:
        CaseError: the file cannot be read any more.
    """
    try:
        with one.path.open("rb") as file:
            # A mapped file that shrinks, or a disk that fails, would end the program.
            if os.fstat(file.fileno()).st_size <= _MOST_AT_ONCE:
                counted = _counted(file.read())
            else:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    counted = _counted(data)
    except (OSError, ValueError) as error:  # a file that is empty by now
        raise CaseError(f"cannot be read: {one.path.name} ({last_line(error)})") from None
    if counted is None:
        counted = _counted_slowly(one.path)
    return counted is not None and counted < one.nbytes


def _counted(data: bytes | mmap.mmap) -> int | None:
    """Bytes of pixels in a file, by its own count; `_ENCAPSULATED` of compressed ones.

    Returns:
        ``None`` where they are not written as nearly all files have them.
    """
    most = None
    for found in _PIXELS.finditer(data):
        length = int.from_bytes(found["long"] or found["plain"], "little")
        if length == _ENCAPSULATED:
            return _ENCAPSULATED
        end = found.end() + length
        follows = int.from_bytes(data[end : end + 2], "little")
        # The same bytes may lie in a private element: after pixels there is padding at most.
        if end == len(data) or (end < len(data) and follows > _PIXEL_GROUP):
            most = max(most or 0, length)
    return most


def _counted_slowly(path: Path) -> int | None:
    """The same of a file in any of DICOM's ways to write (big-endian, deflated); by pydicom.

    Raises:
        CaseError: the file cannot be read.
    """
    import pydicom  # most series need it not

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pydicom.dcmread(path, force=True, specific_tags=[_PIXEL_DATA])
            pixels = found.get_item(_PIXEL_DATA)
    except Exception as error:  # pydicom raises many kinds for a file that is damaged
        raise CaseError(damaged(path, error)) from None
    return None if pixels is None or pixels.value is None else len(pixels.value)
