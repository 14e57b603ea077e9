"""What is varied in a patch, one function per entry of a configuration's ``augmentation``.

Three kinds, by when they act:

- geometry (`places`): ``warp`` (turned, scaled and bent, all axes at once: ours), ``turn`` and
  ``scale`` (nnU-Net's), before anything is sampled; ``scan``, lowest and highest mm of a synthetic
  CT's ``slice`` thickness and ``pixel`` size, and ``cropped``, a field of view that ends about
  where the body does, for networks that see CTs at their own spacing (`training.patches.samples`);
- Hounsfield units (`vary_hu`): ``phase`` and ``slab``, before clipping;
- intensities (`vary_intensities`): nnU-Net's noise, blur, brightness, contrast, low resolution
  and gamma (Isensee et al. 2021, as in batchgeneratorsv2), and ``mirror``, in their order. The
  noise's ``deviation`` is what is named ``noise_variance`` there.

What each needs is said in `training.config_check`.

``mirror`` along x shows patients whose liver lies on the left, with labels that are not swapped:
the published nnU-Net does so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.grid import Shape
from inference.hounsfield import AIR
from training.data.tissues import UNKNOWN
from training.sampling.chance import Chance
from training.sampling.separable import blur
from training.sampling.warp import AnySpacing, random_places, rotation, turned_places

Range = tuple[float, float]
"""The lowest and the highest amount."""

_THINNEST = 6
"""The thinnest slab shows one in this many of a patch's slices."""

# HU between which a change of phase sets in, and between which it fades: fat and gas keep their HU,
# and so do bone, clips and contrast drunk. By steps, noise would decide for each voxel.
_FATTY, _BRIGHT = (-90.0, -30.0), (250.0, 450.0)


def places(
    shape: Sequence[int],
    spacing: AnySpacing,
    centre: Tensor,
    augmentation: Mapping[str, Any],
    chance: Chance,
) -> Tensor:
    """Where a patch's voxels lie in its source, (z, y, x, 3) in mm.

    Args:
        shape: voxels (z, y, x) of the patch.
        spacing: of the patch.
        centre: place (3,) of its middle.
        augmentation: its entries ``warp``, ``turn`` and ``scale`` are used.
        chance: source of chance.
    """
    if warp := augmentation.get("warp"):
        return random_places(shape, spacing, centre, warp["strength"], chance)
    matrix = torch.eye(3)
    turn, scale = augmentation.get("turn"), augmentation.get("scale")
    if turn and chance.happens(turn["probability"]):
        matrix = rotation([chance.uniform(-limit, limit) for limit in turn["degrees"]])
    if scale and chance.happens(scale["probability"]):
        low, high = scale["range"]
        # Enlarging and shrinking are equally likely.
        smaller = chance.happens(0.5)
        factor = chance.uniform(low, 1) if smaller else chance.uniform(1, high)
        matrix = matrix * torch.tensor(
            [factor if axis in scale["axes"] else 1 for axis in (0, 1, 2)]
        )
    return turned_places(shape, spacing, matrix, centre, chance.device)


def vary_hu(
    hu: Tensor, labels: Tensor, real: bool, augmentation: Mapping[str, Any], chance: Chance
) -> tuple[Tensor, Tensor]:
    """Vary a patch in HU.

    Args:
        hu: float (z, y, x).
        labels: integer (z, y, x).
        real: whether it is a real CT; synthetic ones vary anyway.
        augmentation: its entries ``phase`` and ``slab`` are used.
        chance: source of chance.

    Returns:
        Both anew.
    """
    if real and "phase" in augmentation:
        hu = _phase(hu, labels, chance)
    if (slab := augmentation.get("slab")) and chance.happens(slab["probability"]):
        depth = hu.shape[0]
        # Uniform in the logarithm, so that half of them are below 0.41: thin ones are hard.
        kept = max(1, round(depth * math.exp(-chance.uniform(0, math.log(_THINNEST)))))
        first = chance.integer(depth - kept + 1)
        hu, labels = hu.clone(), labels.clone()
        for gone in (slice(0, first), slice(first + kept, depth)):
            hu[gone], labels[gone] = AIR, 0
    return hu, labels


