"""What the text header of a MetaImage (``.mha``, ``.mhd``) or NRRD file says.

ITK reads these files; this is what has to be known of them before or beside that: ITK takes the
absolute value of a negative spacing, invents directions where there are none, and does not name
a missing file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_BYTES = 1 << 14  # more than any header has

WITH_TEXT_HEADER = (".mha", ".mhd", ".nrrd")
"""File name endings of the formats that have one."""


@dataclass(frozen=True)
class TextHeader:
    """A few fields of a header.

    Attributes:
        voxel_file: the one file that holds the voxels, seen from the header's folder; empty
            where they follow the header or are spread over several files.
        spacing: mm per axis (x, y, z), as it is written; empty where nothing legible is.
        has_directions: whether it says where right and left are.
    """

    voxel_file: str
    spacing: tuple[float, ...]
    has_directions: bool

    @classmethod
    def read(cls, path: Path) -> TextHeader:
        """Read the header of a file.

        Raises:
            OSError: the file cannot be read.
        """
        with path.open("rb") as file:
            start = file.read(_BYTES)
        return cls(_voxel_file(start), _spacing(start), _has_directions(start))


def _voxel_file(start: bytes) -> str:
    found = re.search(rb"^(?:ElementDataFile *=|data ?file *:) *([^\r\n]*)", start, re.M)
    name = os.fsdecode(found[1].strip()) if found else ""
    return "" if re.match(r"LIST|LOCAL$", name) or "%" in name else name


def _spacing(start: bytes) -> tuple[float, ...]:
    found = re.search(rb"^(?:ElementSpacing *=|spacings *:)([^\r\n]*)", start, re.M)
    try:
        return tuple(float(word) for word in found[1].split()) if found else ()
    except ValueError:
        return ()


def _has_directions(start: bytes) -> bool:
    if start.startswith(b"NRRD"):
        return bool(re.search(rb"^space *:", start, re.M | re.I)) and bool(
            re.search(rb"^space directions *:[^\r\n]*\(", start, re.M | re.I)
        )
    return bool(re.search(rb"^(?:TransformMatrix|Rotation|Orientation) *=", start, re.M))
