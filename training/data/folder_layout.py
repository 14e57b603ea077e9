"""Cases in the layout of one folder a case.

``cases/NAME`` (``ct.nii.gz`` and ``labels.nii.gz``), ``labelmaps/NAME`` (``labels.nii.gz`` alone),
``unlabelled/NAME`` (``ct.nii.gz`` alone) and ``pseudo/NAME`` (both, labels made by a network).
Labels have our numbers. ``full_labels.nii.gz`` may add all tissues, with
``full_labels_names.json``, ``{"1": "spleen", "2": "kidney_right", ...}``: TotalSegmentator's
names. ``meta.json``, all of it optional, ``{"annotated_labels": [1, 3], "original_dataset": "...",
"licence": "..."}``: organs that were annotated, and the model card's source.
"""

from __future__ import annotations

from pathlib import Path

from inference.organs import ORGANS
from training.data.case import Case
from training.json_file import read_json


def folders_of_cases(folder: Path) -> list[Case]:
    """The cases that have a folder each, ordered by kind and name.

    Args:
        folder: the data folder.

    Raises:
        ValueError: a case's description cannot be read, or names labels that are not ours.
    """
    cases = []
    for directory, kind in (
        ("cases", "labelled"),
        ("pseudo", "pseudo"),
        ("labelmaps", "labelmap"),
        ("unlabelled", "unlabelled"),
    ):
        for path in sorted((folder / directory).glob("[!.]*/")):
            meta = read_json(path / "meta.json") if (path / "meta.json").is_file() else {}
            labelled = kind != "unlabelled"
            everything = [*ORGANS] if labelled else []
            full = path / "full_labels.nii.gz"
            names = path / "full_labels_names.json"
            annotated = meta.get("annotated_labels", everything)
            if not isinstance(annotated, list) or any(v not in [*ORGANS] for v in annotated):
                raise ValueError(
                    f"{path / 'meta.json'}: annotated_labels: {annotated} is no list of our labels"
                )
            cases.append(
                Case(
                    name=path.name,
                    kind=kind,
                    image=path / "ct.nii.gz" if kind != "labelmap" else None,
                    label_file=path / "labels.nii.gz" if labelled else None,
                    annotated=tuple(annotated),
                    tissue_file=full if full.is_file() else None,
                    tissue_names=read_json(names) if full.is_file() else {},
                    source=str(meta.get("original_dataset") or "unknown"),
                    licence=str(meta.get("licence") or "unknown"),
                )
            )
    return cases
