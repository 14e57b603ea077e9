"""Voxels of a NIfTI file: inflated, checked to be there whole, and labels written.

SimpleITK (ITK 5.4) reads a truncated ``.nii.gz`` without a word (what is missing becomes 0) and
writes to a full disk without an error.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.read.deflate import GZIP, checksum, gzipped, inflated
from inference.read.nifti_header import Header

_CHUNK = 1 << 22  # bytes
_TIGHTEST = 1032  # deflate makes no byte out of more than so many


def check_possible(path: Path, header: Header) -> None:
    """Check that a gzipped file is large enough to hold its voxels, before memory is set aside.

    Raises:
        CaseError: not even the emptiest of volumes could be packed into so little.
        OSError: there is no such file any more.
    """
    size = path.stat().st_size
    if header.bytes_needed > _TIGHTEST * size:
        raise CaseError(
            f"is truncated: {size} bytes cannot hold the {header.bytes_needed} that its header"
            " announces"
        )


def inflate(
    path: Path, header: Header, voxels: memoryview, told: Callable[[int], None] | None = None
) -> bool:
    """Inflate a ``.nii.gz`` file's voxels to where they shall be, and check that they are whole.

    Nothing is held but the result.

    Args:
        path: the file.
        header: its header.
        voxels: where to, just as many bytes as there are voxels' bytes.
        told: is called with the number of bytes that are there, every megabyte.

    Returns:
        Whether it was done; ``False`` for a file of several gzip members.

    Raises:
        CaseError: the file is truncated or damaged.
        OSError: it cannot be read.
    """
    needed = header.bytes_needed
    skip, total = header.voxels_at, 0
    with path.open("rb") as file:
        for piece in inflated(file, GZIP):
            first, last = max(total, skip), min(total + len(piece), needed)
            if first < last:
                voxels[first - skip : last - skip] = piece[first - total : last - total]
            total += len(piece)
            if told:
                told(max(0, last - skip))
        if total < needed:
            if file.read(1):
                return False
            raise CaseError(f"is truncated: {total} of {needed} bytes")
    return True


def check_complete(path: Path, header: Header, voxels: NDArray[Any]) -> None:
    """Check that a file holds all of its voxels, undamaged.

    gzip ends with a checksum and the length of its content. Where the voxels are in memory just
    as they are in the file, their checksum is compared with it, which costs little; otherwise
    the file is inflated once more.

    Args:
        path: the file.
        header: its header.
        voxels: its voxels as they were read.

    Raises:
        CaseError: the file is truncated or damaged.
        OSError: it cannot be read.
    """
    needed = header.bytes_needed
    if not header.compressed:
        there = path.stat().st_size
        if there < needed:
            raise CaseError(f"is truncated: {there} of {needed} bytes")
        return
    if header.voxels_at + voxels.nbytes == needed and voxels.flags.c_contiguous:
        with path.open("rb") as file:
            file.seek(-8, 2)
            written = struct.unpack("<II", file.read(8))
        if written == (checksum(header.raw, _bytes_of(voxels)), needed % (1 << 32)):
            return
    # Several gzip members, scaled or byte-swapped voxels, something behind them, or damage.
    total = 0
    try:
        with gzip.open(path) as content:
            while chunk := content.read(_CHUNK):
                total += len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise CaseError(f"is damaged or truncated ({error})") from None
    if total < needed:
        raise CaseError(f"is truncated: {total} of {needed} bytes")


def write_labels(
    file: BinaryIO, header: Header, labels: NDArray[np.uint8], compress: bool, threads: int = 1
) -> None:
    """Write labels with the geometry of the file they belong to, bit for bit.

    Args:
        file: where to write.
        header: of the CT.
        labels: uint8 array (z, y, x), as stored.
        compress: whether to write ``.nii.gz``.
        threads: how many parts are deflated at once.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    start = header.for_labels()
    voxels = _bytes_of(labels)
    if not compress:
        file.write(start)
        file.write(voxels)
        return
    for part in gzipped(start, voxels, threads):
        file.write(part)


def _bytes_of(voxels: NDArray[Any]) -> memoryview:
    """An array's memory, not copied if it is contiguous."""
    return memoryview(cast("Any", np.ascontiguousarray(voxels))).cast("B")
