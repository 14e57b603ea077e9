"""Where training data comes from: folders of cases, each an image, a label map or both.

Layout of a data folder: ``cases/NAME`` (``ct.nii.gz`` and ``labels.nii.gz``), ``labelmaps/NAME``
(``labels.nii.gz`` alone) and ``unlabelled/NAME`` (``ct.nii.gz`` alone). ``full_labels.nii.gz``
with ``full_labels_names.json`` may add all tissues; ``meta.json`` says which organs were
annotated. An organ that was not annotated is unknown there, not absent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.organs import ORGANS
from inference.orientation import turn_to
from training.tissues import tissues_from_names


@dataclass(frozen=True)
class Case:
    """One patient of a data folder.

    Attributes:
        name: the folder's name.
        folder: where its files are.
        annotated: label values of the organs that were annotated.
    """

    name: str
    folder: Path
    annotated: tuple[int, ...]

    @property
    def has_ct(self) -> bool:
        """Whether there is an image."""
        return (self.folder / "ct.nii.gz").is_file()

    @property
    def has_all_tissues(self) -> bool:
        """Whether there is a label map of the whole body."""
        return (self.folder / "full_labels.nii.gz").is_file()

    def ct(self) -> tuple[NDArray[np.int16], tuple[float, float, float]]:
        """Hounsfield units (z, y, x) in LPS orientation, and their spacing (z, y, x) in mm."""
        array, spacing = _read(self.folder / "ct.nii.gz")
        return np.clip(array, -1024, 3071).astype(np.int16), spacing

    def labels(self) -> tuple[NDArray[np.uint8], tuple[float, float, float]]:
        """Organ labels (z, y, x) in LPS orientation, and their spacing (z, y, x) in mm."""
        array, spacing = _read(self.folder / "labels.nii.gz")
        return array.astype(np.uint8), spacing

    def tissues(self) -> tuple[NDArray[np.uint8], tuple[float, float, float]]:
        """The tissue map where all tissues are labelled, else the organs alone."""
        labels, spacing = self.labels()
        if not self.has_all_tissues:
            return labels, spacing
        names = json.loads((self.folder / "full_labels_names.json").read_text(encoding="utf-8"))
        full, _ = _read(self.folder / "full_labels.nii.gz")
        tissues = tissues_from_names(full.astype(np.uint8), names)
        return np.where(labels > 0, labels, tissues).astype(np.uint8), spacing


def find_cases(folder: Path) -> list[Case]:
    """All cases of a data folder, ordered by kind and name.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    cases = []
    for kind in ("cases", "labelmaps", "unlabelled"):
        for path in sorted((folder / kind).glob("*/")):
            meta = path / "meta.json"
            known = json.loads(meta.read_text(encoding="utf-8")) if meta.is_file() else {}
            whole = tuple(ORGANS) if kind != "unlabelled" else ()
            cases.append(Case(path.name, path, tuple(known.get("annotated_labels", whole))))
    if not cases:
        raise FileNotFoundError(f"{folder}: no cases/, labelmaps/ or unlabelled/ with a case")
    return cases


def _read(path: Path) -> tuple[NDArray[np.generic], tuple[float, float, float]]:
    image = sitk.ReadImage(str(path))
    turn = turn_to(image.GetDirection())
    x, y, z = image.GetSpacing()
    spacing = turn.reorder((z, y, x))
    return turn.apply(sitk.GetArrayViewFromImage(image)).copy(), (
        spacing[0],
        spacing[1],
        spacing[2],
    )
