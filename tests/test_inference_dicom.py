"""DICOM series, written slice by slice with pydicom: what is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import edit, moved, put, save, slice_of, slices_in
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from tiny_model import make_ct

from inference.cases import find_cases
from inference.cli import main
from inference.dicom.read import read_series
from inference.dicom.series import find_series


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    step=st.sampled_from([0.6, 1.0, 2.5, 5.0]),
    signed=st.booleans(),
    rescale=st.sampled_from([(1, -1024), (1, 0), (2, -8192), (0.5, -100)]),
    syntax=st.sampled_from(
        [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]
    ),
    order=st.permutations(range(5)),
)
def test_any_stack_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, float, float],
    step: float,
    signed: bool,
    rescale: tuple[float, float],
    syntax: UID,
    order: list[int],
) -> None:
    """Voxels in HU, and each voxel's place, in whatever order and encoding the slices come."""
    rng = np.random.default_rng(order)
    # Blocks: of a slice of 6 x 7 pixels of noise GDCM refused what run lengths made of it.
    stored = rng.integers(0, 4096, (5, 6, 7)).repeat(6, 1).repeat(6, 2)
    stored = stored.astype(np.int16 if signed else np.uint16)
    turn = sitk.Euler3DTransform((0, 0, 0), *angles)
    direction = np.reshape(turn.GetMatrix(), (3, 3))
    origin = rng.uniform(-300, 300, 3)
    folder = tmp_path_factory.mktemp("series")
    for name, index in enumerate(order):
        place = origin + direction[:, 2] * step * index
        slope, intercept = rescale
        data = slice_of(
            stored[index], place, direction[:, :2].T, RescaleSlope=slope, RescaleIntercept=intercept
        )
        save(data, folder / f"{name}.dcm", syntax)
    (series,) = find_series(folder)
    scan = read_series(series.slices)
    image = scan.image
    assert scan.warnings == () and image.GetSize() == (42, 36, 5)
    assert image.GetSpacing() == pytest.approx((1.5, 0.75, step), abs=1e-4)
    assert np.allclose(image.GetOrigin(), origin, atol=1e-4)
    assert np.allclose(np.reshape(image.GetDirection(), (3, 3)), direction, atol=1e-5)
    expected = stored.astype(np.float64) * rescale[0] + rescale[1]
    assert np.array_equal(sitk.GetArrayFromImage(image), expected)
    whole = isinstance(rescale[0], int)
    assert image.GetPixelID() == (sitk.sitkInt16 if whole else sitk.sitkFloat32)


def test_it_is_what_simpleitk_reads(tmp_path: Path) -> None:
    put(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    theirs = reader.Execute()
    (series,) = find_series(tmp_path)
    ours = read_series(series.slices).image
    assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    for image in (ours, theirs):
        assert image.GetSpacing() == pytest.approx(make_ct().GetSpacing())
        assert image.GetOrigin() == pytest.approx(make_ct().GetOrigin(), abs=1e-4)
        assert image.GetDirection() == pytest.approx(make_ct().GetDirection())


def test_values_beyond_int16_are_cut_off(tmp_path: Path) -> None:
    """Wrapped around, metal of 40,000 HU would be less than air."""
    planes = np.array([[0, 1024], [3000, 65535]], np.uint16)
    for index in range(3):
        save(slice_of(planes, (0, 0, index), np.eye(3)[:2]), tmp_path / f"{index}.dcm")
    voxels = sitk.GetArrayFromImage(read_series(slices_in(tmp_path)).image)
    assert voxels.dtype == np.int16
    assert (voxels == [[-1024, 0], [1976, 32767]]).all()


def test_roughly_rounded_axes_are_taken_with_a_warning(tmp_path: Path) -> None:
    for path in put(tmp_path):
        edit(path, ImageOrientationPatient=[0.97, 0.26, 0, -0.25, 0.97, 0])
    scan = read_series(slices_in(tmp_path))
    direction = np.reshape(scan.image.GetDirection(), (3, 3))
    assert np.allclose(direction @ direction.T, np.eye(3))
    assert any("not perpendicular" in warning for warning in scan.warnings)


def test_slices_that_are_a_little_uneven_are_taken_with_a_warning(tmp_path: Path) -> None:
    paths = put(tmp_path)
    moved(paths[3], 0, 0, 0.2 * make_ct().GetSpacing()[2])
    scan = read_series(slices_in(tmp_path))
    assert len(scan.warnings) == 1 and "mm apart; taken as" in scan.warnings[0]
    assert scan.image.GetSpacing() == pytest.approx(make_ct().GetSpacing())


def test_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    """As old archives have them; neither they nor their names say that they are DICOM."""
    for path in put(tmp_path):
        data = pydicom.dcmread(path)
        del data.file_meta
        data.preamble = None
        pydicom.dcmwrite(path, data, implicit_vr=True, little_endian=True)
    (case,) = find_cases(tmp_path, tmp_path.parent / "out")
    expected = sitk.GetArrayFromImage(make_ct())
    assert np.array_equal(sitk.GetArrayFromImage(case.read().image), expected)


def test_padding_is_air(tmp_path: Path) -> None:
    """Stored as the highest number, it would be metal all around the patient."""
    plane = np.array([[63536, 1024], [1100, 63536]], np.uint16)
    for index in range(3):
        data = slice_of(plane, (0, 0, index), np.eye(3)[:2])
        data.add_new("PixelPaddingValue", "US", 63536)
        save(data, tmp_path / str(index))
    voxels = sitk.GetArrayFromImage(read_series(slices_in(tmp_path)).image)
    assert (voxels == [[-1024, 0], [76, -1024]]).all()
    for path in tmp_path.iterdir():
        edit(path, RescaleIntercept=0)
    voxels = sitk.GetArrayFromImage(read_series(slices_in(tmp_path)).image)
    assert (voxels == [[-1024, 1024], [1100, -1024]]).all()


def test_labels_are_those_of_the_same_ct_in_one_file(tmp_path: Path, tiny_folder: Path) -> None:
    ct = make_ct()
    put(tmp_path / "series", ct)
    sitk.WriteImage(ct, tmp_path / "file.nii.gz")
    options = ["-o", str(tmp_path / "out"), "--model", str(tiny_folder), "--quiet", "--preview"]
    for name in ("series", "file.nii.gz"):
        assert main(["-i", str(tmp_path / name), *options]) == 0
    theirs, ours = (sitk.ReadImage(tmp_path / "out" / f"{n}.nii.gz") for n in ("file", "series"))
    assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    assert (sitk.GetArrayFromImage(ours) > 0).any()
    assert ours.GetSpacing() == pytest.approx(ct.GetSpacing())
    assert ours.GetOrigin() == pytest.approx(ct.GetOrigin(), abs=1e-4)
    assert ours.GetDirection() == pytest.approx(ct.GetDirection(), abs=1e-6)
    assert (tmp_path / "out" / "series_preview.png").is_file()
