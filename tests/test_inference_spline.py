"""nnU-Net's resampling against SciPy, which nnU-Net uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from inference.nnunet.spline import Rule, resample, spline_matrix


def zoomed(volume: NDArray[Any], shape: tuple[int, ...], order: int) -> NDArray[Any]:
    """skimage.transform.resize(volume, shape, order, mode="edge", anti_aliasing=False)."""
    factors = [m / n for n, m in zip(volume.shape, shape, strict=True)]
    found = ndimage.zoom(volume, factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(found, volume.min(), volume.max()) if order > 1 else found


@given(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.integers(1, 20)] * 3),
    st.integers(0, 5),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_as_scipy_zooms(shape: Any, new: Any, order: int, seed: int) -> None:
    volume = np.random.default_rng(seed).normal(0, 100, shape)
    found = resample(volume, new, Rule(order), threads=2)
    assert np.allclose(found, zoomed(volume, new, order), atol=2e-3)


def test_of_a_real_size() -> None:
    volume = np.random.default_rng(0).normal(0, 300, (40, 130, 4))
    found = resample(volume, (97, 61, 4), Rule(3))
    assert np.allclose(found, zoomed(volume, (97, 61, 4), 3), atol=5e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_coarse_axis_on_its_own(axis: int) -> None:
    volume = np.random.default_rng(0).normal(0, 100, (9, 10, 11))
    new = [15, 14, 7]
    found = resample(volume, new, Rule(3, 0), axis)
    slices = np.moveaxis(volume, axis, 0)
    flat = [m for a, m in enumerate(new) if a != axis]
    plain = np.stack([zoomed(plane, tuple(flat), 3) for plane in slices])
    n, m = len(plain), new[axis]
    at = np.meshgrid(
        (np.arange(m) + 0.5) * n / m - 0.5, *(np.arange(k) for k in flat), indexing="ij"
    )
    expected = ndimage.map_coordinates(plain, np.array(at), order=0, mode="nearest")
    assert np.allclose(np.moveaxis(found, axis, 0), expected, atol=2e-3)


def test_same_shape_is_left_alone() -> None:
    volume = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    assert resample(volume, (3, 4, 5), Rule(3)) is volume


def test_rows_sum_to_one() -> None:
    assert np.allclose(spline_matrix(31, 50, 3).sum(axis=1), 1)


@pytest.mark.parametrize(
    ("rule", "spacing", "new", "axis"),
    [
        (Rule(), (5.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        (Rule(), (1.0, 1.0, 1.0), (1.0, 1.0, 4.0), 2),
        (Rule(), (3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),  # not more than 3 times
        (Rule(), (1.0, 5.0, 5.0), (1.0, 1.0, 1.0), None),  # two coarse axes
        (Rule(separate=False), (9.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
        (Rule(separate=True), (1.0, 1.1, 1.0), (9.0, 1.0, 1.0), 1),
        (Rule(separate=True), (1.0, 1.0, 1.0), (9.0, 1.0, 1.0), None),
        (Rule(threshold=2.0), (3.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
    ],
)
def test_which_axis_is_coarse(rule: Rule, spacing: Any, new: Any, axis: int | None) -> None:
    assert rule.separate_axis(spacing, new) == axis


def test_orders() -> None:
    with pytest.raises(ValueError, match="not a whole number from 0 to 5"):
        Rule(order=6)
