"""From a CT to what the network sees: crop to the body, resize and clip, normalise.

Training prepares its CTs with the same function, so that both see the same thing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.grid import Box, Spacing, whole_box
from inference.machine import free_memory
from inference.plan import Plan
from inference.preprocess.body import body_box
from inference.preprocess.resample import Float32Array, resize, shape_at_spacing


@dataclass(frozen=True)
class Prepared:
    """A volume ready for the network.

    Attributes:
        values: float32 array (z, y, x), or (C, z, y, x) of a plan with channels, normalised, on
            the network's grid.
        box: the part of the volume that ``values`` covers, edge to edge, slices (z, y, x).
        spacing: millimetres per axis (z, y, x) of ``values``.
    """

    values: Float32Array
    box: Box
    spacing: Spacing


@dataclass(frozen=True)
class Placed:
    """Where the network's grid lies in a volume, before any voxel is resized.

    Attributes:
        box: the part of the volume that it covers, edge to edge, slices (z, y, x).
        shape: its voxels (z, y, x).
    """

    box: Box
    shape: tuple[int, ...]


def crop(volume: NDArray[Any], spacing: Spacing, plan: Plan, offset: float = 0.0) -> Box:
    """The part of a CT that ``plan.crop`` says.

    Args:
        volume: CT, shape (z, y, x), already turned to ``plan.orientation``; any real type.
        spacing: millimetres per axis (z, y, x).
        plan: how the network wants its input.
        offset: what has to be added to the volume's values to make them HU.
    """
    if plan.crop == "body":
        return body_box(volume, spacing, offset)
    return whole_box(volume.shape)


def place(box: Box, spacing: Spacing, plan: Plan) -> Placed:
    """Lay the network's grid into a part of a CT.

    Args:
        box: the part.
        spacing: millimetres per axis (z, y, x) of the CT.
        plan: how the network wants its input.

    Returns:
        Where the network's input will lie in the volume.

    Raises:
        CaseError: there is not enough memory for it.
    """
    part = tuple(there.stop - there.start for there in box)
    shape = tuple(
        fixed or shape_at_spacing([n], [size], [wanted or size])[0]
        for n, size, wanted, fixed in zip(part, spacing, plan.spacing, plan.size, strict=True)
    )
    check_memory(math.prod(shape), part, spacing)
    return Placed(box, shape)


def fill(
    volume: NDArray[Any],
    spacing: Spacing,
    placed: Placed,
    plan: Plan,
    offset: float = 0.0,
    threads: int = 1,
) -> Prepared:
    """Resize and normalise what the network's grid covers of a CT.

    Args:
        volume: CT, shape (z, y, x), already turned to ``plan.orientation``; any real type.
        spacing: millimetres per axis (z, y, x).
        placed: where the network's grid lies.
        plan: how the network wants its input.
        offset: what has to be added to the volume's values to make them HU.
        threads: how many slices are resized at once.

    Returns:
        The network's input and where it lies in the volume.
    """
    part, shape = volume[placed.box], placed.shape
    low, high = plan.clip_first or plan.clip
    values = resize(part, shape, (low - offset, high - offset), threads=threads)
    if plan.clip_first:
        np.clip(values, plan.clip[0] - offset, plan.clip[1] - offset, out=values)
    values -= np.float32(plan.subtract - offset)
    values /= np.float32(plan.divide)
    z, y, x = (n * size / m for n, size, m in zip(part.shape, spacing, shape, strict=True))
    return Prepared(values, placed.box, (z, y, x))


def preprocess(
    volume: NDArray[Any], spacing: Spacing, plan: Plan, offset: float = 0.0, threads: int = 1
) -> Prepared:
    """Prepare a CT for the network: `crop`, `place` and `fill` in one.

    Args:
        volume: CT, shape (z, y, x), already turned to ``plan.orientation``; any real type.
        spacing: millimetres per axis (z, y, x).
        plan: how the network wants its input.
        offset: what has to be added to the volume's values to make them HU.
        threads: how many slices are resized at once.

    Returns:
        The network's input and where it lies in the volume.

    Raises:
        CaseError: there is not enough memory for it.
    """
    placed = place(crop(volume, spacing, plan, offset), spacing, plan)
    return fill(volume, spacing, placed, plan, offset, threads)


def check_memory(values: int, shape: tuple[int, ...], spacing: Spacing) -> None:
    """Refuse a volume whose prepared form would not fit into memory.

    Args:
        values: float32 numbers of the prepared form.
        shape: voxels (z, y, x) of the volume.
        spacing: millimetres per axis (z, y, x).

    Raises:
        CaseError: it would not.
    """
    if values * np.dtype(np.float32).itemsize > free_memory():
        metres = " x ".join(
            f"{n * size / 1000:.3g}" for n, size in zip(shape, spacing, strict=True)
        )
        raise CaseError(
            f"is too large for the memory there is: {metres} m (z, y, x); is its spacing right?"
        )
