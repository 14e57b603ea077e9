"""A whole-body map laid over another patient's organs, led by the labels that both have.

An affine fit of the shared organs' centroids, then a smooth displacement on a coarse control grid
that maximises their overlap (gradient descent on the squared difference of the blurred masks,
bending penalised). An organ that a map cuts off tells nothing beyond its end: neither where its
middle is, nor that it is absent there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from inference.preprocess.resample import shape_at_spacing
from training.data.tissues import SPACING
from training.sampling.separable import upsample
from training.sampling.warp import regular_places, sample_linear

_COARSE = 8.0  # mm, spacing at which organs are compared
_CONTROL = 30.0  # mm, spacing of the control grid
_STEPS = 80  # of gradient descent
_LEAST_ENTIRE = 4  # organs not cut off, that an affine fit is told by them alone


@dataclass(frozen=True)
class Laid:
    """A patient's organs with room around them, and where an atlas lies there.

    Attributes:
        organs: uint8 (z, y, x) at `SPACING`.
        told: of each annotated organ bool (z,): whether the patient's map tells if it is there,
            which it does in all slices but those beyond an end that cuts the organ off.
        places: (z, y, x, 3), the atlas's coordinates in mm (z, y, x) of every voxel.
    """

    organs: NDArray[np.uint8]
    told: dict[int, NDArray[np.bool_]]
    places: Tensor


def lay_over(
    organs: NDArray[np.uint8], annotated: tuple[int, ...], atlas: NDArray[np.uint8]
) -> Laid:
    """Lay a whole-body map over a patient's organs, with 100 mm above them and 150 mm below.

    Args:
        organs: the patient's organ labels (z, y, x) at `SPACING`.
        annotated: which organs were annotated.
        atlas: tissue map (z, y, x) of another patient's whole body at `SPACING`.

    Raises:
        ValueError: the two share no organ.
    """
    shared = [v for v in annotated if (organs == v).sum() > 50 and (atlas == v).sum() > 50]
    if not shared:
        raise ValueError("no organ is labelled in it that the whole-body map has too")
    z = np.flatnonzero(np.isin(organs, annotated).any(axis=(1, 2)))
    above, below, side = (round(mm / SPACING) for mm in (100, 150, 40))
    # Array axis 0 runs towards the head: what lies below the organs comes first.
    padded = np.pad(organs, ((below, above), (side, side), (side, side)))
    grown = padded[z[0] : z[-1] + 1 + below + above]
    told: dict[int, NDArray[np.bool_]] = {v: np.ones(len(grown), np.bool_) for v in annotated}
    for value in annotated:
        at_bottom, at_top = _cut(organs, value)
        if at_bottom:
            told[value][:below] = False
        if at_top:
            told[value][-above:] = False
    return Laid(grown, told, register(grown, atlas, shared, told))


def register(
    target: NDArray[np.uint8],
    atlas: NDArray[np.uint8],
    labels: list[int],
    told: Mapping[int, NDArray[np.bool_]],
) -> Tensor:
    """Atlas coordinates in mm (z, y, x, 3) for every target voxel, on a coarse grid.

    Args:
        target: organ labels (z, y, x) at `SPACING`.
        atlas: tissues (z, y, x) at `SPACING`.
        labels: the organs that both show.
        told: of each organ bool (z,), in which slices the target tells whether it is there.
    """
    fixed, fixed_points, fixed_spacing = _masks(target, labels)
    moving, moving_points, moving_spacing = _masks(atlas, labels)
    cut = torch.tensor([_cut(atlas, value) for value in labels])  # (n, 2), below and above
    known = torch.stack([torch.from_numpy(told[value]) for value in labels]).float()

    # Affine by regularised least squares: few organs must not shear the body. The middle of what
    # is cut off is not the organ's.
    entire = ~cut.any(dim=1) & (known == 1).all(dim=1)
    if entire.sum() >= _LEAST_ENTIRE:
        fixed_points, moving_points = fixed_points[entire], moving_points[entire]
    centre_f, centre_m = fixed_points.mean(0), moving_points.mean(0)
    f, m = fixed_points - centre_f, moving_points - centre_m
    scale = float(m.norm() / f.norm())
    ridge = 0.1 * float((f**2).sum()) * torch.eye(3)
    matrix = torch.linalg.solve(f.T @ f + ridge, f.T @ m + scale * ridge)

    shape = fixed.shape[1:]
    affine = (regular_places(shape, fixed_spacing) - centre_f) @ matrix + centre_m

    control = [max(4, round(n * _COARSE / _CONTROL)) for n in shape]
    shift = torch.zeros(3, *control, requires_grad=True)
    weight = fixed.flatten(1).mean(-1).clamp(min=1e-5).rsqrt().reshape(-1, 1, 1, 1)
    weight = weight * F.adaptive_avg_pool1d(known, shape[0])[:, :, None, None]
    optimiser = torch.optim.Adam([shift], lr=2.0)
    for step in range(_STEPS):
        optimiser.param_groups[0]["lr"] = 2.0 * (1 - step / _STEPS)
        places = affine + upsample(shift, shape).permute(1, 2, 3, 0)
        warped = sample_linear(moving, places, moving_spacing)
        difference = (weight * (warped - fixed) ** 2).mean()
        bending = torch.stack([shift.diff(n=2, dim=axis).pow(2).mean() for axis in (1, 2, 3)])
        loss = difference * 100 + 0.002 * bending.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        places = (affine + upsample(shift, shape).permute(1, 2, 3, 0)).permute(3, 0, 1, 2)
        fine = F.interpolate(places[None], size=target.shape, mode="trilinear")[0]
        return fine.permute(1, 2, 3, 0)


def _cut(labels: NDArray[np.uint8], value: int) -> tuple[bool, bool]:
    """Whether an organ reaches the lowest and the highest slice of a map."""
    return bool((labels[0] == value).any()), bool((labels[-1] == value).any())


def _masks(
    labels: NDArray[np.uint8], values: list[int]
) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Blurred masks (n, z, y, x), centroids (n, 3) in mm, and the masks' spacing (z, y, x).

    A whole number of voxels covers the map's extent, so they are of the coarse spacing nearly.
    """
    shape = shape_at_spacing(labels.shape, (SPACING,) * 3, (_COARSE,) * 3)
    depth, height, width = shape
    spacing = tuple(n * SPACING / m for n, m in zip(labels.shape, shape, strict=True))
    masks, points = [], []
    for value in values:
        mask = torch.from_numpy((labels == value).astype(np.float32))[None, None]
        small = F.adaptive_avg_pool3d(mask, (depth, height, width))[0, 0].numpy()
        masks.append(torch.from_numpy(ndimage.gaussian_filter(small, 1.0)))
        middle = (np.array(ndimage.center_of_mass(small)) + 0.5) * spacing
        points.append(torch.tensor(middle, dtype=torch.float32))
    return torch.stack(masks), torch.stack(points), spacing
