"""NIfTI headers, where SimpleITK's reader and writer say less than a user must know.

SimpleITK (ITK 5.4) replaces a spacing of 0 or NaN by 1, and changes oblique directions in the
eighth digit when it writes what it has read. Here the header's own bytes are looked at, and made
into those of the labels.

The format: https://nifti.nimh.nih.gov/nifti-1.
"""

from __future__ import annotations

import gzip
import itertools
import math
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError

_GZIP = b"\x1f\x8b"
_LONGEST = 1 << 26  # bytes of header and extensions that are believed

_SIZE = 348  # bytes of a NIfTI-1 header; SimpleITK does not read NIfTI-2
_SIZE_OF_2 = 540
_FIELDS: dict[str, tuple[int, str]] = {  # offset, struct format
    "dim": (40, "8h"),
    "intent": (56, "3fh"),
    "datatype": (70, "hh"),  # with bits per voxel
    "pixdim": (76, "8f"),
    "offset": (108, "f"),
    "units": (123, "B"),
    "scale": (112, "ff"),  # slope and intercept
    "display": (124, "ff"),
    "range": (140, "ii"),
    "description": (148, "80s"),
    "codes": (252, "2h"),  # of qform and sform; 0 where there is none
    "quaternion": (256, "6f"),  # b, c, d and the shift
    "rows": (280, "12f"),  # of sform
}
NO_ORIENTATION = "its header does not say where right and left are; labels may be on wrong sides"
"""What is said of a CT whose header has no directions, in whatever format."""

_UINT8 = 2
_BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}
"""Bits per voxel by data type, of real ones; the header's own number may be anything."""
_OF_SEVERAL_VALUES = (32, 128, 1792, 2304)  # colours and complex numbers: ITK reads them
_NAMES = {
    _UINT8: "uint8", 4: "int16", 8: "int32", 16: "float32", 64: "float64", 256: "int8",
    512: "uint16", 768: "uint32", 1024: "int64", 1280: "uint64",
}  # fmt: skip
_HALF_TURN = 4e-7  # of a quaternion in float32: what is left for a half turn's first number
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # of a metre and a micrometre; else mm


