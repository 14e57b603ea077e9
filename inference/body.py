"""Where the patient is: the box around the body, without the table and separate arms."""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]

_AIR_BELOW = -500.0  # HU
_LOOK_AT = 4.0  # mm: the volume is looked at in steps of about this size
_MARGIN = 8.0  # mm around what was found
_SMALLEST = 50.0  # ml: less than that is no body


def whole_box(shape: tuple[int, ...]) -> Box:
    """The box that is the whole volume."""
    depth, height, width = shape
    return slice(0, depth), slice(0, height), slice(0, width)


def body_box(volume: NDArray[Any], spacing: tuple[float, float, float], offset: float = 0.0) -> Box:
    """The box around the patient.

    Every few millimetres a voxel is looked at. What is denser than lung is opened, so that the
    table and its cover come off the back, and the largest connected part is the body; arms are
    part of it only where they touch it.

    Args:
        volume: CT, shape (z, y, x) in any orientation, any real type.
        spacing: millimetres per axis (z, y, x).
        offset: what has to be added to the volume's values to make them HU.

    Returns:
        Slices (z, y, x) of the box; the whole volume where no body is found.
    """
    steps = [
        max(1, min(round(_LOOK_AT / size), n // 8))
        for size, n in zip(spacing, volume.shape, strict=True)
    ]
    coarse = volume[:: steps[0], :: steps[1], :: steps[2]] > _AIR_BELOW - offset
    # The frame continues the outermost voxels: a body cut by the volume's faces stays whole.
    parts = cc3d.connected_components(opened(np.pad(coarse, 2, mode="edge")), connectivity=6)
    found = cc3d.statistics(parts)
    counts = found["voxel_counts"][1:]
    voxel = np.prod(spacing) * np.prod(steps) / 1000
    if not len(counts) or counts.max() * voxel < _SMALLEST:
        return whole_box(volume.shape)

    box = []
    for there, step, size, n in zip(
        found["bounding_boxes"][1 + int(counts.argmax())],
        steps,
        spacing,
        volume.shape,
        strict=True,
    ):
        margin = round(_MARGIN / size) + step
        first = (there.start - 2) * step - margin
        last = (there.stop - 2) * step + margin
        box.append(slice(max(0, first), min(n, last)))
    return box[0], box[1], box[2]


def opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Morphological opening by a ball of 19 voxels: a cube of 3 without its corners.

    That ball is the union of three squares, one across each axis, and a square is one row along
    another, so a few shifts of the whole volume do it.

    Args:
        mask: shape (z, y, x); outside it nothing is eroded.

    Returns:
        The mask (z, y, x) without what no such ball fits into.
    """
    for combine, outside in ((np.logical_and, True), (np.logical_or, False)):
        along_y, along_x = (_along(mask, axis, combine, outside) for axis in (1, 2))
        square_yx = _along(along_x, 1, combine, outside)
        square_zx = _along(along_x, 0, combine, outside)
        square_zy = _along(along_y, 0, combine, outside)
        mask = combine(combine(square_yx, square_zx), square_zy)
    return mask


def _along(
    mask: NDArray[np.bool_], axis: int, combine: np.ufunc, outside: bool
) -> NDArray[np.bool_]:
    """Each voxel combined with its two neighbours along an axis."""
    border = [(1, 1) if a == axis else (0, 0) for a in range(3)]
    grown = np.moveaxis(np.pad(mask, border, constant_values=outside), axis, 0)
    result: NDArray[np.bool_] = combine(combine(grown[:-2], grown[1:-1]), grown[2:])
    return np.moveaxis(result, 0, axis)
