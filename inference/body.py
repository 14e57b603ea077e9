"""Where the patient is: the box around the body, without the table and separate arms."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]

_AIR_BELOW = -500.0  # HU
_LOOK_AT = 4.0  # mm: the volume is looked at in steps of about this size
_MARGIN = 8.0  # mm around what was found
_SMALLEST = 50.0  # ml: less than that is no body


def whole_box(shape: tuple[int, ...]) -> Box:
    """The box that is the whole volume."""
    depth, height, width = shape
    return slice(0, depth), slice(0, height), slice(0, width)


def body_box(volume: NDArray[Any], spacing: tuple[float, float, float], offset: float = 0.0) -> Box:
    """The box around the patient.

    Every few millimetres a voxel is looked at. What is denser than lung is opened, so that the
    table and its cover come off the back, and the largest connected part is the body; arms are
    part of it only where they touch it.

    Args:
        volume: CT, shape (z, y, x) in any orientation, any real type.
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
    mask = sitk.GetImageFromArray(np.pad(coarse, 2, mode="edge").astype(np.uint8))
    opened = sitk.BinaryMorphologicalOpening(mask, [1, 1, 1], sitk.sitkBall)
    parts = sitk.ConnectedComponent(opened, False)
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(parts)
    if not statistics.GetLabels():
        return whole_box(volume.shape)
    largest = max(statistics.GetLabels(), key=statistics.GetNumberOfPixels)
    voxel = np.prod(spacing) * np.prod(steps) / 1000
    if statistics.GetNumberOfPixels(largest) * voxel < _SMALLEST:
        return whole_box(volume.shape)

    x, y, z, width, height, depth = statistics.GetBoundingBox(largest)
    box = []
    for start, length, step, size, n in zip(
        (z, y, x), (depth, height, width), steps, spacing, volume.shape, strict=True
    ):
        margin = round(_MARGIN / size) + step
        first = (start - 2) * step - margin
        last = (start - 2 + length) * step + margin
        box.append(slice(max(0, first), min(n, last)))
    return box[0], box[1], box[2]
