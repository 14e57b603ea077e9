"""What the text header of a MetaImage (``.mha``, ``.mhd``) or NRRD file says.

ITK reads these files. A few fields are read here as well, because ITK takes the absolute value of a
negative spacing, invents directions where there are none, and does not name a missing file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_MOST = 1 << 20  # bytes: a header may be long, since scanners' tags are written into it

WITH_TEXT_HEADER = (".mha", ".mhd", ".nrrd")
"""File name endings of the formats that have one."""


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
    """

    voxel_file: str
    spacing: tuple[float, ...]
    has_directions: bool
    has_spacing: bool

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
        if is_nrrd:
            voxels = fields.get("data file") or fields.get("datafile", "")
            spacing = fields.get("spacings", "")
            directed = "space" in fields and "(" in fields.get("space directions", "")
            spaced = bool(spacing) or "(" in fields.get("space directions", "")
        else:
            voxels = fields.get("ElementDataFile", "")
            spacing = fields.get("ElementSpacing", "")
            directed = any(key in fields for key in ("TransformMatrix", "Rotation", "Orientation"))
            spaced = "ElementSpacing" in fields or "ElementSize" in fields
        return cls(_one_file(voxels), _numbers(spacing), directed, spaced)


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
    return "" if several or name in ("LOCAL", "Local", "local") else name


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split())
    except ValueError:
        return ()
