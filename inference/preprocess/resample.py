"""Resizing of volumes: the one place that says which voxel lies where.

A grid of ``n`` voxels resized to ``m`` covers the same extent, edge to edge: the centre of
output voxel ``i`` lies at input coordinate ``(i + 0.5) * n / m - 0.5``. This is what nnU-Net,
scikit-image and ``torch.nn.functional.interpolate(align_corners=False)`` do. Both directions
use it: CT to the network's grid (`resize`), logits back to the CT's (`inference.labels.decode`).

Shrinking widens the linear filter with the step (as Pillow and torch's ``antialias=True``), so
that thin slices are averaged, not skipped: a noisy CT gets less noisy.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


def shape_at_spacing(
    shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]
) -> tuple[int, ...]:
    """Number of voxels per axis when the same extent is sampled at another spacing.

    Args:
        shape: voxels per axis.
        spacing: millimetres per axis, in the same axis order.
        new_spacing: the wanted millimetres per axis.

    Returns:
        The rounded number of voxels, at least 1 per axis, computed in nnU-Net's order.
    """
    return tuple(
        max(1, round(old / new * n))
        for n, old, new in zip(shape, spacing, new_spacing, strict=True)
    )


def centres(n: int, m: int) -> NDArray[np.float64]:
    """Where the centres of an axis's output voxels lie among its input voxels.

    Args:
        n: number of input voxels.
        m: number of output voxels.

    Returns:
        Array of m input coordinates; an integer is an input voxel's centre. The first and the last
        may lie up to half a voxel outside.
    """
    return (np.arange(m, dtype=np.float64) + 0.5) * (n / m) - 0.5


def nearest_voxels(n: int, m: int) -> NDArray[np.int64]:
    """The input voxel in which each output voxel's centre lies.

    Args:
        n: number of input voxels.
        m: number of output voxels.

    Returns:
        Array of m indices from 0 to n - 1.
    """
    return np.minimum((np.arange(m) + 0.5) * n / m, n - 1).astype(np.int64)


def axis_weights(n: int, m: int) -> Float32Array:
    """Linear interpolation along one axis as a matrix.

    Args:
        n: number of input voxels.
        m: number of output voxels.

    Returns:
        Array of shape (m, n); every row sums to 1. At the borders the outermost voxel is
        continued.
    """
    width = max(1.0, n / m)
    at = centres(n, m)[:, None]
    reach = int(np.ceil(width))
    taps = np.floor(at).astype(np.int64) + np.arange(1 - reach, reach + 1)
    weights = np.maximum(0.0, 1.0 - np.abs(taps - at) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((m, n))
    np.add.at(matrix, (np.arange(m)[:, None], np.clip(taps, 0, n - 1)), weights)
    return matrix.astype(np.float32)


def _band(matrix: Float32Array) -> tuple[NDArray[np.int64], Float32Array]:
    """What `axis_weights` are made of: few of a row are not 0, and these lie side by side.

    Args:
        matrix: shape (m, n).

    Returns:
        Which input voxels each output voxel is a mean of, and their weights: both (taps, m).
    """
    m, n = matrix.shape
    there = matrix > 0
    taps = int(there.sum(axis=1).max())
    rows = np.minimum(there.argmax(axis=1), n - taps) + np.arange(taps)[:, None]
    return rows, matrix[np.arange(m), rows]


def _means(plane: Float32Array, rows: NDArray[np.int64], weights: Float32Array) -> Float32Array:
    """Means of a plane's rows (n, x), as a `_band` says: (m, x).

    Not a product of matrices, which numpy leaves to BLAS: that takes all the zeros along, splits
    its sums, and so rounds them, by its own number of threads, and these get in the way of ours.
    """
    means: Float32Array = np.einsum("tyx,ty->yx", plane[rows], weights)
    return means


def resize(
    volume: NDArray[np.generic],
    shape: Sequence[int],
    clip: tuple[float, float] | None = None,
    threads: int = 1,
) -> Float32Array:
    """Resize a volume with linear interpolation, averaging where it shrinks.

    Works slice by slice, so that the full-size volume is never copied.

    Args:
        volume: array of shape (z, y, x), any real type.
        shape: the wanted shape (z, y, x).
        clip: values are limited to this range first (nnU-Net normalises before it resamples).
        threads: how many parts of the result are computed at once; it does not depend on it,
            nor on the threads of numpy's BLAS.

    Returns:
        float32 array of the wanted shape.
    """
    depth, height, width = shape
    along_z = axis_weights(volume.shape[0], depth)
    along_y = _band(axis_weights(volume.shape[1], height))
    along_x = _band(axis_weights(volume.shape[2], width))
    same_plane = volume.shape[1:] == (height, width)
    result = np.empty((depth, height, width), np.float32)

    def fill(start: int, stop: int) -> None:
        plane: dict[int, Float32Array] = {}  # in-plane resized input slices still needed
        for k in range(start, stop):
            needed = [int(z) for z in np.flatnonzero(along_z[k])]
            for z in [z for z in plane if z < needed[0]]:
                del plane[z]
            for z in needed:
                if z not in plane:
                    with np.errstate(over="ignore"):  # -1e308 may mark what was not measured
                        values = np.array(volume[z], dtype=np.float32, order="C")
                    if clip is not None:
                        np.clip(values, *clip, out=values)
                    if not same_plane:
                        across = _means(values, *along_y).T.copy()
                        values = _means(across, *along_x).T.copy()
                    plane[z] = values
            np.multiply(plane[needed[0]], along_z[k, needed[0]], out=result[k])
            for z in needed[1:]:
                result[k] += along_z[k, z] * plane[z]

    parts = max(1, min(threads, depth // 4))
    edges = [depth * part // parts for part in range(parts + 1)]
    if parts == 1:
        fill(0, depth)
    else:
        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(fill, edges[:-1], edges[1:]))
    return result


def resize_labels(labels: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Resize a label volume by the nearest voxel.

    Args:
        labels: array of shape (z, y, x).
        shape: the wanted shape (z, y, x).

    Returns:
        uint8 array of the wanted shape.
    """
    nearest = [nearest_voxels(n, m) for n, m in zip(labels.shape, shape, strict=True)]
    return np.ascontiguousarray(labels[np.ix_(*nearest)])
