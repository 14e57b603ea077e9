"""What a header says of where the voxels lie, and what it leaves open, which is said."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import meta, nifti, nrrd, volume
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference.read.file import read
from inference.read.nifti_header import Header

# Where the header has the codes of qform and sform, and sform's first row.
CODES, ROW_X = 252, 280


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, None),
        ({CODES: struct.pack("<2h", 0, 0)}, "does not say where right and left are"),
        ({ROW_X: struct.pack("<f", 1.5)}, "its qform does not say"),  # was -1.5: mirrored
        ({ROW_X: struct.pack("<f", -0.75)}, "its sform does not say"),  # half of pixdim
        ({ROW_X: struct.pack("<f", 1.5), CODES + 2: struct.pack("<h", 0)}, None),  # not used
        ({ROW_X + 12: struct.pack("<f", 30.9)}, None),  # less than a voxel from 30.5
    ],
)
def test_what_the_header_leaves_open_is_said(
    tmp_path: Path, compress: bool, changes: dict[int, bytes], warning: str | None
) -> None:
    path = tmp_path / ("a.nii.gz" if compress else "a.nii")
    nifti(changes, compress)(path)
    warnings = read(path).warnings
    assert len(warnings) == (warning is not None)
    if warning is not None:
        assert warning in warnings[0]


@given(
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5)] * 3),
    mirrored=st.booleans(),
)
@example(turn=(0.0, 180.0, 2.5), spacing=(1.0, 1.0, 1.0), mirrored=False)
@settings(max_examples=25, deadline=None)
def test_the_qform_is_nibabels(
    turn: tuple[float, ...], spacing: tuple[float, ...], mirrored: bool
) -> None:
    """Whatever the orientation; nibabel reads the same bytes."""
    nibabel = pytest.importorskip("nibabel", reason="the evaluation extra is not installed")
    rotation = sitk.Euler3DTransform((0, 0, 0), *np.deg2rad(turn).tolist(), (0, 0, 0))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(rotation.GetMatrix(), (3, 3)) * spacing
    affine[:3, 2] *= -1 if mirrored else 1
    affine[:3, 3] = 7, -8, 9
    header = nibabel.Nifti1Header()
    header.set_data_shape((3, 4, 5))
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    forms = Header(header.binaryblock, "<", compressed=False).forms
    # Near half turns float32 tells quaternions apart to 1e-3 at best.
    np.testing.assert_allclose(forms["qform"], header.get_qform(), atol=1e-2)
    np.testing.assert_allclose(forms["sform"], affine, atol=1e-4)
    assert Header(header.binaryblock, "<", compressed=False).doubt(affine) is None


@pytest.mark.parametrize("suffix", [".mhd", ".nii"])
def test_axes_that_are_not_perpendicular_are_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".mhd":
        meta("1 1 1", "1 0 0 0.3 1 0 0 0 1")(path)
    else:
        nifti({284: struct.pack("<f", 0.3), CODES: struct.pack("<h", 0)}, compress=False)(path)
    assert "not perpendicular" in read(path).warnings[0]


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
@pytest.mark.parametrize("compress", [True, False])
def test_an_intercept_without_a_slope_is_none(tmp_path: Path, compress: bool, slope: float) -> None:
    """A slope of 0 means that values are not scaled (NIfTI-1), whatever the intercept."""
    path = tmp_path / ("a.nii.gz" if compress else "a.nii")
    nifti({112: struct.pack("<ff", slope, -1024)}, compress)(path)
    assert (sitk.GetArrayFromImage(read(path).image) == sitk.GetArrayFromImage(volume())).all()


@pytest.mark.parametrize("name", ["a.nrrd", "a.mhd", "a.mha"])
def test_without_directions_right_and_left_are_in_doubt(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sitk.WriteImage(volume(), path)
    assert read(path).warnings == ()
    if name == "a.nrrd":
        nrrd("spacings: 1 1 1")(path)
    else:
        spoilt, times = re.subn(rb"TransformMatrix = [^\n]*\n", b"", path.read_bytes())
        assert times == 1
        path.write_bytes(spoilt)
    (warning,) = read(path).warnings
    assert "right and left" in warning


def test_sheared_axes_are_taken_with_a_warning(tmp_path: Path) -> None:
    rows = struct.pack("<12f", 1.5, 0.4, 0, 0, 0, 1.4, 0, 0, 0, 0, 2.5, 0)
    nifti({252: struct.pack("<h", 0), 280: rows})(tmp_path / "a.nii.gz")
    assert "not perpendicular" in read(tmp_path / "a.nii.gz").warnings[0]
