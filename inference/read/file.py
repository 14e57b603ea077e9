"""Reading a CT from a file, and finding out what is wrong with that."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.errors import CaseError, last_line
from inference.file_names import ENDINGS, ending
from inference.paths import is_there, is_unicode
from inference.read.checks import check_geometry, check_kind, check_room, check_spacing
from inference.read.itk_noise import without_noise
from inference.read.nifti_header import NO_ORIENTATION, Header
from inference.read.nifti_voxels import check_complete, check_possible, inflate
from inference.read.text_header import TextHeader

Watch = Callable[[sitk.Image, int], None]
"""Is called while a file is read, with the image and how many of its slices are there."""

_NO_SPACING = "its header does not say how large its voxels are; taken as 1 mm along every axis"
_NO_IMAGE = "is not an image, whatever its name says"
_READERS = {
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
}


@dataclass(frozen=True)
class Scan:
    """A CT as it was read.

    Attributes:
        image: the volume.
        header: the file's header, if it is NIfTI.
        warnings: what a user should know about the file.
    """

    image: sitk.Image
    header: Header | None = None
    warnings: tuple[str, ...] = ()


def read(path: Path, watch: Watch | None = None) -> Scan:
    """Read a CT from a file.

    Plain ``.nii.gz`` is inflated here, straight into the image; everything else is ITK's.

    Args:
        path: a file in one of the formats of `ENDINGS`.
        watch: is called with what there is so far, where that can be told.

    Raises:
        CaseError: it cannot be read, is damaged or truncated, is not one scalar volume, or has
            a spacing that is not positive. The message does not name the file.
    """
    if not is_unicode(path):
        raise CaseError("has a name that is not UTF-8; rename it")
    if path.is_symlink() and not is_there(path):
        raise CaseError(f"is a link to {path.readlink()}, which is not there or cannot be reached")
    try:
        header, text = _headers(path)
        reader = _begin(path, header)
        image = _inflated(path, header, reader, watch)
        if image is None:
            image = _read_by_itk(path, header, text, reader)
    except OSError as error:
        raise CaseError(f"cannot be read ({error.strerror})") from None
    except RuntimeError as error:
        raise CaseError(_reason(error)) from None
    while image.GetDimension() > 3:  # one volume, or it would have been refused above
        image = image[(slice(None),) * (image.GetDimension() - 1) + (0,)]
    check_geometry(image)
    return Scan(image, header, tuple(_doubts(image, header, text, reader)))


def _headers(path: Path) -> tuple[Header | None, TextHeader | None]:
    """A file's header, NIfTI's or a text header, if ITK will not stumble over it.

    Raises:
        CaseError: it would.
        OSError: the file cannot be read.
    """
    if ending(path) in (".nii", ".nii.gz"):
        header = Header.read(path)
        check_spacing(header.spacing, len(header.shape))
        _check_header(path, header)
        return header, None
    text = TextHeader.read(path)
    _check_text(path.parent, text)
    return None, text


def _begin(path: Path, header: Header | None) -> sitk.ImageFileReader:
    """ITK's reader of a file, which has read what the image is like.

    Raises:
        CaseError: ITK cannot read it, or it is not one scalar volume.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if not path.name.endswith(ENDINGS):  # ITK looks at the case of a name
        reader.SetImageIO(_READERS[ending(path) or ".nii"])
    with without_noise():
        # ITK then repairs axes that are not quite perpendicular instead of refusing them.
        os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] = "1"
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            reason = _reason(error)
            if header is not None and header.compressed and reason == _NO_IMAGE:
                reason = "is damaged or truncated"  # its header was read before
            raise CaseError(reason) from None
    check_kind(reader.GetSize(), reader.GetNumberOfComponents())
    return reader


def _read_by_itk(
    path: Path, header: Header | None, text: TextHeader | None, reader: sitk.ImageFileReader
) -> sitk.Image:
    """The image of any file, checked for what ITK does not notice.

    Raises:
        CaseError: the file is truncated or damaged, or too large for the memory there is.
        OSError: it cannot be read.
        RuntimeError: ITK cannot.
    """
    check_room(reader.GetSize(), reader.GetPixelID())
    _check_beside(path)
    if text is not None:
        text.check_packed(path)
    with without_noise() as noise:
        image = reader.Execute()
    if any("Uncompress failed" in line for line in noise):
        raise CaseError("is damaged (its compressed voxels cannot be inflated)")
    if header is not None:
        check_complete(path, header, sitk.GetArrayViewFromImage(image))
        if intercept := header.intercept_not_used:  # ITK adds it all the same
            image = image - intercept
    return image


