"""Labels without full-size logits, against interpolating all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from inference.labels.decode import decode
from inference.network.winners import winners

Array = NDArray[Any]


def brute_force(logits: Array, shape: tuple[int, ...]) -> Array:
    """Upsample every channel with SciPy, take the largest."""
    axes = [
        np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        for n, m in zip(logits.shape[1:], shape, strict=True)
    ]
    at = np.meshgrid(*axes, indexing="ij")
    full = [ndimage.map_coordinates(c.astype(float), at, order=1, mode="nearest") for c in logits]
    return np.argmax(full, axis=0).astype(np.uint8)


def rough(rng: np.random.Generator, channels: int, shape: tuple[int, ...]) -> Array:
    return rng.normal(size=(channels, *shape)).astype(np.float32)


def smooth(rng: np.random.Generator, channels: int, shape: tuple[int, ...]) -> Array:
    """Blobs like those of a network: one background, organs of several voxels."""
    noise = rough(rng, channels, shape)
    blurred = np.stack([ndimage.gaussian_filter(c, 2.5) for c in noise])
    blurred *= 8 / blurred.std()
    blurred[0] += 4
    return blurred.astype(np.float32)


def labels_of(logits: Array, shape: tuple[int, ...], threads: int = 2) -> Array:
    out = np.full(shape, 255, np.uint8)  # every voxel must be written
    decode(logits, range(logits.shape[0]), out, threads)
    return out


@pytest.mark.parametrize("make", [rough, smooth])
@pytest.mark.parametrize(
    ("grid", "shape"),
    [
        ((12, 20, 24), (31, 61, 75)),  # finer
        ((24, 31, 28), (11, 13, 9)),  # coarser
        ((12, 31, 17), (40, 14, 17)),  # finer, coarser, the same
        ((10, 12, 11), (10, 12, 11)),
        ((1, 9, 8), (5, 20, 21)),
        ((6, 1, 1), (9, 7, 8)),
        ((7, 9, 8), (1, 20, 21)),
    ],
)
def test_equals_upsampling_everything(
    make: Any, grid: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(5)
    logits = make(rng, 14, grid)
    assert np.mean(labels_of(logits, shape) == brute_force(logits, shape)) >= 0.9999


@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(1, 25)] * 3),
    st.integers(2, 6),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_equals_upsampling_everything_at_any_size(
    grid: tuple[int, ...], shape: tuple[int, ...], channels: int, seed: int
) -> None:
    # Rounding in float32 may turn a near tie around.
    logits = rough(np.random.default_rng(seed), channels, grid)
    different = labels_of(logits, shape) != brute_force(logits, shape)
    assert np.count_nonzero(different) <= np.prod(shape) * 1e-4


def test_first_channel_wins_a_tie() -> None:
    logits = np.zeros((3, 2, 3, 4), np.float32)
    assert not labels_of(logits, (5, 6, 7)).any()
    logits[0] = -1
    assert (labels_of(logits, (5, 6, 7)) == 1).all()


def test_channels_become_label_values() -> None:
    logits = np.zeros((3, 1, 1, 2), np.float32)
    logits[1, ..., 0] = logits[2, ..., 1] = 9
    out = np.zeros((1, 1, 4), np.uint8)
    decode(logits, (0, 5, 13), out)
    assert out.tolist() == [[[5, 5, 13, 13]]]


def test_writes_into_a_turned_view() -> None:
    logits = smooth(np.random.default_rng(2), 5, (8, 9, 10))
    stored = np.zeros((30, 17, 22), np.uint8)
    view = stored.transpose(1, 2, 0)[::-1, :, ::-1]
    decode(logits, range(5), view, threads=2)
    assert np.array_equal(view, labels_of(logits, view.shape))


def test_threads_and_half_precision_do_not_matter() -> None:
    logits = smooth(np.random.default_rng(3), 6, (9, 12, 13))
    half = logits.astype(np.float16)
    one = labels_of(half, (20, 33, 35), threads=1)
    assert np.array_equal(one, labels_of(half, (20, 33, 35), threads=4))
    assert np.array_equal(one, labels_of(half.astype(np.float32), (20, 33, 35)))


def test_progress_reaches_the_end() -> None:
    shares: list[float] = []
    decode(
        np.zeros((2, 2, 2, 2), np.float32), (0, 1), np.zeros((5, 2, 2), np.uint8), 1, shares.append
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_winners_is_argmax() -> None:
    logits = np.random.default_rng(4).integers(0, 4, (7, 5, 6)).astype(np.float32)  # many ties
    assert np.array_equal(winners(logits), logits.argmax(axis=0))
