"""One pass over a volume, or as many windows as it takes.

How a volume is cut is the plan's ``tiling``:

- "whole": as few windows as memory allows, which is one for all but long scans. They overlap by
  a part of a patch and are faded into each other there.
- "window": patches of the plan's size with nnU-Net's overlap and Gaussian weights.

nnU-Net's own sums, with its roundings, are in `inference.nnunet.patches`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from inference.decode import OnShare
from inference.logits import Logits, check_room_for_logits, floats, stored
from inference.plan import Plan
from inference.resample import Float32Array


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
    outside: float,
    memory: int,
    progress: OnShare | None = None,
) -> Logits:
    """Logits of a whole volume.

    Args:
        network: the network.
        volume: float32 array (z, y, x), or (inputs, z, y, x), normalised.
        plan: its tiling, patch, overlap, multiple and bytes per voxel.
        outside: value around the volume where it must be padded.
        memory: bytes that may be used.
        progress: is called with the finished share.

    Returns:
        Logits (C, z, y, x) on the volume's grid, float32, float16 or bits of bfloat16. They may be
        the network's own memory.

    Raises:
        CaseError: the logits of several windows do not fit into the memory.
    """
    window = window_for(volume.shape[-3:], plan, memory)
    padded, inside = pad(volume, window, outside)
    grown = padded.shape[-3:]
    whole = plan.tiling == "whole"
    starts = [
        even_starts(n, size, _overlap(plan, axis))
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
    short = _short(grown, plan, memory)
    if whole:
        check_room_for_logits(_gathered(grown, window, plan, memory), memory)
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


def window_for(shape: Sequence[int], plan: Plan, memory: int) -> tuple[int, ...]:
    """The input (z, y, x) of each pass over a volume.

    Args:
        shape: voxels (z, y, x) of the volume on the network's grid.
        plan: its tiling, patch, overlap, multiple and bytes per voxel.
        memory: bytes that may be used.
    """
    if plan.tiling != "whole":
        return plan.patch
    return largest_window(padded_shape(shape, plan), plan, memory)


def padded_shape(shape: Sequence[int], plan: Plan) -> tuple[int, ...]:
    """The voxels (z, y, x) that a volume is grown to for a single pass.

    Multiples of the network's, and a patch at least: a network has seen nothing smaller, and of a
    slab of few slices its coarse levels would see little but the zeros that convolutions add.
    """
    return tuple(
        math.ceil(max(n, size) / step) * step
        for n, size, step in zip(shape, plan.patch, plan.multiple, strict=True)
    )


def largest_window(whole: tuple[int, ...], plan: Plan, memory: int) -> tuple[int, ...]:
    """The whole volume if memory allows it, else a part of it.

    The axis along which a window is longest, in patches, is cut into one window more until it is
    small enough or a patch. Few large windows overlap less than many patches.

    Args:
        whole: voxels (z, y, x) of the volume, multiples of ``plan.multiple``.
        plan: its patch, overlap, multiple and bytes per voxel; with 0 of these, nothing is cut.
        memory: bytes that a pass and the logits of the whole may use.
    """
    window, counts = list(whole), [1, 1, 1]
    each = plan.bytes_per_voxel
    while each and math.prod(window) * each + _gathered(whole, window, plan, memory) > memory:
        ratios = [n / size for n, size in zip(window, plan.patch, strict=True)]
        axis = ratios.index(max(ratios))
        if ratios[axis] <= 1:
            break
        counts[axis] += 1
        step = plan.multiple[axis]
        shared = (counts[axis] - 1) * _overlap(plan, axis)
        part = math.ceil((whole[axis] + shared) / counts[axis] / step) * step
        window[axis] = max(plan.patch[axis], part)
    return tuple(window)


def _gathered(whole: Sequence[int], window: Sequence[int], plan: Plan, memory: int) -> int:
    """Bytes of the logits that `_faded` gathers beside a pass, strip by strip."""
    voxels = 0
    strip = list(whole)
    for axis in range(3):
        if window[axis] < whole[axis]:
            voxels += math.prod(strip)
        strip[axis] = window[axis]
    return len(plan.label_values) * voxels * (2 if _short(whole, plan, memory) else 4)


def _short(whole: Sequence[int], plan: Plan, memory: int) -> bool:
    """Whether memory is so short that the logits of the whole are kept as float16."""
    return len(plan.label_values) * math.prod(whole) * 4 > memory // 2


def _overlap(plan: Plan, axis: int) -> int:
    """Voxels by which windows of the tiling "whole" overlap along an axis."""
    return min(plan.patch[axis] - 1, round(plan.overlap * plan.patch[axis]))


def even_starts(n: int, size: int, overlap: int) -> list[int]:
    """Where windows begin along an axis: as few as possible, evenly spread.

    Args:
        n: voxels of the axis, at least ``size``.
        size: voxels of a window; where that is less than ``n``, more than ``overlap``.
        overlap: voxels that neighbours share at least.
    """
    if n == size:
        return [0]
    steps = -(-(n - size) // (size - overlap))
    return [round((n - size) * i / steps) for i in range(steps + 1)]


def window_starts(n: int, size: int, overlap: float) -> list[int]:
    """Where windows begin along an axis: evenly spread, overlapping at least so much.

    This is nnU-Net's rule (Isensee et al. 2021), its roundings too.

    Args:
        n: voxels of the axis, at least ``size``.
        size: voxels of a window.
        overlap: the share of a window that the next one covers again; windows of one voxel, the
            slices of a 2D network, lie side by side.
    """
    steps = math.ceil((n - size) / max(1.0, size * (1 - overlap)))
    distance = (n - size) / steps if steps else 0.0
    return [round(distance * i) for i in range(steps + 1)]


def window_shares(n: int, size: int, starts: Sequence[int]) -> list[Float32Array]:
    """The weight of every voxel of every window along an axis.

    A Gaussian around the window's centre with nnU-Net's sigma, an eighth of the window, scaled
    so that at each voxel the weights of all windows that hold it add up to 1. Windows stand on
    a grid, so the product of three axes' weights does so too.

    Args:
        n: voxels of the axis.
        size: voxels of a window.
        starts: where the windows begin.

    Returns:
        One float32 array of ``size`` weights per window.
    """
    distance = np.arange(size) - (size - 1) / 2
    gaussian = np.exp(-0.5 * (distance / (size / 8)) ** 2)
    total = np.zeros(n)
    for start in starts:
        total[start : start + size] += gaussian
    return [(gaussian / total[s : s + size]).astype(np.float32) for s in starts]
