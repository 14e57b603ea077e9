"""Writing files so that they are there whole or not at all, and replace no CT."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os.path import realpath
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.errors import CaseError, UsageError
from inference.file_names import ending
from inference.paths import is_unicode
from inference.read.file import Scan
from inference.read.itk_noise import without_noise
from inference.read.nifti_header import Header, data_type
from inference.read.nifti_voxels import write_labels
from inference.read.text_header import is_text_header


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name beside it, and rename it when it is complete.

    On any error, Ctrl-C and termination included, the temporary file is removed; what was at
    ``path`` before stays.

    Args:
        path: the file that shall appear.

    Yields:
        The temporary path, with the same ending.
    """
    # Hidden, so that nobody takes it for a result, and no other's: in containers all have the same
    # process number. Of the name the ending alone: ITK makes x.nii.gz of x.nii.nii.gz.
    suffix = ending(path) or path.suffix
    temporary = path.with_name(f".{os.urandom(8).hex()}.partial{suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what `appearing` could not, where a process was killed or the power failed.

    To be called only while nobody else writes there.

    Args:
        folder: is looked at itself, not its subfolders.
    """
    for path in folder.glob(".*.partial*"):
        if re.fullmatch(r"\.[0-9a-f]{16}\.partial.*", path.name):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file; where a link is in its place, what that names is written.

    Args:
        path: the file.
        text: what it shall hold; of file names in it, bytes that are not UTF-8 are spelt out.
    """
    # Not resolve(), which raises where a link leads to itself.
    with appearing(Path(realpath(path))) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def make_folder(folder: Path) -> None:
    """Make a folder for outputs and see that files can be written there.

    Raises:
        UsageError: it is a file, cannot be made, or cannot be written.
    """
    probe = folder / f".{os.urandom(8).hex()}.partial"
    if not is_unicode(folder):
        raise UsageError(f"{folder}: its name is not UTF-8")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except FileExistsError:
        raise UsageError(f"{folder}: is a file, not a folder") from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None


def check_replaceable(path: Path) -> None:
    """See that labels written there replace nothing, or labels: never a CT of the same name.

    Raises:
        CaseError: an image lies there whose voxels are no labels (uint8), or a file that nobody
            can look into.
    """
    if not path.is_file():
        return
    try:
        kind = _other_than_labels(path)
    except OSError as error:
        kind = f"cannot be read: {error.strerror}"
    if kind:
        raise CaseError(
            f"its labels would replace {path}, which holds no labels ({kind}); choose another"
            " output folder"
        )


def _other_than_labels(path: Path) -> str:
    """What an image's voxels are if they are no labels; empty for labels, and for no image.

    Raises:
        OSError: the file cannot be read.
    """
    # Not by ITK, which reads neither NIfTI-2 nor impossible axes.
    if (kind := data_type(path)) is not None:
        return "" if kind == "uint8" else kind
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with without_noise():
            reader.ReadImageInformation()
    except RuntimeError:
        return "a header that cannot be read" if is_text_header(path) else ""
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    return "" if reader.GetPixelID() == sitk.sitkUInt8 else kind


def write(path: Path, labels: NDArray[np.uint8], scan: Scan, threads: int = 1) -> None:
    """Write labels on exactly the grid of the CT they belong to.

    Args:
        path: where to; the ending gives the format. An existing file is replaced.
        labels: uint8 array (z, y, x), as the CT is stored.
        scan: the CT.
        threads: how many threads compress.

    Raises:
        CaseError: the file cannot be written; the message does not name the CT.
    """
    try:
        with appearing(path) as temporary:
            if scan.header is not None:
                _write_nifti(temporary, labels, scan.header, ending(path) == ".nii.gz", threads)
            else:
                image = sitk.GetImageFromArray(labels)
                image.CopyInformation(scan.image)
                write_image(image, temporary)
    except OSError as error:
        raise CaseError(f"labels cannot be written to {path} ({error.strerror})") from None


def write_image(image: sitk.Image, path: Path, compression: int = 1) -> None:
    """Write an image by ITK, and see that it is there: of a full disk ITK says nothing.

    Args:
        image: of any kind.
        path: where to; the ending gives the format.
        compression: its level; -1 for ITK's usual one.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with without_noise():
            sitk.WriteImage(image, str(path), True, compression)
            there = sitk.ReadImage(str(path))
        wanted, found = sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(there)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if "Reason:" in line]
        reason = lines[0].removeprefix("Reason: ") if lines else "is the disk full?"
        raise OSError(errno.EIO, reason) from None
    if not np.array_equal(wanted, found, equal_nan=wanted.dtype.kind == "f"):
        raise OSError(errno.ENOSPC, "is the disk full?")


def _write_nifti(
    path: Path, labels: NDArray[np.uint8], header: Header, compress: bool, threads: int
) -> None:
    with path.open("wb") as file:
        write_labels(file, header, labels, compress, threads)
