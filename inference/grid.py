"""What a grid of voxels has, one value per axis in the arrays' order (z, y, x)."""

from __future__ import annotations

Shape = tuple[int, int, int]
"""Voxels per axis."""

Spacing = tuple[float, float, float]
"""Millimetres per axis."""

Box = tuple[slice, slice, slice]
"""A part of the array, which it indexes."""
