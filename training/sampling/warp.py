"""Sampling of volumes at warped places, and the random warps of training.

A place is a position (z, y, x) in mm from the outer corner of a volume's first voxel, so volumes
of different spacing that cover the same extent share their places. A spacing is one number, or
one per axis (z, y, x), in mm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.grid import Spacing
from training.sampling.chance import Chance
from training.sampling.separable import upsample

_BENT = 128.0  # mm per axis that a random bend spans at least

AnySpacing = float | Sequence[float]


def per_axis(spacing: AnySpacing) -> Spacing:
    """A spacing as one number per axis."""
    if isinstance(spacing, (int, float)):
        return (float(spacing),) * 3
    z, y, x = spacing
    return float(z), float(y), float(x)


def regular_places(shape: Sequence[int], spacing: AnySpacing) -> Tensor:
    """The voxel centres of a grid, (z, y, x, 3) in mm."""
    axes = [
        (torch.arange(n) + 0.5) * step for n, step in zip(shape, per_axis(spacing), strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def random_places(
    shape: Sequence[int], spacing: AnySpacing, centre: Tensor, strength: float, chance: Chance
) -> Tensor:
    """A patch's voxel centres, turned, scaled and bent at random.

    Args:
        shape: voxels (z, y, x) of the patch.
        spacing: of the patch.
        centre: place (3,) in the source volume where the patch's middle falls.
        strength: 1 for the full augmentation, 0 for none.
        chance: source of chance.

    Returns:
        Places in the source volume, (z, y, x, 3) in mm, on the source of chance's device.
    """
    angles = chance.normals(3) * torch.tensor([8.0, 4.0, 4.0]) * strength
    scale = torch.exp(chance.normals(1) * 0.2 * strength) * torch.exp(
        chance.normals(3) * 0.06 * strength
    )
    places = turned_places(shape, spacing, rotation(angles.tolist()) * scale, centre, chance.device)
    # Of a patch of few slices the middle of a bend that is higher: else they would be shifted
    # against each other by more than a pixel, and some lie in reverse order.
    steps = per_axis(spacing)
    whole = [max(n, round(_BENT / step)) for n, step in zip(shape, steps, strict=True)]
    for knots, millimetres in ((4, 14.0), (9, 4.0)):
        bend = chance.noise((3, knots, knots, knots))
        amplitude = chance.uniform(0, 1) * millimetres * strength
        places += upsample(amplitude * bend, shape, whole).movedim(0, -1)
    return places


def turned_places(
    shape: Sequence[int],
    spacing: AnySpacing,
    matrix: Tensor,
    centre: Tensor,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The voxel centres of a grid, multiplied by a matrix about its middle, which is then moved.

    Args:
        shape: voxels (z, y, x).
        spacing: of the grid.
        matrix: (3, 3), multiplied from the right.
        centre: place (3,) where the grid's middle falls.
        device: where they are wanted.

    Returns:
        (z, y, x, 3) in mm. In memory each coordinate is a volume of its own.
    """
    axes = [
        (torch.arange(n) + 0.5 - n / 2) * step
        for n, step in zip(shape, per_axis(spacing), strict=True)
    ]
    # The coordinates' parts that depend on z, y and x are few numbers each, and only added up.
    along_z, along_y, along_x = (
        (row[:, None] * axis).to(device) for row, axis in zip(matrix, axes, strict=True)
    )
    along_z = along_z + centre.to(device)[:, None]
    places = along_z[:, :, None, None] + along_y[:, None, :, None] + along_x[:, None, None, :]
    return places.movedim(0, -1)


def rotation(degrees: Sequence[float]) -> Tensor:
    """Matrix (3, 3) of the rotations about the axes z, y and x, one after the other."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(torch.tensor(degrees).deg2rad()):
        a, b = (i for i in range(3) if i != axis)
        turn = torch.eye(3)
        turn[a, a] = turn[b, b] = angle.cos()
        turn[a, b], turn[b, a] = -angle.sin(), angle.sin()
        matrix = matrix @ turn
    return matrix


class NearestVoxels:
    """Which voxel of a volume lies nearest to each of many places, for volumes of one shape.

    Args:
        shape: (z, y, x) of the volumes.
        places: (..., 3) in mm.
        spacing: of the volumes.

    Attributes:
        inside: bool (...), which places lie in the volumes.
    """

    def __init__(self, shape: Sequence[int], places: Tensor, spacing: AnySpacing) -> None:
        self._index = torch.zeros((), dtype=torch.int64, device=places.device)
        self.inside = torch.ones((), dtype=torch.bool, device=places.device)
        for axis, (size, step) in enumerate(zip(shape, per_axis(spacing), strict=True)):
            position = (places[..., axis] / step).floor_()
            kept = position.clamp(0, size - 1)
            self.inside = self.inside & (position == kept)
            self._index = self._index * size + kept.long()

    def values(self, volume: Tensor, outside: int) -> Tensor:
        """A volume's values at the places.

        Args:
            volume: (z, y, x).
            outside: value beyond the volume.
        """
        found = volume.flatten()[self._index]
        return found.masked_fill_(~self.inside, outside)


def sample_nearest(volume: Tensor, places: Tensor, spacing: AnySpacing, outside: int) -> Tensor:
    """The nearest voxel's value at every place: see `NearestVoxels`."""
    return NearestVoxels(volume.shape, places, spacing).values(volume, outside)


def sample_linear(volume: Tensor, places: Tensor, spacing: AnySpacing) -> Tensor:
    """Trilinear interpolation, borders continued.

    Args:
        volume: (c, z, y, x), any real type.
        places: (z, y, x, 3) in mm.
        spacing: of the volume.

    Returns:
        float32 (c, z, y, x) of the places' shape.
    """
    step = torch.tensor(per_axis(spacing), device=places.device)
    index = places / step
    # Of a large volume only the part around the places is turned into floats.
    size = torch.tensor(volume.shape[1:], device=places.device)
    low, high = index.amin((0, 1, 2)), index.amax((0, 1, 2))
    first = torch.minimum((low.floor() - 2).clamp(min=0), size - 1).long()
    last = torch.minimum((high.ceil() + 2).clamp(min=1), size).long()
    last = torch.maximum(last, first + 1)
    (z, y, x), (z_end, y_end, x_end) = first.tolist(), last.tolist()
    part = volume[:, z:z_end, y:y_end, x:x_end].float()
    grid = ((index - first) / (last - first) * 2 - 1).flip(-1)
    return F.grid_sample(part[None], grid[None], padding_mode="border", align_corners=False)[0]
