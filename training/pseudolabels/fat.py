"""Fat that networks call a part of the small organs which lie in it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from inference.grid import Spacing
from inference.hounsfield import NO_TISSUE
from inference.organs import LABEL_OF
from training.pseudolabels.corrections import tissue

_SMALL_SOLID = ("right_adrenal_gland", "left_adrenal_gland", "gallbladder")
_FAT = (-250.0, -50.0)
"""HU of fat, and of voxels of which it fills more than half; below there may be lung."""

_BLUR, _LITTLE = 1.5, 0.02
"""mm over which gas and lung blur into soft tissue, and how much of them leaves it as it is."""


def drop_fat(labels: np.ndarray, hu: np.ndarray, spacing: Spacing) -> None:
    """Take the fat around adrenal glands, gallbladder and esophagus from them, in place.

    A network calls a little of it theirs, and would teach the next one to call it more. The
    large organs gain nothing by it; pancreas, kidneys and bowel hold fat of their own. Between lung
    and its own gas the esophagus' wall looks like fat, and stays.

    Args:
        labels: uint8 (z, y, x).
        hu: of the same shape.
        spacing: mm per axis.
    """
    fat = tissue(hu, spacing, *_FAT)
    labels[np.isin(labels, [LABEL_OF[name] for name in _SMALL_SOLID]) & fat] = 0
    gas = (hu < NO_TISSUE).astype(np.float32)
    gas = ndimage.gaussian_filter(gas, [_BLUR / mm for mm in spacing])
    labels[(labels == LABEL_OF["esophagus"]) & fat & (gas < _LITTLE)] = 0
