"""What a file says of itself: whether it is DICOM, of which kind, and how GDCM reads it.

The standard: DICOM PS3.10, 7.1.
"""

from __future__ import annotations

import re
from pathlib import Path

import SimpleITK as sitk

from inference.errors import last_line

_HEAD = 1024  # bytes in which a file says that it is DICOM, and of which kind
_MARK = slice(128, 132)
# How older files begin: group 8's length, or one of its first elements with a type or a length.
_WITHOUT_MARK = re.compile(
    rb"\x08\x00(?:\0\0(?:UL\x04\0|\x04\0\0\0)|[\x05\x08\x16]\0(?:CS|UI|[\0-\x80]\0\0\0))"
)

SLICE_ENDINGS = (".dcm", ".ima")
"""Endings of files that are taken for slices where they do not say it."""


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, or is named so.

    Raises:
        OSError: it cannot be read.
    """
    return storage_class(path) is not None


def storage_class(path: Path) -> str | None:
    """The storage class that a DICOM file names ("" if none); ``None`` for any other file."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[_MARK] != b"DICM":
        named = path.name.lower().endswith(SLICE_ENDINGS)
        return "" if named or _WITHOUT_MARK.match(head) else None
    found = re.search(rb"\x02\x00\x02\x00UI(..)", head, re.DOTALL)
    if not found:
        return ""
    value = head[found.end() : found.end() + int.from_bytes(found[1], "little")]
    return value.rstrip(b"\0 ").decode("ascii", "replace")


def reader_of(path: Path) -> sitk.ImageFileReader:
    """GDCM's, of one file."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def damaged(path: Path, error: BaseException) -> str:
    """What is said of a file that cannot be read."""
    return f"has a slice that cannot be read, perhaps damaged: {path.name} ({last_line(error)})"
