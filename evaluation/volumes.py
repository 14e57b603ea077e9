"""Label volumes as NIfTI stores them, and whether two of them lie on the same grid.

Read with nibabel and not with SimpleITK, since the challenge's rules speak of the stored array's
third axis and of the header's zooms.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError, UsageError

SUFFIXES = (".nii.gz", ".nii")

_ROUNDING = 1e-3
_CHUNK = 1 << 20


@dataclass(frozen=True)
class LabelVolume:
    """One label file.

    Attributes:
        path: the file.
        labels: uint8 array of shape (i, j, k) in the stored axis order.
        zooms: millimetres along i, j and k as the header has them (float32).
        affine: 4 x 4, voxel to millimetres (RAS).
    """

    path: Path
    labels: NDArray[np.uint8]
    zooms: tuple[float, ...]
    affine: NDArray[np.float64]


def shown(path: Path) -> str:
    """A file's name as text; bytes that are not UTF-8 are spelt out."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def stem(name: str) -> str:
    """A file's name without ``.nii.gz`` or ``.nii``."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def list_volumes(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder, by name (as `shown`) without suffix, sorted.

    Raises:
        UsageError: no such folder, it cannot be read, or a case lies there under both suffixes.
    """
    files = volumes_by_case(folder)
    for paths in files.values():
        if len(paths) > 1:
            raise UsageError(twice(paths))
    return {name: paths[0] for name, paths in files.items()}


def list_cts(folder: Path) -> dict[str, Path]:
    """The CTs of a folder by the names of their labels.

    ``X_0000.nii.gz`` is X's CT, unless ``X.nii.gz`` lies there too.

    Raises:
        UsageError: as `list_volumes`.
    """
    volumes = list_volumes(folder)
    return {name.removesuffix("_0000"): path for name, path in volumes.items()} | volumes


def twice(paths: Sequence[Path]) -> str:
    """What is said of a case's files where there are several."""
    return f"{paths[1]}: the case is there twice, as {shown(paths[0])} too"


def volumes_by_case(folder: Path) -> dict[str, list[Path]]:
    """The NIfTI files of a folder, by name (as `shown`) without suffix, sorted.

    Returns:
        One file of each name, or several where their suffixes differ.

    Raises:
        UsageError: no such folder, or it cannot be read.
    """
    try:
        paths = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder}: no such folder") from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror})") from None
    found: dict[str, list[Path]] = {}
    for path in paths:
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."):
            found.setdefault(stem(shown(path)), []).append(path)
    return found


def read_labels(
    path: Path, strict: bool = False, size: tuple[int, ...] | None = None
) -> LabelVolume:
    """Read a label file.

    Args:
        path: a ``.nii.gz`` or ``.nii`` file.
        strict: cast whatever is there to uint8, as the organisers' script does, instead of
            refusing values that are not labels.
        size: voxels (i, j, k) that it must have, if that is known: of any other its header alone
            is read, which may speak of more voxels than there is memory.

    Raises:
        CaseError: it cannot be read, is not 3D, has no numbers for voxels (but colours, say), or
            holds values that no label has.
        MemoryError: there is not enough memory for it.
    """
    try:
        with nibabel.imageglobals.LoggingOutputSuppressor():  # it does not name the file
            image = nibabel.load(path)
        if not isinstance(image, nibabel.spatialimages.SpatialImage):
            raise CaseError(f"{path}: not a volume")
        shape = tuple(image.shape) if strict else without_axes_of_one(image.shape)
        if len(shape) == 3 and size is not None:
            _refuse_other_size(path, shape, size)
        values = np.asanyarray(image.dataobj).reshape(shape)
        if not strict and path.name.lower().endswith(".gz"):
            _check_whole(path)
        affine = np.asarray(image.affine, np.float64)
        zooms = tuple(image.header.get_zooms())[: len(shape)]
    except FileNotFoundError:
        raise CaseError(f"{path}: no such file") from None
    except (CaseError, MemoryError):
        raise
    except Exception as error:  # gzip, zlib, nibabel and numpy each raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CaseError(f"{path}: cannot be read ({reason})") from None
    if values.ndim != 3:
        raise CaseError(f"{path}: not a 3D volume, its shape is {_text(values.shape)}")
    if not values.size:
        raise CaseError(f"{path}: has no voxels, its shape is {_text(values.shape)}")
    if values.dtype.kind not in "iubf":
        raise CaseError(f"{path}: its voxels are not numbers")
    if values.dtype != np.uint8:
        if not strict:
            _refuse_other_than_labels(path, values)
        with np.errstate(invalid="ignore"):
            values = values.astype(np.uint8)
    return LabelVolume(path, values, zooms, affine)


