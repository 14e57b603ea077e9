"""The picture of ``--preview``: three slices through the organs, labels in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.labels.decode import Labels
from inference.organs import colour_of
from inference.preprocess.orientation import turn_to
from inference.preprocess.resample import resize, resize_labels
from inference.write.files import appearing, write_image

WINDOW = (-160.0, 240.0)  # HU, soft tissue
_HEIGHT = 512  # pixels of the picture
_OPACITY = 0.45
_GAP = 8  # pixels between the slices


def write_preview(path: Path, image: sitk.Image, labels: Labels, offset: float = 0.0) -> None:
    """Write a PNG with an axial, a coronal and a sagittal slice.

    Each is the slice with the most labelled pixels (the middle one where nothing is labelled),
    as radiologists look at them: the patient's right on the left, the front up in the axial
    slice and to the left in the sagittal one.

    Args:
        path: where to.
        image: the CT.
        labels: uint8 array (z, y, x), as the CT is stored.
        offset: what has to be added to the CT's values to make them HU.

    Raises:
        OSError: it cannot be written.
    """
    turn = turn_to(image.GetDirection(), "LPS")
    volume = turn.apply(sitk.GetArrayViewFromImage(image))
    colours = turn.apply(labels)
    z, y, x = turn.reorder(image.GetSpacing()[::-1])
    at = _centre(colours)
    panels = [
        _panel(volume[at[0]], colours[at[0]], (y, x), offset),
        _panel(volume[::-1, at[1]], colours[::-1, at[1]], (z, x), offset),
        _panel(volume[::-1, :, at[2]], colours[::-1, :, at[2]], (z, y), offset),
    ]
    gap = np.zeros((_HEIGHT, _GAP, 3), np.uint8)
    picture = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    with appearing(path) as temporary:
        write_image(sitk.GetImageFromArray(picture, isVector=True), temporary)


def _centre(labels: Labels) -> list[int]:
    """The slice with the most labelled voxels along each axis."""
    counts = [np.zeros(n, np.int64) for n in labels.shape]
    for k, plane in enumerate(labels):
        marked = plane != 0
        counts[0][k] = np.count_nonzero(marked)
        if counts[0][k]:
            counts[1] += np.count_nonzero(marked, axis=1)
            counts[2] += np.count_nonzero(marked, axis=0)
    return [int(c.argmax()) if c.any() else len(c) // 2 for c in counts]


def _panel(
    plane: NDArray[Any], labels: Labels, spacing: tuple[float, float], offset: float
) -> NDArray[np.uint8]:
    """A slice in grey with its labels over it: RGB (height, width, 3), square pixels."""
    aspect = plane.shape[1] * spacing[1] / (plane.shape[0] * spacing[0])
    shape = (1, _HEIGHT, max(1, min(4 * _HEIGHT, round(_HEIGHT * aspect))))
    low, high = WINDOW
    grey = resize(plane[None], shape, (low - offset, high - offset))[0]
    rgb = np.repeat(((grey - (low - offset)) * (255 / (high - low)))[:, :, None], 3, axis=2)
    palette = np.zeros((256, 3), np.float32)
    for value in range(1, 256):
        palette[value] = colour_of(value)
    value = resize_labels(np.ascontiguousarray(labels)[None], shape)[0]
    share = np.where(value > 0, _OPACITY, 0.0)[:, :, None]
    mixed: NDArray[np.uint8] = (rgb * (1 - share) + palette[value] * share).round().astype(np.uint8)
    return mixed
