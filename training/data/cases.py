"""Where training data comes from: folders of cases, each an image, a label map or both.

Two layouts, which one data folder may also mix:

- nnU-Net's raw data set (`training.data.nnunet_layout`);
- one folder a case (`training.data.folder_layout`).

An organ that was not annotated is unknown there, not absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inference.organs import ORGANS
from training.data.case import Case
from training.data.folder_layout import folders_of_cases
from training.data.nnunet_layout import nnunet_dataset, our_label
from training.data.pseudolabel_folder import read_annotated, with_pseudolabels
from training.data.tissues import UNKNOWN
from training.json_file import read_json


def find_cases(folder: Path, pseudolabels: Path | None = None) -> list[Case]:
    """All cases of a data folder, ordered by kind and name.

    Args:
        folder: the data folder.
        pseudolabels: a folder that `training.pseudolabels.pseudolabel` wrote; its labels make
            unlabelled cases pseudo-labelled ones.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: ``dataset.json`` is missing or cannot be used, two cases have one name, or
            there are pseudo-labels of a case that there is not.
    """
    cases = folders_of_cases(folder)
    if any((folder / kind).is_dir() for kind in ("imagesTr", "labelsTr")):
        cases += nnunet_dataset(folder)
    if not cases:
        raise FileNotFoundError(
            f"{folder}: no imagesTr/, cases/, labelmaps/, unlabelled/ or pseudo/ with a case"
        )
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{folder}: several cases are named {', '.join(twice[:5])}")
    kept = read_annotated(pseudolabels) if pseudolabels else {}
    if strange := sorted(set(kept) - {*names}):
        raise ValueError(f"{pseudolabels}: {folder} has no case {', '.join(strange[:5])}")
    return [with_pseudolabels(case, pseudolabels, kept.get(case.name, [])) for case in cases]


def what_is_not_taught(folder: Path, cases: Sequence[Case]) -> str:
    """A line about organs that no case's labels tell; nothing if there are none.

    Args:
        folder: the data folder.
        cases: all of its cases.

    Raises:
        ValueError: ``dataset.json`` cannot be read.
    """
    told = {organ for case in cases for organ in case.annotated}
    if not (lacking := [name for value, name in ORGANS.items() if value not in told]):
        return ""
    description = folder / "dataset.json"
    labels = read_json(description).get("labels", {}) if description.is_file() else {}
    others = [name for name, value in labels.items() if value and our_label(name) == UNKNOWN]
    return f"{folder}: no labels of {', '.join(lacking)}; they will not be learnt" + (
        f" (dataset.json has, beside our organs, {', '.join(others)})" if others else ""
    )