def _phase(hu: Tensor, labels: Tensor, chance: Chance) -> Tensor:
    """Another phase and scanner for a real CT: organ shifts, contrast, sharpness, noise.

    What no contrast agent changes keeps its HU: else its fat and gas show where a label ends.
    """
    if chance.happens(0.35):  # seldom, as it draws what is wrong with a label too
        table = chance.normals(256) * chance.uniform(0, 30)
        table[0] = table[UNKNOWN] = 0
        shift = table.to(hu.device)[labels.long()]
        shift *= ((hu - _FATTY[0]) / (_FATTY[1] - _FATTY[0])).clamp(0, 1)
        shift *= ((_BRIGHT[1] - hu) / (_BRIGHT[1] - _BRIGHT[0])).clamp(0, 1)
        hu = hu + _mean_nearby(shift, (3, 3, 3))
    hu = (hu - 40) * chance.uniform(0.8, 1.2) + 40 + chance.uniform(-15, 15)
    if chance.happens(0.3):
        hu = _mean_nearby(hu, (3, 1, 1) if chance.happens(0.5) else (1, 3, 3))
    if chance.happens(0.5):
        hu = hu + chance.noise(hu.shape) * 45 * chance.uniform(0, 1) ** 2
    return hu


def _mean_nearby(volume: Tensor, size: Shape) -> Tensor:
    """Mean of the box around each voxel, of what of it lies in the volume."""
    padding = (size[0] // 2, size[1] // 2, size[2] // 2)
    mean = F.avg_pool3d(
        volume[None, None], size, stride=1, padding=padding, count_include_pad=False
    )
    return mean[0, 0]


def vary_intensities(
    image: Tensor, labels: Tensor, augmentation: Mapping[str, Any], chance: Chance
) -> tuple[Tensor, Tensor]:
    """Vary a normalised patch.

    Args:
        image: float (z, y, x).
        labels: integer (z, y, x).
        augmentation: all entries but those of geometry and HU are used.
        chance: source of chance.

    Returns:
        Both anew.
    """
    for name, options in augmentation.items():
        if name == "mirror":
            axes = [axis for axis in options["axes"] if chance.happens(0.5)]
            image, labels = image.flip(axes), labels.flip(axes)
        elif name in _INTENSITIES and chance.happens(options["probability"]):
            amounts = {key: value for key, value in options.items() if key != "probability"}
            image = _INTENSITIES[name](image, chance, **amounts)
    return image, labels


def _noise(image: Tensor, chance: Chance, deviation: Range) -> Tensor:
    return image + chance.noise(image.shape) * chance.uniform(*deviation)


def _blur(image: Tensor, chance: Chance, sigma: Range) -> Tensor:
    return blur(image, [chance.uniform(*sigma) for _ in range(3)])


def _brightness(image: Tensor, chance: Chance, factor: Range) -> Tensor:
    return image * chance.uniform(*factor)


def _contrast(image: Tensor, chance: Chance, factor: Range) -> Tensor:
    """Away from or towards the mean, within the range that there was."""
    mean = image.mean()
    changed = (image - mean) * chance.uniform(*factor) + mean
    return torch.minimum(torch.maximum(changed, image.min()), image.max())


def _low_resolution(image: Tensor, chance: Chance, factor: Range, axes: Sequence[int]) -> Tensor:
    chosen = chance.uniform(*factor)
    small = [max(1, round(n * chosen)) if axis in axes else n for axis, n in enumerate(image.shape)]
    coarse = F.interpolate(image[None, None], size=small, mode="nearest-exact")
    return F.interpolate(coarse, size=image.shape, mode="trilinear")[0, 0]


def _gamma(image: Tensor, chance: Chance, exponent: Range) -> Tensor:
    """A power of the values, mean and deviation as before."""
    low, high = exponent
    # Brightening and darkening are equally likely.
    darker = chance.happens(0.5) or low >= 1
    power = chance.uniform(max(1.0, low), high) if darker else chance.uniform(low, 1)
    least, span = image.min(), (image.max() - image.min()).clamp(min=1e-7)
    changed = ((image - least) / span) ** power * span + least
    changed = (changed - changed.mean()) / changed.std().clamp(min=1e-7)
    return changed * image.std() + image.mean()


def _inverted_gamma(image: Tensor, chance: Chance, exponent: Range) -> Tensor:
    return -_gamma(-image, chance, exponent)


_INTENSITIES: dict[str, Callable[..., Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "low_resolution": _low_resolution,
    "gamma": _gamma,
    "inverted_gamma": _inverted_gamma,
}
