"""Phases of contrast that a real CT is brought to."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch

from inference.organs import LABEL_OF
from training.patches.augment import vary_hu
from training.sampling.chance import Chance


def test_phases_leave_an_even_image_even() -> None:
    for seed in range(20):  # sharper, softer, brighter, but not otherwise at its edges
        noiseless = Chance(seed)
        noiseless.noise = lambda shape: torch.zeros(shape)  # type: ignore[method-assign]
        even, liver = torch.full((8, 8, 8), 40.0), torch.ones(8, 8, 8, dtype=torch.uint8)
        hu, _ = vary_hu(even, liver, True, {"phase": {}}, noiseless)
        assert hu.max() - hu.min() < 1e-3


def _shift_of_a_phase(hu: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.Tensor:
    """What a change of phase adds where labels are, beside the same without any; no noise."""
    results = []
    for of in (labels, torch.zeros_like(labels)):
        noiseless = Chance(seed)
        noiseless.noise = lambda shape: torch.zeros(shape)  # type: ignore[method-assign]
        results.append(vary_hu(hu, of, True, {"phase": {}}, noiseless)[0])
    return results[0] - results[1]


def test_phases_shift_organs_but_not_fat_gas_and_bone() -> None:
    hu = torch.linspace(-1000, 1000, 4096).reshape(16, 16, 16)
    labels = torch.ones(hu.shape, dtype=torch.uint8)
    shifted = 0
    for seed in range(20):
        change = _shift_of_a_phase(hu, labels, seed).abs().amax(dim=(1, 2))  # HU rise with z
        assert change[:5].max() < 0.1 and change[14:].max() < 0.1
        shifted += bool(change[8] > 0.1)
    assert 3 <= shifted <= 13  # 7 are expected


def test_phases_leave_no_grain_in_bright_blood() -> None:
    """Noise about the HU from which contrast keeps its own must not be told apart by it."""
    hu = 250 + 20 * torch.randn(24, 24, 24, generator=torch.manual_seed(0))
    labels = torch.full(hu.shape, LABEL_OF["aorta"], dtype=torch.uint8)
    for seed in range(20):
        change = _shift_of_a_phase(hu, labels, seed)
        assert change.std() < 0.05 * change.mean().abs() + 1e-3
