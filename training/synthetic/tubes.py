"""Vessels and bowel as tubes: what lies within a radius of a line of straight pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

Point = tuple[float, float, float]
"""(z, y, x) in voxels."""


def tube(like: Tensor, course: Sequence[Point], radius: float | Tensor) -> Tensor:
    """Mask (z, y, x) of what lies within a radius of a line of straight pieces.

    Args:
        like: a volume of the mask's shape and device.
        course: the line's corners.
        radius: in voxels; of every voxel (z, y, x) if it is not the same everywhere.
    """
    mask = torch.zeros_like(like, dtype=torch.bool)
    reach = float(torch.as_tensor(radius).max())
    for one, other in pairwise(course):
        box = tuple(
            slice(
                min(n, max(0, math.floor(min(a, b) - reach))),
                min(n, max(0, math.ceil(max(a, b) + reach) + 1)),
            )
            for a, b, n in zip(one, other, like.shape, strict=True)
        )
        axes = [torch.arange(s.start, s.stop, device=like.device) for s in box]
        places = torch.meshgrid(*axes, indexing="ij")
        here = radius[box] if isinstance(radius, Tensor) else radius
        mask[box] |= distance(places, one, other) <= here
    return mask


def distance(
    places: Sequence[Tensor], one: Sequence[Tensor | float], other: Sequence[Tensor | float]
) -> Tensor:
    """Distance of places from the straight piece between two points, all given axis by axis."""
    along = [b - a for a, b in zip(one, other, strict=True)]
    away = [place - a for place, a in zip(places, one, strict=True)]
    squared = torch.as_tensor(sum(d * d for d in along)).clamp(min=1e-6)
    covered = torch.as_tensor(sum(a * d for a, d in zip(away, along, strict=True)))
    share = (covered / squared).clamp(0, 1)
    rest = sum((a - share * d) ** 2 for a, d in zip(away, along, strict=True))
    return torch.as_tensor(rest).sqrt()
