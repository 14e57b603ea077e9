"""Training patches: drawn, warped and varied, one per index.

Sample ``i`` of a seed is always the same patch, so an interrupted training goes on with exactly
the patches that it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import Dataset

from inference.organs import ORGANS
from training.bodies import SPACING as BODY_SPACING
from training.config import Config
from training.synthesis import synthesise
from training.tissues import organs_only
from training.warp import random_places, sample_linear, sample_nearest

UNKNOWN = 255
"""Label of voxels that nothing is learnt from."""

_AIR = -1024


@dataclass(frozen=True)
class Patch:
    """What a batch consists of (a leading batch axis is added by the loader).

    Attributes:
        image: float32 (1, z, y, x), normalised.
        labels: uint8 (z, y, x), organ labels, `UNKNOWN` where unknown.
        annotated: bool (14,), which classes the labels tell; the others may hide in background.
    """

    image: Tensor
    labels: Tensor
    annotated: Tensor


class Samples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Patches from a prepared folder (`training.prepare`).

    Args:
        folder: holds ``bodies/``, ``images/`` and perhaps ``pseudo/``.
        config: shares, patch, spacing, intensities, hold-out and seed.

    Raises:
        FileNotFoundError: the folder holds nothing to train on.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.config = config
        images = [p for p in _arrays(folder / "images") if p.stem not in config.holdout]
        sources = {
            "synthetic": _arrays(folder / "bodies"),
            "labelled": [p for p in images if np.load(p)["annotated"].size],
            "pseudo": _arrays(folder / "pseudo"),
        }
        self.sources = {k: v for k, v in sources.items() if v and config.shares.get(k, 0) > 0}
        if not self.sources:
            raise FileNotFoundError(f"{folder}: nothing to train on (run the preparation first)")
        self._loaded: dict[Path, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.config.iterations * self.config.batch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Patch number ``index`` as (image, labels, annotated); see `Patch`."""
        rng = Generator().manual_seed(self.config.seed * 1_000_003 + index)
        kinds = list(self.sources)
        weights = torch.tensor([self.config.shares[kind] for kind in kinds])
        kind = kinds[int(torch.multinomial(weights, 1, generator=rng))]
        paths = self.sources[kind]
        source = self._load(paths[int(torch.randint(len(paths), (1,), generator=rng))])
        patch = self._synthetic(source, rng) if kind == "synthetic" else self._real(source, rng)
        return patch.image, patch.labels, patch.annotated

    def _synthetic(self, body: dict[str, Tensor], rng: Generator) -> Patch:
        places = self._places(body["tissues"], body["hull"] < 10, BODY_SPACING, rng)
        tissues = sample_nearest(body["tissues"], places, BODY_SPACING, 0)
        hull = sample_nearest(body["hull"], places, BODY_SPACING, 127)
        hu = synthesise(tissues, hull, self.config.spacing, rng)
        labels = torch.from_numpy(organs_only(tissues.numpy()))
        # Where the source ends, so does the scan.
        outside = sample_nearest(torch.zeros_like(hull), places, BODY_SPACING, 1) == 1
        beyond = outside.all(dim=2).all(dim=1)
        hu[beyond] = _AIR
        annotated = torch.ones(1 + len(ORGANS), dtype=torch.bool)
        return self._finish(hu, labels, annotated, rng)

    def _real(self, case: dict[str, Tensor], rng: Generator) -> Patch:
        spacing = self.config.spacing
        hu, labels = case["hu"].float(), case["labels"]
        places = self._places(labels, hu > -300, spacing, rng)
        annotated = torch.zeros(1 + len(ORGANS), dtype=torch.bool)
        annotated[[0, *case["annotated"].tolist()]] = True
        inside = sample_nearest(torch.ones_like(labels), places, spacing, 0) == 1
        hu = sample_linear(hu[None], places, spacing)[0]
        labels = sample_nearest(labels, places, spacing, 0)
        hu = _vary(hu, labels, rng)
        hu[~inside] = _AIR
        return self._finish(hu, labels, annotated, rng)

    def _places(self, labels: Tensor, body: Tensor, spacing: float, rng: Generator) -> Tensor:
        """A warped patch around a random organ voxel's height, in the middle of the body."""
        rows = torch.nonzero(body.any(dim=2).any(dim=0)).flatten()
        columns = torch.nonzero(body.any(dim=1).any(dim=0)).flatten()
        is_organ = (labels > 0) & (labels <= max(ORGANS))
        organ = torch.nonzero(is_organ.any(dim=2).any(dim=1)).flatten()
        chance = torch.rand(1, generator=rng)
        jitter = torch.randn(3, generator=rng) * torch.tensor([40.0, 12.0, 15.0])
        heights = organ if chance < 0.85 and len(organ) else torch.arange(labels.shape[0])
        height = heights[int(torch.randint(len(heights), (1,), generator=rng))]
        centre = torch.tensor(
            [float(height), float(rows[0] + rows[-1]) / 2, float(columns[0] + columns[-1]) / 2]
        )
        return random_places(
            self.config.patch,
            self.config.spacing,
            (centre + 0.5) * spacing + jitter,
            self.config.augmentation,
            rng,
        )

    def _finish(self, hu: Tensor, labels: Tensor, annotated: Tensor, rng: Generator) -> Patch:
        """Sometimes a slab of the scan, then the network's intensities."""
        if float(torch.rand(1, generator=rng)) < 0.25:
            depth = hu.shape[0]
            kept = int(torch.randint(depth // 4, depth, (1,), generator=rng))
            first = int(torch.randint(depth - kept + 1, (1,), generator=rng))
            for gone in (slice(0, first), slice(first + kept, depth)):
                hu[gone], labels[gone] = _AIR, 0
        config = self.config
        image = (hu.clamp(*config.clip) - config.subtract) / config.divide
        return Patch(image[None], labels, annotated)

    def _load(self, path: Path) -> dict[str, Tensor]:
        if path not in self._loaded:
            with np.load(path) as content:
                self._loaded[path] = {k: torch.from_numpy(content[k]) for k in content.files}
        return self._loaded[path]


def _arrays(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.glob("*.npz")) if not p.name.endswith(".partial.npz")]


def _vary(hu: Tensor, labels: Tensor, rng: Generator) -> Tensor:
    """Another phase and scanner for a real CT: organ shifts, contrast, sharpness, noise."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=rng))

    if uniform(0, 1) < 0.7:
        table = torch.randn(256, generator=rng) * uniform(0, 35)
        table[0] = table[UNKNOWN] = 0
        shift = table[labels.long()]
        shift = F.avg_pool3d(shift[None, None], 3, stride=1, padding=1)[0, 0]
        hu = hu + shift
    hu = (hu - 40) * uniform(0.8, 1.2) + 40 + uniform(-15, 15)
    if uniform(0, 1) < 0.3:
        size = (3, 1, 1) if uniform(0, 1) < 0.5 else (1, 3, 3)
        padding = (size[0] // 2, size[1] // 2, size[2] // 2)
        hu = F.avg_pool3d(hu[None, None], size, stride=1, padding=padding)[0, 0]
    if uniform(0, 1) < 0.5:
        hu = hu + torch.randn(hu.shape, generator=rng) * uniform(0, 20)
    return hu
