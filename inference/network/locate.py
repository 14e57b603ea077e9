"""A cheap first look: where in the body the organs are, so that legs and head cost nothing.

The same network runs on a coarser grid first (a coarse-to-fine cascade, as in Isensee et al. 2021,
but with one network). What it finds there, with a margin, is the box that is then segmented on the
network's own grid. It need not be right: it must not miss. So where it finds nothing, or next to
nothing, the whole box is segmented; where it finds something near the box's end, the box is kept
to its end; and where little would be saved, nothing is cut.

Only models whose plan has a ``look`` do this, since it has to pay for itself, and a network has to
recognise organs at half their size.
"""

from __future__ import annotations

import cc3d
import numpy as np

from inference.grid import Box, Mask, bounding_box, voxel_millilitres
from inference.network.windows import Runner, predict_in_windows
from inference.network.winners import winners
from inference.plan import Plan
from inference.preprocess.preprocess import Prepared
from inference.preprocess.resample import resize, shape_at_spacing

_LEAST = 100.0  # ml: a look that finds less has not seen an abdomen
_PART = 2.0  # ml: smaller parts are noise
_WORTH = 0.8  # of the volume: more than that is not worth a second compile


def look_shape(shape: tuple[int, ...], plan: Plan) -> tuple[int, ...]:
    """Voxels (z, y, x) of the look's grid for a volume of so many on the network's grid."""
    steps = [step or 0.0 for step in plan.spacing]  # a plan with a look has them all
    return shape_at_spacing(shape, steps, [plan.look["spacing"]] * 3)


def locate(network: Runner, prepared: Prepared, plan: Plan, memory: int) -> Box | None:
    """The part of a CT that is worth segmenting.

    Args:
        network: the network.
        prepared: the whole of what would be segmented.
        plan: its ``look``: "spacing" of the coarse grid and "margin", both in millimetres.
        memory: bytes that may be used.

    Returns:
        Slices (z, y, x) of the CT (turned, as ``prepared.box``); ``None`` for all of
        ``prepared.box``.
    """
    values = prepared.values
    coarse = resize(values, look_shape(values.shape, plan))
    found = winners(predict_in_windows(network, coarse, plan, memory)) > 0
    spacing = [
        n * size / m for n, size, m in zip(values.shape, prepared.spacing, found.shape, strict=True)
    ]
    found = _without_small_parts(found, spacing)
    around = bounding_box(found)
    if around is None or found.sum() * voxel_millilitres(spacing) < _LEAST:
        return None
    box = []
    for axis, (whole, hit) in enumerate(zip(prepared.box, around, strict=True)):
        n = whole.stop - whole.start
        voxel = values.shape[axis] * prepared.spacing[axis] / n
        margin = plan.look["margin"]
        first = (hit.start * spacing[axis] - margin) / voxel
        last = (hit.stop * spacing[axis] + margin) / voxel
        box.append(
            slice(whole.start + max(0, int(first)), whole.start + min(n, int(np.ceil(last))))
        )
    share = np.prod(
        [(b.stop - b.start) / (w.stop - w.start) for b, w in zip(box, prepared.box, strict=True)]
    )
    return (box[0], box[1], box[2]) if share < _WORTH else None


def _without_small_parts(found: Mask, spacing: list[float]) -> Mask:
    """What is left when parts of a few voxels are taken away."""
    numbers = cc3d.connected_components(found, connectivity=26)
    large = np.bincount(numbers.ravel()) * voxel_millilitres(spacing) >= _PART
    large[0] = False
    return large[numbers]
