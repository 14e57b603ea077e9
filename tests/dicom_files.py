"""DICOM series for tests, written with pydicom: another program than the one that reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from tiny_model import make_ct

from inference.dicom.header import Slice, read_slices


def slice_of(
    plane: NDArray[np.integer],
    position: Iterable[float],
    axes: NDArray[np.float64],
    **changes: Any,
) -> Dataset:
    """A CT slice with stored values ``plane`` (rows, columns); ``changes`` are DICOM keywords."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
    data.StudyInstanceUID = data.SeriesInstanceUID = "1.2.3"
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SeriesNumber = 2
    data.ImagePositionPatient = [f"{value:.6f}"[:16] for value in position]
    data.ImageOrientationPatient = [f"{value:.9f}"[:16] for value in axes.ravel()]
    data.PixelSpacing = [0.75, 1.5]  # of rows, of columns
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = plane.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, int(plane.dtype.kind == "i")
    data.PixelData = plane.tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    return data


def save(data: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    if syntax == RLELossless:
        data.compress(RLELossless, generate_instance_uid=False)
    if syntax == ExplicitVRBigEndian:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    pydicom.dcmwrite(
        path, data, implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian, enforce_file_format=True,
    )  # fmt: skip
    return path


def put(folder: Path, image: sitk.Image | None = None, **changes: Any) -> list[Path]:
    """An axial CT in HU as slices of a folder, head first; returns the files in that order."""
    image = make_ct() if image is None else image
    voxels = sitk.GetArrayFromImage(image).astype(np.int16) + 1024
    spacing = image.GetSpacing()
    axes = np.reshape(image.GetDirection(), (3, 3))[:, :2].T
    paths = []
    for index in reversed(range(len(voxels))):
        place = image.TransformIndexToPhysicalPoint((0, 0, index))
        data = slice_of(voxels[index], place, axes, PixelSpacing=[spacing[1], spacing[0]])
        for name, value in changes.items():
            setattr(data, name, value)
        paths.append(save(data, folder / f"IM{index * 7919 % 1000:04d}"))
    return paths


RESCALING = "PixelValueTransformationSequence"


def groups_of(place: Iterable[float], axes: NDArray[np.float64], **pixels: Any) -> dict[str, Any]:
    """The functional groups of a frame, as DICOM keywords, each with its item's values."""
    return {
        "PlanePositionSequence": {"ImagePositionPatient": [f"{n:.6f}"[:16] for n in place]},
        "PlaneOrientationSequence": {
            "ImageOrientationPatient": [f"{n:.9f}"[:16] for n in axes.ravel()]
        },
        "PixelMeasuresSequence": {"PixelSpacing": [0.75, 1.5], "SliceThickness": 1, **pixels},
        RESCALING: {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"},
    }


def many_slices(
    planes: NDArray[np.integer],
    groups: Sequence[dict[str, Any]],
    shared: Collection[str] = (),
    **changes: Any,
) -> Dataset:
    """An enhanced CT with stored values ``planes`` (frames, rows, columns).

    Args:
        planes: of all frames.
        groups: of each frame, as of `groups_of`.
        shared: those of them that the first frame has for all.
        changes: DICOM keywords.
    """
    data = slice_of(planes[0], (0, 0, 0), np.eye(3)[:2], SOPClassUID=EnhancedCTImageStorage)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(data, name)
    del data.RescaleSlope, data.RescaleIntercept
    data.NumberOfFrames, data.PixelData = len(planes), planes.tobytes()
    data.SharedFunctionalGroupsSequence = Items([_sequences(groups[0], shared)])
    own = [_sequences(each, each.keys() - set(shared)) for each in groups]
    data.PerFrameFunctionalGroupsSequence = Items(own)
    for name, value in changes.items():
        setattr(data, name, value)
    return data


def _sequences(groups: dict[str, Any], wanted: Collection[str]) -> Dataset:
    data = Dataset()
    for name in sorted(wanted):
        item = Dataset()
        for keyword, value in groups[name].items():
            setattr(item, keyword, value)
        setattr(data, name, Items([item]))
    return data


def put_together(path: Path, image: sitk.Image | None = None, **changes: Any) -> Path:
    """An axial CT in HU as one file, head first."""
    image = make_ct() if image is None else image
    voxels = sitk.GetArrayFromImage(image).astype(np.int16) + 1024
    x, y, z = image.GetSpacing()
    axes = np.reshape(image.GetDirection(), (3, 3))[:, :2].T
    groups = [
        groups_of(
            image.TransformIndexToPhysicalPoint((0, 0, index)),
            axes,
            PixelSpacing=[y, x],
            SliceThickness=z,
        )
        for index in reversed(range(len(voxels)))
    ]
    data = many_slices(voxels[::-1], groups, groups[0].keys() - {"PlanePositionSequence"})
    for name, value in changes.items():
        setattr(data, name, value)
    return save(data, path)


def slices_in(folder: Path) -> list[Slice]:
    """What a folder's files say, by name."""
    return [one for path in sorted(folder.iterdir()) for one in read_slices(path)]


def edit(path: Path, **changes: Any) -> Path:
    """Change a file; ``changes`` are DICOM keywords."""
    data = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(data, name, value)
    data.save_as(path)
    return path


def moved(path: Path, *by: float) -> Path:
    """Move a slice along x, y and z, in mm."""
    place = pydicom.dcmread(path).ImagePositionPatient
    return edit(path, ImagePositionPatient=[a + b for a, b in zip(place, by, strict=True)])


def page(paths: list[Path], **changes: Any) -> Path:
    """A page of text in the series that it is about: no position, another size."""
    data = slice_of(np.zeros((4, 4), np.int16), (0, 0, 0), np.eye(3)[:2], **changes)
    del data.ImagePositionPatient
    return save(data, paths[0].with_name("page"))