def _doubts(
    image: sitk.Image, header: Header | None, text: TextHeader | None, reader: sitk.ImageFileReader
) -> Iterator[str]:
    """What a user should know about where the file says that its voxels lie."""
    corrected = "ITK_sform_corrected"
    if not _is_perpendicular(image) or (
        reader.HasMetaDataKey(corrected) and reader.GetMetaData(corrected) == "YES"
    ):
        yield "its axes are not perpendicular; taken as if they were"
    elif header is not None and (doubt := header.doubt(affine_of(image))):
        yield doubt
    if text is not None and not text.has_spacing:
        yield _NO_SPACING
    if text is not None and not text.has_directions:
        yield NO_ORIENTATION


def affine_of(image: sitk.Image) -> NDArray[np.float64]:
    """The matrix (4, 4) from voxel (x, y, z) to position in NIfTI's axes (RAS), in mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _is_perpendicular(image: sitk.Image) -> bool:
    direction = np.reshape(image.GetDirection(), (3, 3))
    return bool(np.allclose(direction @ direction.T, np.eye(3), atol=1e-3))


def _inflated(
    path: Path, header: Header | None, reader: sitk.ImageFileReader, watch: Watch | None
) -> sitk.Image | None:
    """The image of a ``.nii.gz`` file whose voxels need nothing but to be inflated.

    Args:
        path: the file.
        header: its header; ``None`` if it is not NIfTI.
        reader: has read the image's information; what ITK makes of the header holds.
        watch: is called after some slices, now and then.

    Returns:
        ``None`` for any other file: ITK has to read it.

    Raises:
        CaseError: the file is truncated or damaged, or too large for the memory there is.
        OSError: it cannot be read.
        RuntimeError: ITK has not enough memory.
    """
    if header is None or not header.compressed or not header.plain:
        return None
    if header.shape != reader.GetSize():
        return None
    check_possible(path, header)
    check_room(reader.GetSize(), reader.GetPixelID())
    image = sitk.Image(reader.GetSize(), reader.GetPixelID())
    image.SetSpacing(reader.GetSpacing())
    image.SetOrigin(reader.GetOrigin())
    image.SetDirection(reader.GetDirection())
    voxels = writable(image)
    if header.voxels_at + voxels.nbytes != header.bytes_needed:
        return None
    slice_bytes = max(1, voxels.nbytes // voxels.shape[0])

    def told(there: int) -> None:
        if watch is not None:
            watch(image, there // slice_bytes)

    return image if inflate(path, header, voxels.data.cast("B"), told) else None


def writable(image: sitk.Image) -> NDArray[Any]:
    """The voxels (z, y, x) of an image that nobody else has yet, to be filled.

    SimpleITK lends its memory to be read only. The array lives no longer than the image.
    """
    view = sitk.GetArrayViewFromImage(image)
    memory = (ctypes.c_ubyte * view.nbytes).from_address(view.__array_interface__["data"][0])
    return np.frombuffer(memoryview(memory), view.dtype).reshape(view.shape)


def _check_header(path: Path, header: Header) -> None:
    """Raise CaseError for a NIfTI file whose axes or name keep ITK from reading it."""
    if not all(np.isfinite(form).all() for form in header.forms.values()):
        raise CaseError("has impossible axis directions")
    suffix = path.name[-len(ending(path) or "") :]
    if suffix not in (suffix.lower(), suffix.upper()):
        raise CaseError(f"ends in {suffix}; rename it so that it ends in {suffix.lower()}")
    if not header.is_known:
        raise CaseError(f"has voxels of NIfTI data type {header.get('datatype')[0]}, not numbers")
    if header.compressed and not suffix.lower().endswith(".gz"):
        raise CaseError(f"is compressed; rename it so that it ends in {suffix}.gz")


def _check_beside(path: Path) -> None:
    """Raise CaseError for X.nii.gz where X.nii lies beside it, whose voxels ITK would take."""
    other = path.with_name(path.name[: -len(".gz")])
    if ending(path) == ".nii.gz" and is_there(other):
        raise CaseError(f"cannot be read while {other.name} lies beside it; rename one of them")


def _check_text(folder: Path, header: TextHeader) -> None:
    """Raise CaseError for what ITK takes in silence, or refuses without naming what is missing."""
    if header.voxel_file and not is_there(folder / header.voxel_file):
        raise CaseError(f"lacks its voxels: {header.voxel_file} is not there")
    if header.spacing:
        check_spacing(header.spacing, len(header.spacing))


def _reason(error: RuntimeError) -> str:
    """What a SimpleITK exception means, in a few words."""
    message = str(error)
    for sign, meaning in {
        "Unable to determine ImageIO reader": _NO_IMAGE,
        "File cannot be read": "cannot be read, perhaps damaged or truncated",
        "orthonormal": "has axes that are not perpendicular",
        "Zero-valued spacing": "has a spacing of 0 mm",
        "determinant is 0": "has impossible axis directions",
        "allocate memory": "is too large for the memory there is",
        "bad alloc": "is too large for the memory there is",
        "bad_alloc": "is too large for the memory there is",
    }.items():
        if sign in message:
            return meaning
    return f"cannot be read, perhaps damaged or truncated ({last_line(error)})"
