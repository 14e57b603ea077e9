"""How a volume is cut into windows: how large, how many, where they begin, what each counts.

That is the plan's ``tiling``:

- "whole": as few windows as memory allows, which is one for all but long scans. They overlap by
  a part of a patch and are faded into each other there.
- "window": patches of the plan's size with nnU-Net's overlap and Gaussian weights.
- "nnunet": the same patches, added up by nnU-Net's own sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from inference.plan import Plan
from inference.preprocess.resample import Float32Array


def window_for(shape: Sequence[int], plan: Plan, memory: int) -> tuple[int, ...]:
    """The input (z, y, x) of each pass over a volume.

    Args:
        shape: voxels (z, y, x) of the volume on the network's grid.
        plan: its tiling, patch, overlap, multiple and what a pass needs.
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
        plan: its patch, overlap, multiple and what a pass needs; where that is unknown, nothing
            is cut.
        memory: bytes that a pass and the logits of the whole may use.
    """
    window, counts = list(whole), [1, 1, 1]
    while needed := plan.pass_bytes(math.prod(window)):
        if needed + gathered_bytes(whole, window, plan, memory) <= memory:
            break
        ratios = [n / size for n, size in zip(window, plan.patch, strict=True)]
        axis = ratios.index(max(ratios))
        if ratios[axis] <= 1:
            break
        counts[axis] += 1
        step = plan.multiple[axis]
        shared = (counts[axis] - 1) * overlap_of(plan, axis)
        part = math.ceil((whole[axis] + shared) / counts[axis] / step) * step
        window[axis] = max(plan.patch[axis], part)
    return tuple(window)


def gathered_bytes(whole: Sequence[int], window: Sequence[int], plan: Plan, memory: int) -> int:
    """Bytes of the logits that `predict_in_windows` gathers beside a pass, strip by strip."""
    voxels = 0
    strip = list(whole)
    for axis in range(3):
        if window[axis] < whole[axis]:
            voxels += math.prod(strip)
        strip[axis] = window[axis]
    # A network in f32 gives logits of four bytes; so does the mean over mirrored passes.
    exact = plan.precision == "f32" or bool(plan.mirror)
    half = not exact or memory_is_short(whole, plan, memory)
    return len(plan.label_values) * voxels * (2 if half else 4)


def memory_is_short(whole: Sequence[int], plan: Plan, memory: int) -> bool:
    """Whether memory is so short that float32 logits of the whole are kept as float16."""
    return len(plan.label_values) * math.prod(whole) * 4 > memory // 2


def overlap_of(plan: Plan, axis: int) -> int:
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
