"""Voxels that are no CT's are refused or warned of; HU + 1024 become HU."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import volume
from tiny_model import make_ct

from inference.errors import CaseError
from inference.read.checks import Intensities, check_intensities


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused(bad: float) -> None:
    values = np.zeros((4, 5, 6), np.float32)
    values[0] = -1000
    values[2, 3, 4] = bad
    with pytest.raises(CaseError, match="NaN or infinite"):
        check_intensities(values)


def test_constant_volumes_are_refused() -> None:
    with pytest.raises(CaseError, match="constant: every voxel is -1000"):
        check_intensities(np.full((4, 5, 6), -1000, np.int16))


def test_hu_are_taken_as_they_are() -> None:
    found = check_intensities(sitk.GetArrayFromImage(volume()))
    assert found.offset == 0
    assert found.warnings == ()


def test_hu_plus_1024_are_shifted() -> None:
    stored = (sitk.GetArrayFromImage(make_ct()) + 1030).astype(np.uint16)
    stored[0, 0, 0] = 4095
    found = check_intensities(stored)
    assert found.offset == -1024
    assert "look like HU + 1024" in found.warnings[0]


@pytest.mark.parametrize("outlier", [-1, -1024, -2000, 32767])
def test_one_voxel_does_not_hide_that_hu_are_shifted(outlier: int) -> None:
    stored = sitk.GetArrayFromImage(make_ct()).astype(np.int32) + 1024
    stored[0, 0, 0] = outlier  # padding, overshoot of a spline, metal
    assert check_intensities(stored).offset == -1024


def test_dense_bone_does_not_make_hu_shifted() -> None:
    hu = sitk.GetArrayFromImage(make_ct()).astype(np.int16)
    rng = np.random.default_rng(0)
    hu[...] = rng.choice([-1000, -100, 40, 1000], hu.shape, p=[0.5, 0.1, 0.33, 0.07])
    assert check_intensities(hu) == Intensities()


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 1), (-3, 8), (0, 1500)])
def test_values_that_are_not_hu_get_a_warning(low: float, high: float) -> None:
    hu = sitk.GetArrayFromImage(make_ct()).astype(np.float32)
    values = np.clip(hu, low, high) if high > 1000 else (hu + 1000) / 1400 * (high - low) + low
    values[0, 0, :2] = low, high
    found = check_intensities(values)
    assert found.offset == 0
    assert "do not look like HU" in found.warnings[0]
