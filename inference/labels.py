"""Labels of a model's logits as its plan asks for them.

Usually the largest logit wins and logits are upsampled linearly: `inference.decode`. A model
imported from nnU-Net may want more: regions that are painted one over the other, a coarse axis
along which the nearest slice is taken, splines of other orders.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from inference.decode import Channels, Labels, Progress, decode
from inference.grid import Spacing
from inference.logits import Logits, floats
from inference.plan import Plan
from inference.resample import Float32Array
from inference.spline import Rule, resample


def fill_labels(
    logits: Logits,
    plan: Plan,
    spacing: Spacing,
    new_spacing: Spacing,
    out: Labels,
    threads: int = 1,
    progress: Progress | None = None,
    winning: Channels | None = None,
) -> None:
    """Write the labels of logits on a CT's own grid.

    Args:
        logits: shape (C, d, h, w).
        plan: what the channels mean and how they are resampled.
        spacing: millimetres per axis (z, y, x) of ``logits``.
        new_spacing: millimetres per axis of ``out``.
        out: where to write, uint8 (D, H, W); may be a turned view. Every voxel is written.
        threads: how many slices are worked on at once.
        progress: is called with the finished share.
        winning: the channels (d, h, w) with the largest logits, where they are known already.
    """
    if not plan.regions:
        upsample = _upsampler(plan, spacing, new_spacing, winning)
        upsample(logits, plan.label_values, out, threads, progress)
        return
    out[:] = 0
    upsample = _upsampler(plan, spacing, new_spacing)
    mask = np.empty(out.shape, np.uint8)
    nothing = np.zeros(logits.shape[1:], logits.dtype)
    for channel, value in enumerate(plan.label_values):
        # A region is where its logit is larger than 0, that of a class that is 0 everywhere.
        upsample(np.stack([nothing, logits[channel]]), (0, 1), mask, threads, None)
        out[mask == 1] = value
        if progress:
            progress((channel + 1) / len(plan.label_values))


_Upsampler = Callable[[Logits, tuple[int, ...], Labels, int, Progress | None], None]


def _upsampler(
    plan: Plan, spacing: Spacing, new_spacing: Spacing, winning: Channels | None = None
) -> _Upsampler:
    """What resamples logits and takes the largest; it may know those of the logits already."""
    rule = Rule.of(plan.resampling["logits"]) if plan.channels else None
    if rule is None:
        return partial(decode, winning=winning)
    axis = rule.separate_axis(spacing, new_spacing)

    def in_slices(
        logits: Logits, values: tuple[int, ...], out: Labels, threads: int, tell: Progress | None
    ) -> None:
        assert axis is not None
        logits = np.moveaxis(logits, axis + 1, 1)
        decode(
            logits, values, np.moveaxis(out, axis, 0), threads, tell, nearest=True, half=rule.half
        )

    def by_splines(
        logits: Logits, values: tuple[int, ...], out: Labels, threads: int, tell: Progress | None
    ) -> None:
        best: Float32Array | None = None
        for channel, value in enumerate(values):
            found = resample(floats(logits[channel]), out.shape, rule, axis, threads)
            if rule.half:
                found = found.astype(np.float16).astype(np.float32)
            if best is None:
                best = np.array(found)
                out[:] = value
            else:
                better = found > best
                out[better] = value
                np.maximum(best, found, out=best)
            if tell:
                tell((channel + 1) / len(values))

    if rule.order == 1 and (axis is None or rule.order_z == 1):
        return partial(decode, half=rule.half, winning=winning)
    if rule.order == 1 and rule.order_z == 0:
        return in_slices
    return by_splines
