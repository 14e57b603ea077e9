"""Where the patient is: the box around the body, without the table and separate arms."""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from inference.grid import Box, Spacing, voxel_millilitres, whole_box
from inference.preprocess.morphology import opened

_AIR_BELOW = -500.0  # HU
_LOOK_AT = 4.0  # mm: the volume is looked at in steps of about this size
_MARGIN = 8.0  # mm around what was found
_SMALLEST = 50.0  # ml: less than that is no body
_PIECE = 0.1  # of the largest part: less is no part of the trunk


def body_box(volume: NDArray[Any], spacing: Spacing, offset: float = 0.0) -> Box:
    """The box around the patient.

    Every few millimetres a voxel is looked at. What is denser than lung is opened, so that the
    table and its cover come off the back, and the largest connected part is the body; arms are
    part of it only where they touch it. It goes on beyond slices that are blank.

    Args:
        volume: CT, shape (z, y, x), slice by slice, in any orientation, any real type.
        spacing: millimetres per axis (z, y, x).
        offset: what has to be added to the volume's values to make them HU.

    Returns:
        Slices (z, y, x) of the box; the whole volume where no body is found.
    """
    steps = [
        max(1, min(round(_LOOK_AT / size), n // 8))
        for size, n in zip(spacing, volume.shape, strict=True)
    ]
    coarse = volume[:: steps[0], :: steps[1], :: steps[2]] > _AIR_BELOW - offset
    # The frame continues the outermost voxels: a body cut by the volume's faces stays whole.
    parts = cc3d.connected_components(opened(np.pad(coarse, 2, mode="edge")), connectivity=6)
    found = cc3d.statistics(parts)
    counts = found["voxel_counts"][1:]
    voxel = voxel_millilitres(spacing) * np.prod(steps)
    if not len(counts) or counts.max() * voxel < _SMALLEST:
        return whole_box(volume.shape)

    largest = found["bounding_boxes"][1 + int(counts.argmax())]
    pieces = [
        there
        for there, count in zip(found["bounding_boxes"][1:], counts, strict=True)
        if there is largest or (count >= _PIECE * counts.max() and _goes_on(largest, there))
    ]
    box = []
    for ends, step, size, n in zip(
        zip(*pieces, strict=True), steps, spacing, volume.shape, strict=True
    ):
        margin = round(_MARGIN / size) + step
        first = (min(there.start for there in ends) - 2) * step - margin
        last = (max(there.stop for there in ends) - 2) * step + margin
        box.append(slice(max(0, first), min(n, last)))
    return box[0], box[1], box[2]


def _goes_on(body: Box, other: Box) -> bool:
    """Whether a part lies before or behind the body along z, and not beside it."""
    apart, *beside = (
        min(a.stop, b.stop) <= max(a.start, b.start) for a, b in zip(body, other, strict=True)
    )
    return apart and not any(beside)
