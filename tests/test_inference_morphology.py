"""Opening and closing against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from inference.preprocess.morphology import closed, opened


@pytest.mark.parametrize("seed", range(8))
def test_opening_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 25, 3)) > rng.choice([0.05, 0.1, 0.2])
    ball = np.ones((3, 3, 3), bool)
    ball[::2, ::2, ::2] = False
    eroded = ndimage.binary_erosion(mask, ball, border_value=1)
    assert np.array_equal(opened(mask), ndimage.binary_dilation(eroded, ball))


@pytest.mark.parametrize("seed", range(8))
def test_closing_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 25, 3)) > rng.choice([0.5, 0.8, 0.95])
    expected = ndimage.binary_closing(np.pad(mask, 3), np.ones((3, 3, 3)))[3:-3, 3:-3, 3:-3]
    assert np.array_equal(closed(mask), expected)
