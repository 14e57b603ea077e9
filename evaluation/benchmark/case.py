"""The CT of the benchmark: given or drawn, in a form that every system reads alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import SimpleITK as sitk

from inference.errors import CaseError, UsageError
from inference.paths import is_file
from inference.phantom import make_phantom
from inference.read.file import read
from inference.write.files import write_image


def phantom_case(work: Path, slices: int, plane: int) -> tuple[Path, tuple[int, ...]]:
    """A phantom of 2.5 mm slices of 410 mm.

    Args:
        work: the folder that it is written to.
        slices: how many.
        plane: pixels along both sides of a slice.

    Returns:
        The file and its size (x, y, z).
    """
    pixel = 0.8 * 512 / plane
    image, _ = make_phantom((slices, plane, plane), (2.5, pixel, pixel))
    path = work / "phantom_0000.nii.gz"
    write_image(image, path, compression=-1)
    return path, image.GetSize()


def given_case(case: Path, work: Path) -> tuple[Path, tuple[int, ...]]:
    """A copy of a CT, its axes LPS (not every system turns one), with no other CT beside it.

    Beside ``X_0001`` the ``_0000`` of a name would be a number to us and none to others.

    Args:
        case: the CT, ``.nii.gz`` or ``.nii``.
        work: the folder that the copy lies in.

    Returns:
        The file and its size (x, y, z).

    Raises:
        UsageError: the file is missing, of another kind or no CT.
    """
    if not is_file(case):
        raise UsageError(f"{case}: no such file")
    if not case.name.endswith((".nii.gz", ".nii")):
        raise UsageError(f"{case}: not a .nii.gz or .nii file")
    try:
        image = read(case).image
    except CaseError as error:
        raise UsageError(f"{case}: {error}") from None
    turned = sitk.DICOMOrient(image, "LPS")
    copy = work / case.name
    if turned.GetDirection() == image.GetDirection():
        shutil.copyfile(case, copy)
    else:
        write_image(turned, copy)
    return copy, turned.GetSize()
