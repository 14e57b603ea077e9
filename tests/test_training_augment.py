"""Augmentation: nnU-Net's is the same as its own transforms do, with its own numbers; slabs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("nnunetv2", reason="the nnunet extra is not installed")

import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from inference.hounsfield import AIR
from training.patches.augment import vary_hu, vary_intensities
from training.sampling.chance import Chance

CONFIGS = Path(__file__).parents[1] / "training" / "configs"

_TOGETHER = {"synchronize_channels": False, "p_per_channel": 1}
_GAMMA = {**_TOGETHER, "gamma": (1.3, 1.3), "p_retain_stats": 1}
_COARSE = {**_TOGETHER, "synchronize_axes": True, "scale": (0.6, 0.6)}


def an_image() -> Tensor:
    """A smooth volume (z, y, x) with some noise."""
    generator = torch.Generator().manual_seed(0)
    knots = torch.randn(1, 1, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(knots, size=(12, 20, 24), mode="trilinear")[0, 0]
    return smooth + 0.1 * torch.randn(smooth.shape, generator=generator)


def ours(name: str, **options: Any) -> Tensor:
    """The image after one entry of our augmentation."""
    augmentation = {name: {"probability": 1.0, **options}}
    labels = torch.zeros(an_image().shape, dtype=torch.uint8)
    return vary_intensities(an_image(), labels, augmentation, Chance(0, "cpu"))[0]


@pytest.mark.parametrize(
    ("name", "options", "transform"),
    [
        (
            "blur",
            {"sigma": [0.8, 0.8]},
            GaussianBlurTransform((0.8, 0.8), **_TOGETHER, synchronize_axes=False),
        ),
        (
            "brightness",
            {"factor": [1.2, 1.2]},
            MultiplicativeBrightnessTransform((1.2, 1.2), **_TOGETHER),
        ),
        (
            "contrast",
            {"factor": [1.2, 1.2]},
            ContrastTransform((1.2, 1.2), preserve_range=True, **_TOGETHER),
        ),
        (
            "low_resolution",
            {"factor": [0.6, 0.6], "axes": [1, 2]},
            SimulateLowResolutionTransform(**_COARSE, ignore_axes=(0,)),
        ),
        (
            "low_resolution",
            {"factor": [0.6, 0.6], "axes": [0, 1, 2]},
            SimulateLowResolutionTransform(**_COARSE, ignore_axes=()),
        ),
        ("gamma", {"exponent": [1.3, 1.3]}, GammaTransform(**_GAMMA, p_invert_image=0)),
        ("inverted_gamma", {"exponent": [1.3, 1.3]}, GammaTransform(**_GAMMA, p_invert_image=1)),
    ],
)
def test_each_does_what_nnunets_does(name: str, options: dict[str, Any], transform: Any) -> None:
    theirs = transform(image=an_image()[None].clone())["image"][0]
    away = (theirs - an_image()).abs().max()
    assert away > 0.05
    inner = (slice(3, -3),) * 3 if name == "blur" else ()  # at borders theirs reflects
    assert (ours(name, **options) - theirs)[inner].abs().max() < 0.03 * away


def test_noise_is_as_strong_as_nnunets() -> None:
    transform = GaussianNoiseTransform((0.08, 0.08), p_per_channel=1, synchronize_channels=True)
    torch.manual_seed(0)
    theirs = transform(image=an_image()[None].clone())["image"][0] - an_image()
    mine = ours("noise", deviation=[0.08, 0.08]) - an_image()
    assert float(mine.std()) == pytest.approx(float(theirs.std()), rel=0.05)
    assert abs(float(mine.mean())) < 0.005


@pytest.mark.parametrize("name", ["nnunet_iso2p5", "nnunet_half"])
def test_the_configuration_has_nnunets_own_numbers(name: str) -> None:
    """Read from the transforms that nnU-Net's trainer makes for this patch."""
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    flat = max(content["patch"]) / content["patch"][0] > 3  # its rule for turning in the slices
    made = nnUNetTrainer.get_training_transforms(
        tuple(content["patch"]), (-np.pi, np.pi), None, (0, 1, 2), flat
    )
    assert flat
    found: dict[str, dict[str, Any]] = {}
    for transform in made.transforms:
        inner = getattr(transform, "transform", transform)
        chance = getattr(transform, "apply_probability", 1) * getattr(inner, "p_per_channel", 1)
        kind = type(inner).__name__
        if kind == "SpatialTransform":
            found["turn"] = {"probability": inner.p_rotation, "degrees": [180, 0, 0]}
            scaling = list(inner.scaling)
            found["scale"] = {"probability": inner.p_scaling, "range": scaling, "axes": [1, 2]}
        elif kind == "GaussianNoiseTransform":
            found["noise"] = {"probability": chance, "deviation": list(inner.noise_variance)}
        elif kind == "GaussianBlurTransform":
            found["blur"] = {"probability": chance, "sigma": list(inner.blur_sigma)}
        elif kind == "MultiplicativeBrightnessTransform":
            found["brightness"] = {"probability": chance, "factor": _both(inner.multiplier_range)}
        elif kind == "ContrastTransform":
            found["contrast"] = {"probability": chance, "factor": _both(inner.contrast_range)}
        elif kind == "SimulateLowResolutionTransform":
            axes = [axis for axis in (0, 1, 2) if axis not in inner.ignore_axes]
            entry = {"probability": chance, "factor": list(inner.scale), "axes": axes}
            found["low_resolution"] = entry
        elif kind == "GammaTransform":
            entry = {"probability": chance, "exponent": _both(inner.gamma)}
            found["inverted_gamma" if inner.p_invert_image else "gamma"] = entry
        elif kind == "MirrorTransform":
            found["mirror"] = {"axes": list(inner.allowed_axes)}
    assert found == content["augmentation"]
    assert list(found) == list(content["augmentation"])  # in this order


def _both(contrast: Any) -> list[float]:
    return list(contrast.contrast_range)


def test_slabs_show_a_run_of_slices() -> None:
    """Down to a sixth of a patch, and half of them less than its square root, 0.41."""
    hu, labels = torch.zeros(60, 2, 3), torch.ones(60, 2, 3, dtype=torch.uint8)
    heights = []
    for seed in range(300):
        slab, shown = vary_hu(
            hu, labels, False, {"slab": {"probability": 1.0}}, Chance(seed, "cpu")
        )
        there = shown[:, 0, 0].bool()
        assert (slab[there] == 0).all() and (slab[~there] == AIR).all()
        assert (shown == there[:, None, None]).all(), "nothing else is labelled"
        (slices,) = torch.nonzero(there, as_tuple=True)
        assert torch.equal(slices, torch.arange(int(slices[0]), int(slices[-1]) + 1))
        heights.append(len(slices))
    assert not hu.any() and labels.all(), "the patch itself is left alone"
    assert 10 <= min(heights) <= 12 and 57 <= max(heights) <= 60
    assert 0.4 < np.mean(np.array(heights) < 60 / 6**0.5) < 0.6
