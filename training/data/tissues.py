"""The tissues that a body is made of, how named structures map to them, and where they may lie.

Numbers 1 to 13 are the organs of `inference.organs`, so a tissue map contains its own labels.
"""

from __future__ import annotations

import re
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from inference.organs import LABEL_OF, ORGANS, label_of

SPACING = 2.0
"""Isotropic spacing in mm of tissue maps."""

UNKNOWN = 255
"""Label of voxels that nothing is learnt from."""


class Tissue(IntEnum):
    """Tissue numbers beyond the 13 organs."""

    NONE = 0  # not labelled: outside the body, fat, muscle or mesentery
    MUSCLE = 14
    BONE = 15
    LUNG = 16
    AIRWAY = 17
    HEART = 18
    VEIN = 19
    ARTERY = 20
    SMALL_BOWEL = 21
    COLON = 22
    BLADDER = 23
    NERVE = 24
    CARTILAGE = 25
    SOFT = 26


TISSUE_COUNT = 1 + max(Tissue)
"""Number of tissue values, 0 included."""

_IN_HEART = 0.25  # of the ring around a vena cava

_RIGHT_AND_LEFT = (
    ("liver", "spleen"),
    ("right_kidney", "left_kidney"),
    ("right_adrenal_gland", "left_adrenal_gland"),
)

_PATTERNS: tuple[tuple[str, Tissue], ...] = (
    (r"autochthon|gluteus|iliopsoas", Tissue.MUSCLE),
    (r"costal_cartilages", Tissue.CARTILAGE),
    (r"vertebrae|rib_|sacrum|hip_|femur|humerus|scapula|clavicula|sternum|skull", Tissue.BONE),
    (r"lung_", Tissue.LUNG),
    (r"trachea", Tissue.AIRWAY),
    (r"heart|atrial", Tissue.HEART),
    (r"vein|vena|venous", Tissue.VEIN),
    (r"artery|trunk", Tissue.ARTERY),
    (r"small_bowel", Tissue.SMALL_BOWEL),
    (r"colon", Tissue.COLON),
    (r"bladder", Tissue.BLADDER),
    (r"spinal_cord|brain", Tissue.NERVE),
    (r"prostate|thyroid|face", Tissue.SOFT),
)


def tissue_of(name: str) -> int:
    """The tissue number of a structure named as in TotalSegmentator ("vertebrae_L1").

    Raises:
        ValueError: the name fits no tissue.
    """
    if organ := label_of(name):
        return organ
    if side := re.fullmatch(r"kidney_cyst_(left|right)", name):
        return LABEL_OF[f"{side[1]}_kidney"]
    for pattern, tissue in _PATTERNS:
        if re.search(pattern, name):
            return int(tissue)
    raise ValueError(f"no tissue is known for the structure {name!r}")


def tissues_from_names(labels: NDArray[np.uint8], names: dict[str, str]) -> NDArray[np.uint8]:
    """Turn a label map of named structures into a tissue map.

    Args:
        labels: any shape; values are keys of ``names`` or 0.
        names: label value, as JSON gives it (a string), to structure name.

    Returns:
        uint8 array of the same shape.

    Raises:
        ValueError: a value has no name, or a name fits no tissue.
    """
    table = np.zeros(256, np.uint8)
    for value, name in names.items():
        table[int(value)] = tissue_of(name)
    if nameless := set(np.unique(labels).tolist()) - {0, *map(int, names)}:
        raise ValueError(f"the structures {', '.join(map(str, sorted(nameless)))} have no name")
    return table[labels]


def organs_only(tissues: Tensor) -> Tensor:
    """Keep the 13 organs of a tissue map, 0 elsewhere."""
    return torch.where(tissues <= max(ORGANS), tissues, torch.zeros_like(tissues))


def on_wrong_sides(labels: NDArray[np.uint8]) -> set[int]:
    """Organs of a pair of which the right one lies left of the left one, if any.

    Args:
        labels: (z, y, x) in LPS orientation, in which x runs to the patient's left.
    """
    wrong: set[int] = set()
    for right, left in _RIGHT_AND_LEFT:
        pair = LABEL_OF[right], LABEL_OF[left]
        places = [np.nonzero(labels == value)[2] for value in pair]
        if all(map(len, places)) and places[0].mean() > places[1].mean():
            wrong.update(pair)
    return wrong


def end_at_heart(tissues: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A whole-body map whose vena cava ends where it enters the heart.

    TotalSegmentator's goes on into the right atrium: what lies above the liver, and is a quarter
    surrounded by heart or more, is heart.

    Args:
        tissues: (z, y, x), of which z runs to the head.

    Returns:
        A copy (z, y, x).
    """
    tissues = tissues.copy()
    cava = tissues == LABEL_OF["inferior_vena_cava"]
    liver = np.flatnonzero((tissues == LABEL_OF["liver"]).any(axis=(1, 2)))
    for z in range(int(liver[-1]) + 1 if len(liver) else 0, len(tissues)):
        ring = ndimage.binary_dilation(cava[z], iterations=2) & ~cava[z]
        if ring.any() and (tissues[z][ring] == Tissue.HEART).mean() >= _IN_HEART:
            tissues[z:][cava[z:]] = Tissue.HEART
            break
    return tissues
