"""What the text header of a MetaImage (``.mha``, ``.mhd``) or NRRD file says.

ITK reads these files. A few fields are read here as well, because ITK takes the absolute value of a
negative spacing, invents directions where there are none, and does not name a missing file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from inference.read.deflate import GZIP, ZLIB, inflated

_MOST = 1 << 20  # bytes: a header may be long, since scanners' tags are written into it

_HERE = ("LOCAL", "Local", "local")  # instead of a file's name: after the header

# Of NRRD's spaces those that say where right and left are.
_SPACES = (
    *("lps", "left-posterior-superior"),
    *("ras", "right-anterior-superior"),
    *("las", "left-anterior-superior"),
)

WITH_TEXT_HEADER = (".mha", ".mhd", ".nrrd")
"""File name endings of the formats that have one."""


def is_text_header(path: Path) -> bool:
    """Whether a file begins like a NRRD or MetaImage header.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_MOST)
    return start.startswith(b"NRRD") or b"ElementDataFile" in start


@dataclass(frozen=True)
class TextHeader:
    """A few fields of a header.

    Attributes:
        voxel_file: the one file that holds the voxels, seen from the header's folder; empty
            where they follow the header or are spread over several files.
        spacing: mm per axis (x, y, z), as it is written; empty if there is none or it cannot be
            read.
        has_directions: whether it says where right and left are.
        has_spacing: whether it says how large voxels are; else 1 mm is taken.
        packed: where compressed voxels begin in their file, and what they are packed in, as zlib
            numbers it; ``None`` where there are no such voxels, or several files of them.
    """

    voxel_file: str
    spacing: tuple[float, ...]
    has_directions: bool
    has_spacing: bool
    packed: tuple[int, int] | None = None

    @classmethod
    def read(cls, path: Path) -> TextHeader:
        """Read the header of a file.

        Raises:
            OSError: the file cannot be read.
        """
        with path.open("rb") as file:
            is_nrrd = file.readline(_MOST).startswith(b"NRRD")
            file.seek(0)
            fields = _nrrd_fields(file) if is_nrrd else _meta_fields(file)
            begin = file.tell()
        if is_nrrd:
            voxels = fields.get("data file") or fields.get("datafile", "")
            spacing = fields.get("spacings", "")
            named = fields.get("space", "").lower().removesuffix("-time") in _SPACES
            directed = named and "(" in fields.get("space directions", "")
            packed = GZIP if fields.get("encoding", "").lower() in ("gzip", "gz") else 0
            skips = any(
                field in fields for field in ("line skip", "lineskip", "byte skip", "byteskip")
            )
            spaced = bool(spacing) or "(" in fields.get("space directions", "")
        else:
            voxels = fields.get("ElementDataFile", "")
            spacing = fields.get("ElementSpacing", "")
            directed = any(key in fields for key in ("TransformMatrix", "Rotation", "Orientation"))
            packed = ZLIB if fields.get("CompressedData", "").lower() == "true" else 0
            skips = "HeaderSize" in fields
            spaced = "ElementSpacing" in fields or "ElementSize" in fields
        voxel_file = _one_file(voxels)
        known = bool(voxel_file) or voxels in ("", *_HERE)
        return cls(
            voxel_file,
            _numbers(spacing),
            directed,
            spaced,
            (0 if voxel_file else begin, packed) if packed and known and not skips else None,
        )

    def check_packed(self, path: Path) -> None:
        """Inflate compressed voxels, for their checksum.

        ITK stops where it has as many voxels as it needs, before that.

        Args:
            path: the file whose header this is.

        Raises:
            CaseError: they are truncated or damaged.
            OSError: the file cannot be read.
        """
        if self.packed is None:
            return
        begin, container = self.packed
        with (path.parent / (self.voxel_file or path.name)).open("rb") as file:
            file.seek(begin)
            for _ in inflated(file, container):
                pass


def _meta_fields(file: BinaryIO) -> dict[str, str]:
    """``Key = value`` lines; the voxels, or the name of their file, are the last."""
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields and file.tell() < _MOST:
        line = file.readline(_MOST)
        if not line:
            break
        key, _, value = os.fsdecode(line).partition("=")
        fields[key.strip()] = value.strip()
    return fields


def _nrrd_fields(file: BinaryIO) -> dict[str, str]:
    """``field: value`` lines, in any case, up to an empty one."""
    fields: dict[str, str] = {}
    while file.tell() < _MOST:
        line = os.fsdecode(file.readline(_MOST)).rstrip("\r\n")
        if not line:
            break
        field, colon, value = line.partition(": ")
        if colon:
            fields[field.lower()] = value.strip()
    return fields


def _one_file(name: str) -> str:
    several = name.startswith("LIST") or "%" in name
    return "" if several or name in _HERE else name


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split())
    except ValueError:
        return ()
