"""What a grid of voxels has, one value per axis of its array.

The axes are (z, y, x); in evaluation's label volumes (i, j, k), as NIfTI stores them.
"""

from __future__ import annotations

Shape = tuple[int, int, int]
"""Voxels per axis."""

Spacing = tuple[float, float, float]
"""Millimetres per axis."""

Box = tuple[slice, slice, slice]
"""A part of the array, which it indexes."""
