"""What a grid of voxels has, one value per axis of its array.

The axes are (z, y, x); in evaluation's label volumes (i, j, k), as NIfTI stores them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
"""Voxels per axis."""

Spacing = tuple[float, float, float]
"""Millimetres per axis."""

Box = tuple[slice, slice, slice]
"""A part of the array, which it indexes."""

Mask = NDArray[np.bool_]
"""Which voxels are meant."""


def voxel_millilitres(spacing: Sequence[float]) -> float:
    """The volume of one voxel in ml; the spacing is in mm."""
    return math.prod(spacing) / 1000


def whole_box(shape: Sequence[int]) -> Box:
    """The box that is the whole volume."""
    first, second, third = shape
    return slice(0, first), slice(0, second), slice(0, third)


def bounding_box(mask: NDArray[np.generic]) -> Box | None:
    """The smallest box around what is not zero; ``None`` where all is."""
    first, second, third = (
        np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        for axis in range(3)
    )
    if not len(first):
        return None
    return (
        slice(int(first[0]), int(first[-1]) + 1),
        slice(int(second[0]), int(second[-1]) + 1),
        slice(int(third[0]), int(third[-1]) + 1),
    )
