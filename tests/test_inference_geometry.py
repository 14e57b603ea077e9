"""Labels lie on the CT's own grid, whichever way round it is stored."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_model import LEVELS, make_ct, make_tiny_model

import inference
from inference.cli import main
from inference.errors import CaseError
from inference.model import Model
from inference.preprocess.orientation import turn_to
from inference.preprocess.preprocess import preprocess

ALL_48 = [
    "".join(letters) for axes in permutations(("LR", "PA", "SI")) for letters in product(*axes)
]


def geometry(image: sitk.Image) -> tuple[Any, ...]:
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


@pytest.fixture(scope="module")
def expected(tiny: Model) -> NDArray[np.uint8]:
    labels = inference.segment(make_ct(), tiny)
    return sitk.GetArrayFromImage(labels)


@pytest.mark.parametrize("orientation", ALL_48)
def test_every_orientation_is_the_same_patient(
    tiny: Model, expected: NDArray[np.uint8], orientation: str
) -> None:
    image = sitk.DICOMOrient(make_ct(), orientation)
    labels = inference.segment(image, tiny)
    assert labels.GetPixelID() == sitk.sitkUInt8
    assert geometry(labels) == geometry(image)
    assert set(np.unique(expected)) == {0, 1, 2, 3, 13}
    # SimpleITK's own reorientation brings them back.
    assert np.array_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(labels, "LPS")), expected)


@given(
    st.sampled_from(ALL_48),
    st.tuples(*[st.floats(-0.3, 0.3)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
)
@settings(max_examples=25, deadline=None)
def test_oblique_is_the_same_patient(
    tiny: Model,
    expected: NDArray[np.uint8],
    orientation: str,
    angles: tuple[float, float, float],
    origin: tuple[float, float, float],
) -> None:
    image = sitk.DICOMOrient(make_ct(), orientation)
    tilt = np.reshape(sitk.Euler3DTransform((0, 0, 0), *angles).GetMatrix(), (3, 3))
    straight = np.reshape(image.GetDirection(), (3, 3))
    image.SetDirection((tilt @ straight).ravel())
    image.SetOrigin(origin)
    labels = inference.segment(image, tiny)
    assert geometry(labels) == geometry(image)
    labels.SetDirection(straight.ravel())
    assert np.array_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(labels, "LPS")), expected)


@given(st.sampled_from(ALL_48), st.sampled_from(ALL_48))
@settings(max_examples=60, deadline=None)
def test_turning_agrees_with_simpleitk(stored: str, wanted: str) -> None:
    image = sitk.DICOMOrient(make_ct((9, 12, 14)), stored)
    turn = turn_to(image.GetDirection(), wanted)
    array = sitk.GetArrayFromImage(image)
    turned = sitk.DICOMOrient(image, wanted)
    assert np.array_equal(turn.apply(array), sitk.GetArrayFromImage(turned))
    empty = np.zeros_like(array)
    turn.apply(empty)[...] = turn.apply(array)
    assert np.array_equal(empty, array)
    assert turn.reorder(image.GetSpacing()[::-1]) == turned.GetSpacing()[::-1]


@pytest.mark.parametrize("wanted", ["LPX", "LLS", "LP"])
def test_impossible_orientations_are_refused(wanted: str) -> None:
    with pytest.raises(ValueError, match="orientation"):
        turn_to((1, 0, 0, 0, 1, 0, 0, 0, 1), wanted)


@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.floats(0.4, 8)] * 3),
)
@settings(max_examples=40, deadline=None)
def test_any_size_and_spacing(tiny: Model, shape: Any, spacing: Any) -> None:
    volume = np.random.default_rng(0).integers(-1000, 500, shape).astype(np.int16)
    volume.flat[0] = -1000
    if volume.size == 1:
        return
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing)
    if volume.min() == volume.max():
        with pytest.raises(CaseError, match="constant"):
            inference.segment(image, tiny)
        return
    labels = inference.segment(image, tiny)
    assert geometry(labels) == geometry(image)


def test_labels_are_where_the_organs_are(tmp_path: Path) -> None:
    """On the network's own grid and without smoothing, labels follow from each voxel's HU."""
    plan = make_tiny_model(tmp_path / "m", smooth=False, spacing=(None, None, None))
    image = make_ct()
    labels = sitk.GetArrayFromImage(inference.segment(image, tmp_path / "m"))
    volume = sitk.GetArrayFromImage(image)
    values = np.array([LEVELS[0], 0.0, *(LEVELS[v] for v in plan.label_values[1:])])
    nearest = np.abs(volume[..., None] - values).argmin(axis=-1)
    truth = np.array([0, *plan.label_values])[nearest]
    box = preprocess(volume, (2.5, 1.4, 1.5), plan).box
    outside = np.ones(volume.shape, bool)
    outside[box] = False
    assert not labels[outside].any()
    assert np.array_equal(labels[box], truth[box])


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_files_keep_their_exact_geometry(tmp_path: Path, tiny_folder: Path, suffix: str) -> None:
    image = make_ct()
    rng = np.random.default_rng(7)
    (tmp_path / "in").mkdir()
    for number in range(6):
        image.SetDirection(np.linalg.qr(rng.normal(size=(3, 3)))[0].ravel())
        image.SetSpacing(rng.uniform(0.5, 3, 3))
        image.SetOrigin(rng.uniform(-400, 400, 3))
        sitk.WriteImage(image, tmp_path / f"in/{number}{suffix}")
    arguments = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--model", str(tiny_folder), "--quiet"]) == 0
    for number in range(6):
        there = sitk.ReadImage(tmp_path / f"in/{number}{suffix}")
        labels = sitk.ReadImage(tmp_path / f"out/{number}{suffix}")
        assert labels.GetPixelID() == sitk.sitkUInt8
        if suffix == ".nrrd":  # ITK computes spacing and direction anew from their product
            assert labels.GetSize() == there.GetSize()
            for get in ("GetSpacing", "GetOrigin", "GetDirection"):
                found, wanted = getattr(labels, get)(), getattr(there, get)()
                assert np.allclose(found, wanted, rtol=1e-14, atol=1e-14)
        else:
            assert geometry(labels) == geometry(there)


def test_nifti_affines_are_kept_bit_for_bit(tmp_path: Path, tiny_folder: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(3)
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.5, 3, 3)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    data = sitk.GetArrayFromImage(make_ct()).T
    for kind, order in (("little", "<"), ("big", ">")):
        source = nibabel.Nifti1Image(data, affine, nibabel.Nifti1Header(endianness=order))
        source.set_sform(affine, code=2)
        source.set_qform(affine, code=0)
        nibabel.save(source, tmp_path / f"{kind}.nii.gz")
        arguments = ["-i", str(tmp_path / f"{kind}.nii.gz"), "-o", str(tmp_path / "out")]
        assert main([*arguments, "--model", str(tiny_folder)]) == 0
        before = nibabel.load(tmp_path / f"{kind}.nii.gz")
        after = nibabel.load(tmp_path / f"out/{kind}.nii.gz")
        assert after.header.endianness == before.header.endianness == order
        assert after.shape == before.shape
        assert np.array_equal(after.affine, before.affine)
        for field in ("pixdim", "qform_code", "sform_code", "xyzt_units"):
            assert np.array_equal(after.header[field], before.header[field]), field
        assert after.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(after.dataobj))) == {0, 1, 2, 3, 13}
