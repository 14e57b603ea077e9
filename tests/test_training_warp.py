"""Bending, turning, resampling and blurring volumes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from scipy import ndimage

from training.sampling.chance import Chance
from training.sampling.separable import blur, share_nearby, upsample
from training.sampling.warp import (
    random_places,
    regular_places,
    rotation,
    sample_linear,
    sample_nearest,
    turned_places,
)
from training.synthetic.isotropic import isotropic


def test_upsample_equals_torch() -> None:
    knots = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(
        knots[None], size=(7, 4, 11), mode="trilinear", align_corners=True
    )[0]
    assert torch.allclose(upsample(knots, (7, 4, 11)), expected, atol=1e-5)


def test_sampling_at_the_own_places_gives_the_volume_back() -> None:
    volume = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    places = regular_places(volume.shape, 2.5)
    assert torch.equal(sample_nearest(volume, places, 2.5, 0), volume)
    assert torch.allclose(sample_linear(volume[None], places, 2.5)[0], volume, atol=1e-4)
    assert (sample_nearest(volume, places + 100, 2.5, 7) == 7).all()


@pytest.mark.parametrize("spacing", [2.5, (3.0, 0.7, 1.3)])
def test_the_nearest_voxel_is_the_one_whose_box_holds_the_place(spacing: Any) -> None:
    rng = np.random.default_rng(2)
    volume = torch.from_numpy(rng.integers(0, 200, (4, 5, 6)).astype(np.uint8))
    places = torch.from_numpy(rng.uniform(-4, 18, (7, 3, 2, 3)).astype(np.float32))
    found = sample_nearest(volume, places, spacing, 255)
    steps = np.broadcast_to(spacing, 3)
    for at in np.ndindex(7, 3, 2):
        voxel = [math.floor(places[at][i].item() / steps[i]) for i in range(3)]
        inside = all(0 <= v < n for v, n in zip(voxel, volume.shape, strict=True))
        assert found[at] == (volume[tuple(voxel)] if inside else 255)


def test_a_turned_grid_is_the_matrix_product_about_its_middle() -> None:
    matrix = rotation([20, -35, 70]) * torch.tensor([1.1, 0.9, 1.3])
    centre = torch.tensor([40.0, -3.0, 8.0])
    shape, spacing = (4, 5, 6), (3.0, 1.5, 0.5)
    middle = torch.tensor([n * s / 2 for n, s in zip(shape, spacing, strict=True)])
    expected = (regular_places(shape, spacing) - middle) @ matrix + centre
    assert torch.allclose(turned_places(shape, spacing, matrix, centre), expected, atol=1e-5)


@pytest.mark.parametrize("sigmas", [(0.3, 0.8, 1.4), (0.05, 6.0, 0.6)])
def test_blur_is_a_gaussian_filter_with_continued_borders(sigmas: tuple[float, ...]) -> None:
    volume = np.random.default_rng(3).normal(size=(9, 12, 7)).astype(np.float32)
    expected = volume
    for axis, sigma in enumerate(sigmas):
        expected = ndimage.gaussian_filter1d(
            expected, sigma, axis=axis, mode="nearest", radius=max(1, round(3 * sigma))
        )
    assert np.allclose(blur(torch.from_numpy(volume), sigmas).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [3, 5, 13])
def test_the_share_nearby_is_a_mean_filter_with_continued_borders(size: int) -> None:
    mask = np.random.default_rng(4).random((9, 12, 7)) > 0.5
    expected = ndimage.uniform_filter(mask.astype(float), size, mode="nearest")
    assert np.allclose(share_nearby(torch.from_numpy(mask), size).numpy(), expected, atol=1e-6)


def test_a_warp_of_strength_zero_is_a_shift_to_the_centre() -> None:
    places = random_places((4, 4, 4), 3.0, torch.tensor([10.0, 20.0, 30.0]), 0.0, Chance(2))
    assert torch.allclose(places.reshape(-1, 3).mean(0), torch.tensor([10.0, 20.0, 30.0]))
    assert torch.allclose(places[1, 0, 0] - places[0, 0, 0], torch.tensor([3.0, 0.0, 0.0]))


@pytest.mark.parametrize("shape", [(6, 48, 48), (3, 48, 48), (48, 6, 48)])
@pytest.mark.parametrize("mm", [1.0, 2.5, 5.0])
def test_few_slices_are_bent_together(shape: tuple[int, int, int], mm: float) -> None:
    """None comes before the one below it, and none is shifted by far against its neighbour."""
    axis = shape.index(min(shape))
    spacing = [mm if n == min(shape) else 7.0 for n in shape]
    moved = 0.0
    for seed in range(20):
        places = random_places(shape, spacing, torch.zeros(3), 0.6, Chance(seed))
        step = places.diff(dim=axis)
        assert (step[..., axis] > 0).all()
        # Turned and bent, a slice lies about above the one below it.
        beside = step[..., [i for i in range(3) if i != axis]].norm(dim=-1)
        assert beside.max() < 1.4 * mm and beside.mean() < 0.4 * mm
        moved = max(moved, float(places.mean(dim=axis).std()))
    assert moved > 1  # bent all the same


def test_shares_may_be_whole_numbers() -> None:
    assert {Chance(seed).pick([0, 3, 0]) for seed in range(5)} == {1}


def test_thick_slices_are_smoothed_without_losing_volume() -> None:
    zz, yy, xx = np.indices((16, 60, 60))
    ball = ((zz - 7.5) * 5) ** 2 + (yy - 30) ** 2 * 4 + (xx - 30) ** 2 * 4 < 34**2
    fine = isotropic(ball.astype(np.uint8), (5.0, 2.0, 2.0))
    assert fine.shape == (40, 60, 60)
    assert fine.sum() == pytest.approx(ball.sum() * 2.5, rel=0.05)
    # No pair of neighbouring slices differs as much as two 5 mm slices do.
    steps = np.abs(np.diff(fine.astype(int).sum(axis=(1, 2))))
    coarse = np.abs(np.diff(ball.astype(int).sum(axis=(1, 2))))
    assert steps.max() < coarse.max()
