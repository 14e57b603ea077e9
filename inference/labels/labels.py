"""Labels of a model's logits as its plan asks for them.

Usually the largest logit wins and logits are upsampled linearly: `inference.labels.decode`. A model
imported from nnU-Net may want more: regions that are painted one over the other, a coarse axis
along which the nearest slice is taken, splines of other orders.
"""

from __future__ import annotations

import numpy as np

from inference.grid import Spacing
from inference.labels.decode import Labels, decode
from inference.network.logits import Logits, floats
from inference.network.winners import Channels
from inference.nnunet.spline import Rule, resample
from inference.plan import Plan
from inference.preprocess.resample import Float32Array
from inference.stages import OnShare


def fill_labels(
    logits: Logits,
    plan: Plan,
    spacing: Spacing,
    new_spacing: Spacing,
    out: Labels,
    threads: int = 1,
    progress: OnShare | None = None,
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
    rule = Rule.of(plan.resampling["logits"]) if plan.channels else None
    axis = rule.separate_axis(spacing, new_spacing) if rule else None
    if not plan.regions:
        _upsample(logits, plan.label_values, out, rule, axis, threads, progress, winning)
        return
    out[:] = 0
    mask = np.empty(out.shape, np.uint8)
    nothing = np.zeros(logits.shape[1:], logits.dtype)
    for channel, value in enumerate(plan.label_values):
        # A region is where its logit is larger than 0, that of a class that is 0 everywhere.
        _upsample(np.stack([nothing, logits[channel]]), (0, 1), mask, rule, axis, threads)
        out[mask == 1] = value
        if progress:
            progress((channel + 1) / len(plan.label_values))


def _upsample(
    logits: Logits,
    values: tuple[int, ...],
    out: Labels,
    rule: Rule | None,
    axis: int | None,
    threads: int,
    progress: OnShare | None = None,
    winning: Channels | None = None,
) -> None:
    """Resample logits by a rule, apart along its axis if there is one, and take the largest."""
    if rule is None:
        decode(logits, values, out, threads, progress, winning=winning)
    elif rule.order == 1 and (axis is None or rule.order_z == 1):
        decode(logits, values, out, threads, progress, half=rule.half, winning=winning)
    elif rule.order == 1 and axis is not None and rule.order_z == 0:
        logits, out = np.moveaxis(logits, axis + 1, 1), np.moveaxis(out, axis, 0)
        decode(logits, values, out, threads, progress, nearest=True, half=rule.half)
    else:
        _by_splines(logits, values, out, rule, axis, threads, progress)


def _by_splines(
    logits: Logits,
    values: tuple[int, ...],
    out: Labels,
    rule: Rule,
    axis: int | None,
    threads: int,
    progress: OnShare | None,
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
        if progress:
            progress((channel + 1) / len(values))
