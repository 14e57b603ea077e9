"""CT files of every format for tests, good ones and some with an odd header."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk
from tiny_model import make_ct

Spoil = Callable[[Path], object]
"""Writes a file that is not as it should be."""


def volume(pixel: int = sitk.sitkInt16) -> sitk.Image:
    """What the files here hold: a small CT."""
    return sitk.Cast(make_ct((12, 20, 22)), pixel)


def nifti(changes: dict[int, bytes], compress: bool = True) -> Spoil:
    """Write a NIfTI file with some of its header's bytes replaced."""

    def spoil(path: Path) -> None:
        plain = path.with_name("plain.nii")
        sitk.WriteImage(volume(), plain)
        raw = bytearray(plain.read_bytes())
        plain.unlink()
        for offset, value in changes.items():
            raw[offset : offset + len(value)] = value
        path.write_bytes(gzip.compress(raw, 1) if compress else raw)

    return spoil


def meta(spacing: str, matrix: str = "1 0 0 0 1 0 0 0 1", slices: int = 12) -> Spoil:
    """Write an ``.mhd`` file with such a header, and its voxels beside it."""

    def spoil(path: Path) -> None:
        image = volume()
        x, y, _ = image.GetSize()
        z = slices
        path.with_suffix(".raw").write_bytes(sitk.GetArrayFromImage(image).tobytes())
        path.write_text(
            f"ObjectType = Image\nNDims = 3\nDimSize = {x} {y} {z}\nElementSpacing = {spacing}\n"
            f"TransformMatrix = {matrix}\nElementType = MET_SHORT\n"
            f"ElementDataFile = {path.with_suffix('.raw').name}\n"
        )

    return spoil


def nrrd(line: str) -> Spoil:
    """Write an ``.nrrd`` file whose header has this line for its geometry."""

    def spoil(path: Path) -> None:
        image = volume()
        x, y, z = image.GetSize()
        header = (
            f"NRRD0004\ntype: short\ndimension: 3\nsizes: {x} {y} {z}\n{line}\n"
            "endian: little\nencoding: raw\n\n"
        )
        path.write_bytes(header.encode() + sitk.GetArrayFromImage(image).tobytes())

    return spoil
