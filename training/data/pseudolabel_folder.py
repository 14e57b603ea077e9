"""A folder of pseudo-labels: which organs it tells of which case, and the cases that it labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inference.organs import LABEL_OF, ORGANS
from training.data.case import Case
from training.data.tissues import UNKNOWN
from training.json_file import read_json

ANNOTATED = "annotated.json"
"""In a folder of pseudo-labels: which organs were kept in which case, by name."""


def label_file(folder: Path, name: str) -> Path:
    """Where a case's pseudo-labels lie, whether they are there or not.

    Args:
        folder: of the pseudo-labels.
        name: of the case.
    """
    return folder / f"{name}.nii.gz"


def read_annotated(folder: Path) -> dict[str, list[str]]:
    """Which organs a folder of pseudo-labels tells, by case; empty where there is none.

    Args:
        folder: the folder, which need not be there.

    Raises:
        ValueError: what is written there cannot be read, or names no organs.
    """
    path = folder / ANNOTATED
    kept = read_json(path) if path.is_file() else {}
    for name, organs in kept.items():
        if not isinstance(organs, list) or not set(organs) <= set(LABEL_OF):
            raise ValueError(f"{path}: {name}: {organs} is no list of organs")
    return kept


def with_pseudolabels(case: Case, folder: Path | None, organs: list[str]) -> Case:
    """A case with its pseudo-labels; as it is, where it has labels or none are told of it.

    Args:
        case: of the data folder.
        folder: of the pseudo-labels.
        organs: that these tell of the case, by name.
    """
    if case.kind != "unlabelled" or folder is None or not organs:
        return case
    return replace(
        case,
        kind="pseudo",
        label_file=label_file(folder, case.name),
        annotated=tuple(LABEL_OF[organ] for organ in organs),
        values={value: value for value in (0, *ORGANS, UNKNOWN)},
    )
