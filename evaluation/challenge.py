"""The challenge's rules as numbers: column names, tolerances and the organs scored on a slab.

Taken from the organisers' description of FLARE 2024, task 2 ("Abdominal CT organ segmentation on
laptop"). Everything here is theirs; what we do beyond it stands in `evaluation.scoring`.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference.organs import LABEL_OF, ORGANS

TIME_LIMIT = 60.0
"""Seconds per case that the organisers allow before they count a case as too slow."""

MEMORY = "8g"
"""What the organisers' containers may use, as Docker writes it."""

SHORT_NAMES: dict[str, str] = {
    "liver": "Liver",
    "right_kidney": "RK",
    "spleen": "Spleen",
    "pancreas": "Pancreas",
    "aorta": "Aorta",
    "inferior_vena_cava": "IVC",
    "right_adrenal_gland": "RAG",
    "left_adrenal_gland": "LAG",
    "gallbladder": "Gallbladder",
    "esophagus": "Esophagus",
    "stomach": "Stomach",
    "duodenum": "Duodenum",
    "left_kidney": "LK",
}
"""Organ name to the name that it has in the organisers' tables."""

COLUMN_OF: dict[int, str] = {label: SHORT_NAMES[name] for label, name in ORGANS.items()}
"""Label value to the organisers' column name, in their order."""

TOLERANCE_MM: dict[int, float] = {
    LABEL_OF[name]: millimetres
    for millimetres, names in {
        5.0: ("liver", "pancreas", "stomach"),
        3.0: ("right_kidney", "left_kidney", "spleen", "esophagus"),
        2.0: (
            "aorta",
            "inferior_vena_cava",
            "right_adrenal_gland",
            "left_adrenal_gland",
            "gallbladder",
        ),
        7.0: ("duodenum",),
    }.items()
    for name in names
}
"""Label value to the distance in mm within which two surfaces count as the same (NSD)."""

SLAB_LABELS: frozenset[int] = frozenset(
    LABEL_OF[name] for name in ("aorta", "inferior_vena_cava", "esophagus")
)
"""Labels scored only on the slices on which the reference has them."""

LOWEST_DSC_FOR_NSD = 0.2
"""Below this DSC the NSD is 0 and is not computed."""

DECIMALS = 4
"""Decimals to which every value is rounded."""

METRICS: tuple[str, str] = ("DSC", "NSD")


def columns(labels: Sequence[int] = tuple(ORGANS)) -> list[str]:
    """The header of the organisers' table: ``Name``, every DSC, then every NSD."""
    return ["Name"] + [f"{COLUMN_OF[label]}_{metric}" for metric in METRICS for label in labels]
