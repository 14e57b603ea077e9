"""Whether two images lie on one grid."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

_TOLERANCES = {"Size": 0.0, "Spacing": 1e-3, "Origin": 0.1, "Direction": 1e-3}  # voxels, mm, mm


def grid_difference(image: sitk.Image, other: sitk.Image | sitk.ImageFileReader) -> str | None:
    """In what an image's grid differs from another one's: "origin (5, 0, 0), not (0, 0, 0)".

    Args:
        image: the one whose values stand first.
        other: an image, or a reader that has read the header of one.

    Returns:
        The first of size, spacing (mm), origin (mm) and direction that differs; ``None`` if
        none does by more than a header's rounding.
    """
    for what, tolerance in _TOLERANCES.items():
        own, its = (getattr(one, f"Get{what}")()[:9] for one in (image, other))
        if len(own) != len(its) or not np.allclose(own, its, rtol=0, atol=tolerance):
            first, second = (", ".join(f"{v:.5g}" for v in values) for values in (own, its))
            return f"{what.lower()} ({first}), not ({second})"
    return None
