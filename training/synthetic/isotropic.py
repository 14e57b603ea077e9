"""Label maps of any spacing, resampled to the one of tissue maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.grid import Spacing
from inference.preprocess.resample import resize, resize_labels, shape_at_spacing
from training.data.tissues import SPACING

_FAR = 8  # pixels from an outline; what lies further away is as far


def isotropic(labels: NDArray[np.uint8], spacing: Spacing) -> NDArray[np.uint8]:
    """Resample a label map to `SPACING`, with the steps of thick slices smoothed away.

    Args:
        labels: (z, y, x).
        spacing: mm per axis (z, y, x).

    Returns:
        (z, y, x), of nearly the same extent.
    """
    shape = shape_at_spacing(labels.shape, spacing, (SPACING,) * 3)
    if spacing[0] <= 1.5 * SPACING:
        return resize_labels(labels, shape)
    # Shape-based interpolation (Raya and Udupa 1990): the signed distance to each organ's
    # outline is measured within the slices and interpolated between them.
    labels = resize_labels(labels, (labels.shape[0], *shape[1:]))
    nearest = np.zeros(shape, np.float32)
    result = np.zeros(shape, np.uint8)
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        box = (slice(None), *(slice(max(0, s.start - _FAR), s.stop + _FAR) for s in box[1:]))
        mask = labels[box] == value
        distance = np.stack([_signed_distance(part) for part in mask])
        distance = resize(distance, (shape[0], *mask.shape[1:]))
        wins = distance > nearest[box]
        nearest[box][wins] = distance[wins]
        result[box][wins] = value
    return result


def _signed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Pixels to the outline, positive inside, at most `_FAR`; an empty mask is far outside."""
    if not mask.any():
        return np.full(mask.shape, -_FAR, np.float32)
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask)
    limited: NDArray[np.float32] = np.clip(inside - outside, -_FAR, _FAR).astype(np.float32)
    return limited
