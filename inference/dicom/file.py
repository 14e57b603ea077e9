"""What a file says of itself: whether it is DICOM, of which kind, and how GDCM reads it.

The standard: DICOM PS3.10, 7.1.
"""

from __future__ import annotations

import re
from pathlib import Path

import SimpleITK as sitk

from inference.errors import CaseError, last_line

_HEAD = 1024  # bytes in which a file says that it is DICOM, and of which kind
_MARK = slice(128, 132)
# How older files begin: group 8's length, or one of its first elements with a type or a length.
_WITHOUT_MARK = re.compile(
    rb"\x08\x00(?:\0\0(?:UL\x04\0|\x04\0\0\0)|[\x05\x08\x16]\0(?:CS|UI|[\0-\x80]\0\0\0))"
)

_COMPRESSED = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")  # JPEG of all kinds, RLE
_FRAGMENTS = re.compile(rb"\xe0\x7f\x10\x00O[BW]\0\0\xff\xff\xff\xff")
_FRAGMENT, _NO_MORE = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"

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
    return _identifier(head, b"\x02\x00\x02\x00")


def check_fragments(path: Path) -> None:
    """See that a file does not end within its compressed pixels.

    GDCM takes any bytes for the length of a fragment, and that much memory: of a JPEG file that had
    lost its last 300 bytes gigabytes, until nothing was left.

    Raises:
        CaseError: it does. The message names the file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if not _identifier(head, b"\x02\x00\x10\x00").startswith(_COMPRESSED):
            return
        file.seek(0)
        data = file.read()
    starts = [found.end() for found in _FRAGMENTS.finditer(data)]  # one of them may be private
    if starts and not any(_is_whole(data, start) for start in starts):
        raise CaseError(f"has a slice that is damaged or truncated: {path.name}")


def _is_whole(data: bytes, at: int) -> bool:
    """Whether fragments follow each other up to the mark behind the last one."""
    while data[at : at + 4] == _FRAGMENT and at + 8 <= len(data):
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return at == len(data) or data[at : at + 4] == _NO_MORE  # which some programs leave out


def _identifier(head: bytes, tag: bytes) -> str:
    """The identifier that is the value of an element near a file's beginning; else ""."""
    found = re.search(re.escape(tag) + rb"UI(..)", head, re.DOTALL)
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