def without_axes_of_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes beyond the third that are of one, a time axis say."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _check_whole(path: Path) -> None:
    """Inflate a file to its end: nibabel stops at the last voxel, before gzip's checksum."""
    with gzip.open(path) as content:
        while content.read(_CHUNK):
            pass


def _refuse_other_than_labels(path: Path, values: NDArray[np.generic]) -> None:
    # A scale factor of the header may leave 2.0000001; a cast cuts, so 1.9999999 would be 1.
    if values.dtype.kind == "f":
        finite = np.isfinite(values).all()
        if not (finite and (values - np.floor(values) <= _ROUNDING).all()):
            raise CaseError(f"{path}: holds values that are not whole numbers, so not labels")
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        raise CaseError(f"{path}: holds values from {low} to {high}; labels are 0 to 255")


def check_header(volume: LabelVolume) -> None:
    """See that a volume's header says how large its voxels are and where they lie.

    Raises:
        CaseError: it does not.
    """
    if not all(np.isfinite(zoom) and zoom > 0 for zoom in volume.zooms):
        raise CaseError(f"{volume.path}: its header has a spacing of {_text(volume.zooms)} mm")
    if not np.isfinite(volume.affine).all() or not np.linalg.det(volume.affine[:3, :3]):
        raise CaseError(f"{volume.path}: its header does not say where its voxels lie")


def check_same_grid(
    reference: LabelVolume, prediction: LabelVolume, strict: bool = False
) -> str | None:
    """Whether two volumes have the same size, zooms and position.

    Args:
        reference: one volume.
        prediction: the other.
        strict: tell a difference in zooms or position instead of raising (the organisers'
            script never looks at the prediction's header).

    Returns:
        With ``strict``, one sentence about the difference; otherwise ``None``.

    Raises:
        CaseError: they differ; the message has the numbers.
    """
    _refuse_other_size(prediction.path, prediction.labels.shape, reference.labels.shape)
    problem = None
    if not np.allclose(reference.zooms, prediction.zooms, rtol=1e-4, atol=1e-4):
        problem = (
            f"{prediction.path}: spacing {_text(prediction.zooms)} mm, but the reference has "
            f"{_text(reference.zooms)} mm"
        )
    elif (
        shift := corner_shift(reference.affine, prediction.affine, reference.labels.shape)
    ) > 0.05 * min(reference.zooms):
        problem = (
            f"{prediction.path}: lies up to {shift:.4g} mm away from the reference (origin "
            f"{_text(prediction.affine[:3, 3])} mm against {_text(reference.affine[:3, 3])} mm, "
            f"first axis {_text(prediction.affine[:3, 0])} against "
            f"{_text(reference.affine[:3, 0])})"
        )
    if problem is not None and not strict:
        raise CaseError(problem)
    return problem


def _refuse_other_size(path: Path, size: tuple[int, ...], reference: tuple[int, ...]) -> None:
    if size != reference:
        raise CaseError(
            f"{path}: size {_text(size)} voxels, but the reference has {_text(reference)}"
        )


def corner_shift(
    first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]
) -> float:
    """The largest distance in mm between the same corner voxel of two grids.

    Args:
        first: affine (4, 4), voxel to millimetres.
        second: the other grid's.
        shape: voxels (i, j, k) of both.
    """
    ends = [(0, n - 1) for n in shape]
    corners = np.array([(i, j, k, 1) for i in ends[0] for j in ends[1] for k in ends[2]], float)
    offset = corners @ (first - second).T
    return float(np.sqrt((offset[:, :3] ** 2).sum(axis=1)).max())


def _text(values: object) -> str:
    return " x ".join(f"{float(v):.6g}" for v in np.asarray(values).ravel())
