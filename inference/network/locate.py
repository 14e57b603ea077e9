"""A cheap first look: where in the body the organs are, so that legs, head and fat cost nothing.

A small network of its own sees the whole CT on a grid so coarse that it takes next to no time (a
cascade from coarse to fine, as in Isensee et al. 2021). What it finds, with a margin, is the box
that is then segmented.

The look need not be right, it must not miss: where it finds nothing, or next to nothing, the whole
body is segmented. And where an organ that is then segmented reaches a face that the look cut, it
did miss: the whole body is segmented after all.

Only models whose plan has a ``look`` do this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from inference.grid import Box, Mask, Spacing, bounding_box, voxel_millilitres
from inference.machine import free_memory
from inference.network.tiling import padded_shape
from inference.network.windows import predict_in_windows
from inference.network.winners import Channels, winners
from inference.plan import Plan
from inference.preprocess.preprocess import place, preprocess

if TYPE_CHECKING:
    from inference.model import Model

_LEAST = 100.0  # ml: a look that finds less has not seen an abdomen
_PART = 5.0  # ml: smaller parts are noise
_SAMPLES = 2  # of the CT along each axis for a voxel of the look's grid: fewer are noisy, more slow
_REACHES = 0.2  # ml within a voxel of a face: less is a speck


def locate(
    look: Model,
    volume: NDArray[Any],
    spacing: Spacing,
    margin: Sequence[float],
    offset: float = 0.0,
) -> Box | None:
    """The part of a CT that is worth segmenting.

    Args:
        look: the model that looks.
        volume: the CT, shape (z, y, x), turned to the orientation of its plan.
        spacing: millimetres per axis (z, y, x).
        margin: millimetres per axis around what is found.
        offset: what has to be added to the volume's values to make them HU.

    Returns:
        Slices (z, y, x) of the volume; ``None`` where there is no telling.

    Raises:
        CaseError: there is not enough memory for it.
    """
    wanted = look.plan.spacing
    steps = [
        max(1, int((coarse or size) / size / _SAMPLES))
        for coarse, size in zip(wanted, spacing, strict=True)
    ]
    z, y, x = (slice(step // 2, None, step) for step in steps)  # the middle one of each few
    a, b, c = (size * step for size, step in zip(spacing, steps, strict=True))
    seen = preprocess(volume[z, y, x], (a, b, c), look.plan, offset, look.threads)
    logits = predict_in_windows(look.network, seen.values, look.plan, free_memory())
    found = _without_small_parts(winners(logits) > 0, seen.spacing)
    around = bounding_box(found)
    if around is None or found.sum() * voxel_millilitres(seen.spacing) < _LEAST:
        return None
    box = []
    for n, step, size, whole, hit, coarse, more in zip(
        volume.shape, steps, spacing, seen.box, around, seen.spacing, margin, strict=True
    ):
        first = whole.start * step + (hit.start * coarse - more) / size
        end = whole.start * step + (hit.stop * coarse + more) / size
        box.append(slice(max(0, int(first)), min(n, int(np.ceil(end)))))
    return box[0], box[1], box[2]


def part_of(body: Box, found: Box, spacing: Spacing, plan: Plan) -> Box:
    """The part of a body that is segmented where organs were found in a box.

    The network's input has a multiple of some voxels along each axis. What would be padded for that
    shows more of the body instead.

    Args:
        body: slices (z, y, x) of the CT.
        found: slices of the CT in which organs were found, with their margin.
        spacing: millimetres per axis of the CT.
        plan: of the network that segments.

    Returns:
        Slices of the CT; ``body`` where the two have nothing in common.
    """
    both = [
        slice(max(here.start, there.start), min(here.stop, there.stop))
        for here, there in zip(body, found, strict=True)
    ]
    if any(part.start >= part.stop for part in both):
        return body
    grid = padded_shape(place((both[0], both[1], both[2]), spacing, plan).shape, plan)
    box = []
    for whole, part, size, n, wanted in zip(body, both, spacing, grid, plan.spacing, strict=True):
        length = max(int(n * (wanted or size) / size), part.stop - part.start)
        before = (length - (part.stop - part.start)) // 2
        start = max(whole.start, min(part.start - before, whole.stop - length))
        box.append(slice(start, min(whole.stop, start + length)))
    return box[0], box[1], box[2]


def reaches_a_cut(winning: Channels, spacing: Spacing, box: Box, body: Box) -> bool:
    """Whether organs reach a face at which a look, and not the body's own box, ended the grid.

    Args:
        winning: the channels that win (z, y, x); the first is background.
        spacing: millimetres per axis of these.
        box: the part of the volume that they cover.
        body: the part that they would cover without the look.
    """
    least = _REACHES / voxel_millilitres(spacing)
    for axis, (here, whole) in enumerate(zip(box, body, strict=True)):
        faces = [0] * (here.start > whole.start) + [-1] * (here.stop < whole.stop)
        if any(np.count_nonzero(winning.take(face, axis=axis)) > least for face in faces):
            return True
    return False


def _without_small_parts(found: Mask, spacing: Spacing) -> Mask:
    """What is left when parts of a few voxels are taken away."""
    numbers = cc3d.connected_components(found, connectivity=26)
    large = np.bincount(numbers.ravel()) * voxel_millilitres(spacing) >= _PART
    large[0] = False
    return large[numbers]
