"""One pass over a volume, or as many windows as it takes, put together again.

How a volume is cut is arithmetic: `inference.network.tiling`. nnU-Net's own sums, with its
roundings, are in `inference.nnunet.patches`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from inference.network.logits import Logits, check_room_for_logits, floats, stored
from inference.network.tiling import (
    even_starts,
    gathered_bytes,
    memory_is_short,
    overlap_of,
    window_for,
    window_shares,
    window_starts,
)
from inference.plan import Plan
from inference.preprocess.resample import Float32Array
from inference.stages import OnShare


class Runner(Protocol):
    """What `predict_in_windows` needs of a network; training's evaluation passes one of PyTorch."""

    def run(self, volume: Float32Array) -> Logits:
        """Logits (C, z, y, x) of a normalised volume, (z, y, x) or (inputs, z, y, x).

        The next call may overwrite them.
        """


def predict_in_windows(
    network: Runner,
    volume: Float32Array,
    plan: Plan,
    memory: int,
    progress: OnShare | None = None,
) -> Logits:
    """Logits of a whole volume.

    Args:
        network: the network.
        volume: float32 array (z, y, x), or (inputs, z, y, x), normalised.
        plan: its tiling, patch, overlap, multiple and what a pass needs, and what lies around the
            volume where it must be padded (`Plan.air`).
        memory: bytes that may be used.
        progress: is called with the finished share.

    Returns:
        Logits (C, z, y, x) on the volume's grid, float32, float16 or bits of bfloat16. They may be
        the network's own memory.

    Raises:
        CaseError: the logits of several windows do not fit into the memory.
    """
    window = window_for(volume.shape[-3:], plan, memory)
    padded, inside = pad(volume, window, plan.air)
    grown = padded.shape[-3:]
    whole = plan.tiling == "whole"
    starts = [
        even_starts(n, size, overlap_of(plan, axis))
        if whole
        else window_starts(n, size, plan.overlap)
        for axis, (n, size) in enumerate(zip(grown, window, strict=True))
    ]
    count = math.prod(len(s) for s in starts)
    done = 0

    def run(part: Float32Array) -> Logits:
        nonlocal done
        logits = network.run(part)
        done += 1
        if progress:
            progress(done / count)
        return logits

    if count == 1:
        return run(padded)[inside]
    short = memory_is_short(grown, plan, memory)
    if whole:
        check_room_for_logits(gathered_bytes(grown, window, plan, memory), memory)
        return _faded(run, padded, window, starts, short)[inside]
    channels = len(plan.label_values)
    check_room_for_logits(channels * math.prod(grown) * (2 if short else 4), memory)
    return _summed(run, padded, window, starts, short, channels)[inside]


def _faded(
    run: Callable[[Float32Array], Logits],
    volume: Float32Array,
    window: Sequence[int],
    starts: Sequence[Sequence[int]],
    short: bool,
    axis: int = 0,
) -> Logits:
    """Logits of a volume from windows that are faded into each other where they overlap.

    Along each axis from this one on: the strips that lie one after the other are made of their
    own windows first.

    Args:
        run: the network.
        volume: shape (..., z, y, x).
        window: voxels (z, y, x) of a window.
        starts: where windows begin along each axis.
        short: whether memory is so short that float32 is kept as float16.
        axis: 0: z, 1: y, 2: x.
    """
    if axis == 3:
        return run(volume)
    at = axis - 3
    size, end = window[axis], 0
    total: Logits | None = None
    for start in starts[axis]:
        here = _along(at, start, start + size)
        part = _faded(run, volume[here], window, starts, short, axis + 1)
        if len(starts[axis]) == 1:
            return part
        if total is None:
            shape = list(part.shape)
            shape[at] = volume.shape[at]
            kind = np.float16 if short and part.dtype == np.float32 else part.dtype
            total = np.empty(shape, kind)
        # Faded in the middle half of what they share: beyond it they see a window's face.
        shared = max(0, end - start)
        first, last = shared // 4, shared - shared // 4
        share = ((np.arange(last - first) + 0.5) / max(1, last - first)).astype(np.float32)
        share = share.reshape([-1] + [1] * (2 - axis))
        faded = _along(at, start + first, start + last)
        for old, new in zip(total, part, strict=True):  # channels: little memory for each
            before, after = floats(old[faded]), floats(new[_along(at, first, last)])
            old[faded] = stored(before + (after - before) * share, total.dtype)
        end = start + size
        total[_along(at, start + last, end)] = part[_along(at, last, size)]
    assert total is not None
    return total


def _summed(
    run: Callable[[Float32Array], Logits],
    volume: Float32Array,
    window: Sequence[int],
    starts: Sequence[Sequence[int]],
    short: bool,
    channels: int,
) -> Logits:
    """Logits of a volume as the weighted mean of all windows that hold a voxel."""
    grown = volume.shape[-3:]
    total: Logits = np.zeros((channels, *grown), np.float16 if short else np.float32)
    shares = [window_shares(n, size, s) for n, size, s in zip(grown, window, starts, strict=True)]
    for z, share_z in zip(starts[0], shares[0], strict=True):
        for y, share_y in zip(starts[1], shares[1], strict=True):
            for x, share_x in zip(starts[2], shares[2], strict=True):
                here = box_at((z, y, x), window)
                share = share_z[:, None, None] * share_y[:, None] * share_x
                for channel, values in enumerate(run(volume[here])):
                    total[channel][here] += floats(values) * share
    return total


def _along(axis: int, start: int, stop: int) -> tuple[Any, ...]:
    """The index of a range along one of the last three axes (-3, -2 or -1)."""
    return (..., slice(start, stop), *[slice(None)] * (-1 - axis))


def pad(
    volume: Float32Array, least: Sequence[int], outside: float
) -> tuple[Float32Array, tuple[Any, ...]]:
    """Grow a volume to a size at least, evenly on both sides.

    Args:
        volume: float32 array (..., z, y, x).
        least: voxels (z, y, x); axes that are longer stay as they are.
        outside: value of what is added.

    Returns:
        The grown volume (the volume itself where it is large enough), and the index of what was
        given in it.
    """
    shape = volume.shape[-3:]
    grown = [max(n, size) for n, size in zip(shape, least, strict=True)]
    before = [(size - n) // 2 for n, size in zip(shape, grown, strict=True)]
    inside = box_at(before, shape)
    if list(shape) == grown:
        return volume, inside
    padded = np.full((*volume.shape[:-3], *grown), outside, np.float32)
    padded[inside] = volume
    return padded, inside


def box_at(start: Sequence[int], size: Sequence[int]) -> tuple[Any, ...]:
    """The index of a box of a size (z, y, x) in an array (..., z, y, x)."""
    return (..., *(slice(s, s + n) for s, n in zip(start, size, strict=True)))