@dataclass(frozen=True)
class Header:
    """The bytes of a NIfTI-1 file before its voxels.

    Attributes:
        raw: all bytes before the voxels, extensions included.
        order: "<" or ">", the byte order.
        compressed: whether the file is gzipped.
    """

    raw: bytes
    order: str
    compressed: bool

    @staticmethod
    def read(path: Path) -> Header:
        """Read the header of a ``.nii`` or ``.nii.gz`` file.

        Raises:
            CaseError: the file is no NIfTI file, ends within the header, or has no voxels.
            OSError: it cannot be opened.
        """
        compressed = _is_compressed(path)
        try:
            with _open(path, compressed) as file:
                raw = file.read(_SIZE)
                order = "<" if raw[:4] == struct.pack("<i", _SIZE) else ">"
                if raw[4:7] == b"n+2":
                    raise CaseError("is a NIfTI-2 file; convert it to NIfTI-1")
                if raw[344:347] != b"n+1" or raw[:4] != struct.pack(order + "i", _SIZE):
                    raise CaseError("is not a NIfTI file, whatever its name says")
                header = Header(raw, order, compressed)
                raw += file.read(header.voxels_at - _SIZE)
        except (OSError, EOFError, zlib.error) as error:
            raise CaseError(f"is damaged or truncated ({error})") from None
        header = Header(raw, order, compressed)
        if any(n < 1 for n in header.shape[:3]):
            text = " x ".join(map(str, header.shape))
            raise CaseError(f"has an impossible size ({text} voxels)")
        return header

    def get(self, field: str) -> tuple[Any, ...]:
        """The values of a header field."""
        offset, form = _FIELDS[field]
        return struct.unpack_from(self.order + form, self.raw, offset)

    @property
    def voxels_at(self) -> int:
        """Bytes before the first voxel.

        Raises:
            CaseError: the header says something impossible.
        """
        offset = self.get("offset")[0]
        if not (math.isfinite(offset) and 0 <= offset <= _LONGEST):
            raise CaseError(f"has an impossible NIfTI header (voxels begin at byte {offset:g})")
        return max(_SIZE, int(offset))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis: x, y, z and what more there is."""
        dim = self.get("dim")
        return dim[1 : 1 + dim[0]] if 1 <= dim[0] <= 7 else ()

    @property
    def spacing(self) -> tuple[float, ...]:
        """The spacing x, y, z as the file gives it, in the file's unit, wrong as it may be."""
        return self.get("pixdim")[1:4]

    @property
    def is_known(self) -> bool:
        """Whether SimpleITK knows the voxels' data type."""
        number = self.get("datatype")[0]
        return number in _BITS or number in _OF_SEVERAL_VALUES

    @property
    def bytes_needed(self) -> int:
        """Bytes of the (uncompressed) file up to the last voxel."""
        kind, bits = self.get("datatype")
        return self.voxels_at + math.prod(self.shape) * _BITS.get(kind, bits) // 8

    @property
    def intercept_not_used(self) -> float:
        """The intercept where the slope is 0 or no number, so that nothing is scaled; else 0."""
        slope, intercept = self.get("scale")
        scaled = slope != 0 and math.isfinite(slope)
        return float(intercept) if not scaled and math.isfinite(intercept) else 0.0

    @property
    def forms(self) -> dict[str, NDArray[np.float64]]:
        """What the header has of "qform" and "sform": matrices (4, 4), voxel to mm (RAS)."""
        b, c, d, *shift = self.get("quaternion")
        a = 1 - b * b - c * c - d * d
        a = math.sqrt(a) if a > _HALF_TURN else 0.0
        turn = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        handed, *spacing = self.get("pixdim")[:4]
        spacing[2] *= -1 if handed < 0 else 1
        qform, sform = np.eye(4), np.eye(4)
        qform[:3] = np.column_stack([turn * spacing, shift])
        sform[:3] = np.reshape(self.get("rows"), (3, 4))
        scale = _MILLIMETRES.get(self.get("units")[0] & 7, 1.0)
        named = zip(("qform", "sform"), self.get("codes"), (qform, sform), strict=True)
        return {
            name: np.diag([scale, scale, scale, 1.0]) @ form for name, code, form in named if code
        }

    def doubt(self, taken: NDArray[np.float64]) -> str | None:
        """What in the header speaks against where the volume was taken to lie.

        Programs differ in which of qform and sform they take: where the two contradict each other,
        a label may be right in one and left in another.

        Args:
            taken: matrix (4, 4), voxel to mm (RAS).

        Returns:
            A warning, or ``None``.
        """
        forms = self.forms
        if not forms:
            return NO_ORIENTATION
        ends = [(0, n - 1) for n in self.shape[:3]]
        corners = np.array([(*corner, 1) for corner in itertools.product(*ends)], np.float64)
        apart = max(1.0, *np.abs(taken[:3, :3]).max(axis=0))  # a voxel
        against = [
            name for name, form in forms.items()
            if np.abs(corners @ (form - taken).T).max() > apart
        ]  # fmt: skip
        if not against:
            return None
        return (
            f"its {' and '.join(against)} does not say what was taken for its axes or spacing; "
            "look at right and left"
        )

    @property
    def plain(self) -> bool:
        """Whether the voxels are one volume of numbers in this machine's own byte order, unscaled.

        Then they can be taken as they are stored.
        """
        slope, intercept = self.get("scale")
        own = "<" if sys.byteorder == "little" else ">"
        return (
            self.order == own
            and len(self.shape) == 3
            and slope in (0, 1)  # 0 stands for "not scaled"
            and intercept == 0
        )

    def for_labels(self) -> bytes:
        """The header of a uint8 label file on the same grid, bit for bit."""
        raw = bytearray(self.raw[:_SIZE] + bytes(4))  # no extensions
        for field, values in {
            "dim": (3, *self.shape[:3], 1, 1, 1, 1),
            "datatype": (_UINT8, 8),
            "offset": (_SIZE + 4,),
            "scale": (1, 0),
            "display": (0, 0),
            "description": (b"Abdoseg labels",),
            "intent": (0, 0, 0, 0),
            "range": (0, 0),
        }.items():
            offset, form = _FIELDS[field]
            struct.pack_into(self.order + form, raw, offset, *values)
        return bytes(raw)


def data_type(path: Path) -> str | None:
    """What a file's header says of its voxels ("int16"), be it NIfTI-1 or NIfTI-2.

    Returns:
        ``None`` of any other file.

    Raises:
        OSError: it cannot be opened.
    """
    compressed = _is_compressed(path)
    try:
        with _open(path, compressed) as file:
            raw = file.read(_SIZE)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return None
    if raw[344:347] in (b"n+1", b"ni1"):
        size, at = _SIZE, _FIELDS["datatype"][0]
    elif raw[4:7] in (b"n+2", b"ni2"):
        size, at = _SIZE_OF_2, 12
    else:
        return None
    order = "<" if raw[:4] == struct.pack("<i", size) else ">"
    number = struct.unpack_from(order + "h", raw, at)[0]
    return _NAMES.get(number, f"NIfTI data type {number}")


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _open(path: Path, compressed: bool) -> BinaryIO:
    opener = cast("Callable[..., BinaryIO]", gzip.open if compressed else open)
    return opener(path, "rb")
