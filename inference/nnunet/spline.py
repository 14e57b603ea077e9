"""Resampling by B-splines, number for number as nnU-Net v2 does it, without SciPy.

nnU-Net resizes with ``skimage.transform.resize(mode="edge", anti_aliasing=False)``, which is
``scipy.ndimage.zoom(mode="nearest", grid_mode=True)``: a B-spline through the voxels, edges
aligned as in `inference.preprocess.resample`, limited to the range of the values it began with.
Where one axis is much coarser than the others it resizes slice by slice and takes the nearest
slice.
Torch's linear interpolation, which nnU-Net also offers, is the spline of order 1.

A resized axis is a linear map, so it is a matrix here; a cubic spline's weights fade by 0.27 a
voxel, so the matrix is a band.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import comb, factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.kinds import FLAG, number, optional, whole, wrong
from inference.preprocess.resample import Float32Array, centres

Float64Array = NDArray[np.float64]

_FRAME = 12  # voxels by which SciPy continues the edges before it fits a spline
_NOTHING = 1e-9  # weights below are left out
_ROWS = 32  # of a matrix that are applied at once


_KINDS = {
    "order": whole(0, 5),
    "order_z": whole(0, 5),
    "separate": optional(FLAG),
    "threshold": number(above=0),
    "half": FLAG,
}


@dataclass(frozen=True)
class Rule:
    """How nnU-Net's plans say that something is resampled.

    Attributes:
        order: of the spline, 0 (nearest) to 5.
        order_z: of the spline along the coarse axis, where that is treated separately.
        separate: whether the coarse axis is treated separately; ``None``: where it is more than
            ``threshold`` times coarser than the finest.
        threshold: nnU-Net's anisotropy threshold.
        half: of logits, whether nnU-Net keeps the result in half precision: of two that differ
            by less, the first one then wins.
    """

    order: int = 3
    order_z: int = 0
    separate: bool | None = None
    threshold: float = 3.0
    half: bool = False

    def __post_init__(self) -> None:
        if problems := wrong(vars(self), _KINDS):
            raise ValueError("; ".join(problems))

    @staticmethod
    def of(content: Mapping[str, Any] | None) -> Rule | None:
        """The rule that a plan describes; ``None`` for no resampling at all.

        Raises:
            ValueError: it describes none.
        """
        try:
            return Rule(**content) if content is not None else None
        except TypeError as error:  # a key that it does not have
            raise ValueError(str(error).split("__init__() ")[-1]) from None

    def separate_axis(self, spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
        """The axis that is treated separately, if there is one.

        Args:
            spacing: millimetres per axis before.
            new_spacing: millimetres per axis after.
        """
        if self.separate is None:
            coarse = [s for s in (spacing, new_spacing) if max(s) / min(s) > self.threshold]
        else:
            coarse = [spacing] if self.separate else []
        if not coarse:
            return None
        axes = [axis for axis, size in enumerate(coarse[0]) if max(coarse[0]) / size == 1]
        return axes[0] if len(axes) == 1 else None


def resample(
    volume: NDArray[Any],
    shape: Sequence[int],
    rule: Rule,
    separate_axis: int | None = None,
    threads: int = 1,
) -> Float32Array:
    """Resample a volume as nnU-Net does.

    Args:
        volume: array (z, y, x), any real type.
        shape: the wanted shape (z, y, x).
        rule: how.
        separate_axis: the axis that is treated separately (`Rule.separate_axis`).
        threads: how many parts of the result are computed at once.

    Returns:
        float32 array of the wanted shape; the volume itself where that is its shape already and
        it is float32.
    """
    values: Float32Array = volume.astype(np.float32, copy=False)
    if values.shape == tuple(shape):
        return values
    together = [axis for axis in range(3) if axis != separate_axis]
    low = high = None
    if rule.order > 1:
        low = values.min(axis=tuple(together), keepdims=True)
        high = values.max(axis=tuple(together), keepdims=True)
    # What shrinks goes first: the others then have less to do.
    for axis in sorted(together, key=lambda axis: shape[axis] / values.shape[axis]):
        values = _along(values, axis, shape[axis], rule.order, threads)
    if low is not None and high is not None:
        values = np.clip(values, low, high)
    if separate_axis is not None:
        values = _along(values, separate_axis, shape[separate_axis], rule.order_z, threads)
    return values


@lru_cache(maxsize=32)
def spline_matrix(n: int, m: int, order: int) -> Float64Array:
    """Resizing one axis as a matrix.

    Args:
        n: number of input voxels.
        m: number of output voxels.
        order: of the spline, 1 to 5.

    Returns:
        Array of shape (m, n); every row sums to 1. At the borders the outermost voxel is
        continued.
    """
    frame = _FRAME if order > 1 else 1
    inside = np.clip(np.arange(-frame, n + frame), 0, n - 1)
    size = len(inside)
    weights = _basis(centres(n, m)[:, None] - np.arange(-frame, n + frame), order)
    if order > 1:
        # Coefficients whose spline goes through the voxels, mirrored at the frame's edges.
        fit = np.zeros((size, size))
        for step in range(-(order // 2), order // 2 + 1):
            there = np.abs(np.arange(size) + step)
            there = np.where(there >= size, 2 * (size - 1) - there, there)
            np.add.at(fit, (np.arange(size), there), float(_basis(np.array(float(step)), order)))
        weights = np.linalg.solve(fit.T, weights.T).T.astype(np.float64, copy=False)
    matrix = np.zeros((m, n))
    np.add.at(matrix.T, inside, weights.T)
    matrix.setflags(write=False)
    return matrix


def _basis(x: NDArray[Any], order: int) -> Float64Array:
    """The centred B-spline of an order from 1 on."""
    total = np.zeros(np.shape(x))
    for k in range(order + 2):
        total += (-1) ** k * comb(order + 1, k) * np.maximum(x + (order + 1) / 2 - k, 0) ** order
    # Beyond its ends the sum is rounding errors of large numbers.
    inside = np.abs(x) < (order + 1) / 2
    return np.where(inside, total / factorial(order), 0.0)


def _along(values: Float32Array, axis: int, m: int, order: int, threads: int) -> Float32Array:
    """Resize one axis."""
    n = values.shape[axis]
    if n == m:
        return values
    if order == 0:
        nearest = np.floor(centres(n, m) + 0.5).astype(np.int64)
        return np.take(values, np.clip(nearest, 0, n - 1), axis=axis)
    matrix = spline_matrix(n, m, order)
    result = np.empty((*values.shape[:axis], m, *values.shape[axis + 1 :]), np.float32)

    def fill(start: int) -> None:
        rows = matrix[start : start + _ROWS]
        used = np.flatnonzero((np.abs(rows) > _NOTHING).any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        weights = rows[:, first:last].astype(np.float32)
        if axis == 0:
            part = values[first:last].reshape(last - first, -1)
            result[start : start + _ROWS] = (weights @ part).reshape(-1, *values.shape[1:])
        elif axis == 1:
            np.matmul(weights, values[:, first:last], out=result[:, start : start + _ROWS])
        else:
            turned = np.ascontiguousarray(weights.T)
            np.matmul(values[:, :, first:last], turned, out=result[:, :, start : start + _ROWS])

    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(fill, range(0, m, _ROWS)))
    return result
