"""The label numbers and names that every part of the project agrees on.

The 13 abdominal organs of the FLARE 2024 challenge (task 2). 0 is background.
"""

from __future__ import annotations

import re

ORGANS: dict[int, str] = {
    1: "liver",
    2: "right_kidney",
    3: "spleen",
    4: "pancreas",
    5: "aorta",
    6: "inferior_vena_cava",
    7: "right_adrenal_gland",
    8: "left_adrenal_gland",
    9: "gallbladder",
    10: "esophagus",
    11: "stomach",
    12: "duodenum",
    13: "left_kidney",
}
"""Label value to organ name, in the challenge's order."""

LABEL_OF: dict[str, int] = {name: label for label, name in ORGANS.items()}
"""Organ name to label value."""

_OTHER_NAMES = {
    "ivc": "inferior_vena_cava",
    "postcava": "inferior_vena_cava",
    "vena_cava": "inferior_vena_cava",
    "rk": "right_kidney",
    "lk": "left_kidney",
    "rag": "right_adrenal_gland",
    "lag": "left_adrenal_gland",
    "right_adrenal": "right_adrenal_gland",
    "left_adrenal": "left_adrenal_gland",
    "oesophagus": "esophagus",
    "gall_bladder": "gallbladder",
    "arota": "aorta",  # so AMOS22 writes it
}
"""What else they are called, in lower case: by the challenge's tables and by data sets."""

COLOURS: dict[int, tuple[int, int, int]] = {
    1: (221, 130, 101),
    2: (139, 69, 19),
    3: (157, 108, 162),
    4: (249, 180, 111),
    5: (224, 60, 49),
    6: (0, 122, 204),
    7: (249, 230, 90),
    8: (180, 210, 60),
    9: (60, 160, 75),
    10: (150, 220, 255),
    11: (250, 128, 190),
    12: (90, 200, 200),
    13: (120, 70, 220),
}
"""RGB colours (0 to 255) in which previews and overlays show the organs."""


def label_of(name: str) -> int | None:
    """The label value of an organ by any usual name ("RK", "kidney_right", "postcava").

    Args:
        name: in any case, its words parted by spaces, hyphens or underscores.

    Returns:
        ``None`` if it is the name of none of the 13.
    """
    plain = re.sub(r"[\s\-]+", "_", name.strip().lower())
    plain = re.sub(r"^(kidney|adrenal_gland)_(left|right)$", r"\2_\1", plain)
    return LABEL_OF.get(_OTHER_NAMES.get(plain, plain))


def colour_of(label: int) -> tuple[int, int, int]:
    """The colour of a label (1 to 255); imported models may have more of them than there are."""
    return COLOURS[1 + (label - 1) % len(COLOURS)]
