"""Labels on the CT's own grid, straight from the network's coarse logits.

The usual way is to upsample the logits of every class to full size by trilinear interpolation
and to take the largest (nnU-Net, MONAI). For a 512 x 512 x 300 CT and 14 classes that is 4.4 GB
and most of the time of a case. The same labels follow from much less:

- Trilinear interpolation is a weighted mean of a cell's corners, so a class that wins at all of
  them wins everywhere inside. Only cells on the boundary between classes need arithmetic.
- In such a cell a class whose largest corner is below another class's smallest cannot win.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.network.logits import Logits, floats
from inference.network.winners import Channels, all_winners, winners
from inference.preprocess.resample import Float32Array, centres
from inference.stages import OnShare

Labels = NDArray[np.uint8]
"""Label values."""


def decode(
    logits: Logits,
    label_values: Sequence[int],
    out: Labels,
    threads: int = 1,
    progress: OnShare | None = None,
    nearest: bool = False,
    half: bool = False,
    winning: Channels | None = None,
) -> None:
    """Write the labels of trilinearly upsampled logits.

    The result is that of resizing all channels to ``out``'s shape (edges aligned as in
    `inference.preprocess.resample`, the outermost voxels continued, no averaging where it shrinks)
    and taking the first largest channel, up to the rounding of float32.

    Args:
        logits: shape (C, d, h, w), C at most 256.
        label_values: the label that each channel stands for.
        out: where to write, shape (D, H, W); may be a turned view of another array. Every voxel
            is written.
        threads: how many slices are worked on at once.
        progress: is called with the finished share.
        nearest: whether each output slice takes the nearest plane along the first axis,
            interpolated along the other two alone.
        half: whether interpolated logits are rounded to half precision before they are compared,
            as nnU-Net stores them: of two that differ by less, the first one wins. Where one
            channel wins at all corners nothing is interpolated, nor rounded.
        winning: the logits' `all_winners`, where they are known already.
    """
    winning = all_winners(logits, threads) if winning is None else winning
    values = np.asarray(label_values, np.uint8)
    along_z, along_y, along_x = (
        _Axis.of(n, m, nearest and axis == 0)
        for axis, (n, m) in enumerate(zip(logits.shape[1:], out.shape, strict=True))
    )
    with ThreadPoolExecutor(max(1, threads)) as pool:

        def fill(k: int) -> None:
            z, share = int(along_z.cell[k]), float(along_z.share[k])
            after = along_z.after(z)
            if share == 0:
                after = z
            _fill_slice(
                (logits[:, z], logits[:, after]),
                (winning[z], winning[after]),
                share,
                (along_y, along_x),
                values,
                out[k],
                half,
            )

        for done, _ in enumerate(pool.map(fill, range(out.shape[0])), start=1):
            if progress:
                progress(done / out.shape[0])


@dataclass(frozen=True)
class _Axis:
    """Where the voxels of one output axis lie among those of the input.

    Cell ``j`` lies between the input voxels ``j`` and ``after(j)``.

    Attributes:
        n: number of input voxels.
        cell: the cell of every output voxel, ascending.
        share: how far it lies into the cell, 0 to 1.
        first: the first output voxel of every cell, and the end of the last cell.
    """

    n: int
    cell: NDArray[np.int64]
    share: Float32Array
    first: NDArray[np.int64]

    @staticmethod
    def of(n: int, m: int, nearest: bool = False) -> _Axis:
        at = np.clip(centres(n, m), 0, n - 1)
        if nearest:
            at = np.floor(at + 0.5)
        cells = max(1, n - 1)
        cell = np.minimum(at.astype(np.int64), cells - 1)
        first = np.searchsorted(cell, np.arange(cells + 1))
        return _Axis(n, cell, (at - cell).astype(np.float32), first)

    def after(self, cell: Any) -> Any:
        """The input voxel at the end of a cell (or of an array of cells)."""
        return np.minimum(cell + 1, self.n - 1)

    def cells_around(self, hits: NDArray[np.bool_]) -> tuple[int, int]:
        """The range of cells that have one of the marked input voxels at an end."""
        found = np.flatnonzero(hits)
        if not len(found):
            return 0, 0
        cells = len(self.first) - 1
        return max(0, int(found[0]) - 1), min(cells, int(found[-1]) + 1)


def _fill_slice(
    logits: tuple[Logits, Logits],
    winning: tuple[Channels, Channels],
    share: float,
    axes: tuple[_Axis, _Axis],
    values: Labels,
    out: Labels,
    half: bool,
) -> None:
    """Fill one output slice that lies between two logit planes.

    Args:
        logits: the planes before and after the slice, each (C, h, w).
        winning: the channels that win there, each (h, w).
        share: how far the slice lies from the first to the second.
        axes: the y and x axes.
        values: the label of each channel.
        out: the slice (H, W).
        half: whether interpolated logits are rounded to half precision.
    """
    along_y, along_x = axes
    out[:] = values[0]
    # Where channel 0 wins at all corners it wins: look only at the cells around the others.
    other = winning[0] != 0
    if share > 0:
        other |= winning[1] != 0
    top, bottom = along_y.cells_around(other.any(axis=1))
    left, right = along_x.cells_around(other.any(axis=0))
    if top == bottom or left == right:
        return
    end_y, end_x = int(along_y.after(bottom - 1)) + 1, int(along_x.after(right - 1)) + 1
    before, behind = (plane[:, top:end_y, left:end_x] for plane in logits)
    blended = floats(before)
    if share > 0:
        blended = blended * (1 - np.float32(share))
        blended += floats(behind) * np.float32(share)
        winner = winners(blended)
    else:
        winner = winning[0][top:end_y, left:end_x]

    rows, columns = np.arange(bottom - top), np.arange(right - left)
    rows_after = along_y.after(rows + top) - top
    columns_after = along_x.after(columns + left) - left
    corner = winner[: bottom - top, : right - left]
    beside, below = winner[rows][:, columns_after], winner[rows_after]
    mixed = corner != beside
    mixed |= corner != below[:, columns]
    mixed |= corner != below[:, columns_after]

    ys = slice(int(along_y.first[top]), int(along_y.first[bottom]))
    xs = slice(int(along_x.first[left]), int(along_x.first[right]))
    part = values[corner].take(along_y.cell[ys] - top, axis=0)
    part = part.take(along_x.cell[xs] - left, axis=1)

    # Cells without an output voxel inside (where the output is coarser) need no arithmetic.
    heights = np.diff(along_y.first[top : bottom + 1])
    widths = np.diff(along_x.first[left : right + 1])
    mixed &= (heights > 0)[:, None]
    mixed &= widths > 0
    row, column = np.nonzero(mixed)
    if len(row):
        tile = _fill_cells(
            blended,
            (row, rows_after[row], column, columns_after[column]),
            _shares(along_y, top, heights)[row],
            _shares(along_x, left, widths)[column],
            half,
        )
        y = along_y.first[row + top][:, None] - ys.start + np.arange(tile.shape[1])
        x = along_x.first[column + left][:, None] - xs.start + np.arange(tile.shape[2])
        # Tiles are as large as the largest cell: of smaller ones only a part exists.
        exists = (np.arange(tile.shape[1]) < heights[row][:, None])[:, :, None] & (
            np.arange(tile.shape[2]) < widths[column][:, None]
        )[:, None, :]
        index = y[:, :, None] * part.shape[1] + x[:, None, :]
        part.reshape(-1)[index[exists]] = values[tile[exists]]
    out[ys, xs] = part


def _shares(axis: _Axis, first_cell: int, lengths: NDArray[np.int64]) -> Float32Array:
    """How far the output voxels of each cell lie into it: (cells, most voxels in a cell)."""
    start = axis.first[first_cell : first_cell + len(lengths)]
    index = start[:, None] + np.arange(int(lengths.max()))
    shares: Float32Array = axis.share[np.minimum(index, len(axis.share) - 1)]
    return shares


def _fill_cells(
    plane: Float32Array,
    corners: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    share_y: Float32Array,
    share_x: Float32Array,
    half: bool,
) -> Channels:
    """The winning channel inside cells, by interpolation of the channels that can win.

    Args:
        plane: logits (C, h, w).
        corners: rows before and after, columns before and after, of N cells.
        share_y: where the rows of each cell lie in it, (N, rows).
        share_x: where its columns lie in it, (N, columns).
        half: whether interpolated logits are rounded to half precision.

    Returns:
        uint8 array (N, rows, columns).
    """
    top, bottom, left, right = corners
    width = plane.shape[2]
    flat = plane.reshape(plane.shape[0], -1)
    ends = np.stack(
        [
            flat.take(y * width + x, axis=1)
            for y, x in ((top, left), (top, right), (bottom, left), (bottom, right))
        ]
    )  # (4, C, N)
    can_win = ends.max(axis=0) >= ends.min(axis=0).max(axis=0)
    size = (share_y.shape[1], share_x.shape[1])
    best = np.full((len(top), *size), -np.inf, np.float32)
    winner = np.zeros(best.shape, np.uint8)
    for channel in np.flatnonzero(can_win.any(axis=1)):
        cells = np.flatnonzero(can_win[channel])
        a, b, c, d = ends[:, channel, cells]
        y, x = share_y[cells], share_x[cells][:, None, :]
        start = a[:, None] + (c - a)[:, None] * y
        stop = b[:, None] + (d - b)[:, None] * y
        value = start[:, :, None] + (stop - start)[:, :, None] * x
        if half:
            value = value.astype(np.float16).astype(np.float32)
        so_far = best[cells]
        better = value > so_far
        best[cells] = np.where(better, value, so_far)
        winner[cells] = np.where(better, np.uint8(channel), winner[cells])
    return winner
