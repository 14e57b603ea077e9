"""A case: one patient's CT, labels or both, and how they are read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.grid import Spacing
from inference.hounsfield import AIR, DENSEST
from inference.organs import ORGANS
from inference.preprocess.orientation import turn_to
from inference.read.checks import check_intensities
from inference.read.file import read
from inference.same_grid import grid_difference
from training.data.tissues import UNKNOWN, tissues_from_names


@dataclass(frozen=True)
class CT:
    """A CT to train on.

    Attributes:
        hu: int16 (z, y, x) in LPS orientation, -1024 to 3071.
        spacing: mm per axis (z, y, x).
        image: as it is stored.
        offset: what was added to its values to make them HU.
    """

    hu: NDArray[np.int16]
    spacing: Spacing
    image: sitk.Image
    offset: float


@dataclass(frozen=True)
class Case:
    """One patient of a data folder.

    Attributes:
        name: of the case.
        kind: "labelled", "pseudo", "unlabelled" (images) or "labelmap".
        image: the CT's file.
        label_file: the labels' file.
        annotated: label values (ours) of the organs that were annotated.
        values: label value in the file to ours; ``None`` where they are ours.
        tissue_file: a label map of the whole body, with ``tissue_names`` (value to name).
        source: where it comes from, in words.
        licence: under which it is published.
    """

    name: str
    kind: str
    image: Path | None
    label_file: Path | None
    annotated: tuple[int, ...]
    values: Mapping[int, int] | None = None
    tissue_file: Path | None = None
    tissue_names: Mapping[str, str] = field(default_factory=dict)
    source: str = "unknown"
    licence: str = "unknown"

    def ct(self) -> CT:
        """The CT, read and checked.

        Raises:
            CaseError: the file is damaged or no CT.
            ValueError: its values are no Hounsfield units of a body.
        """
        assert self.image is not None
        image = read(self.image).image
        array, spacing = _turned(image)
        offset = check_intensities(array).offset
        hu = array + np.float32(offset) if offset else array
        if hu.min() > -200 or hu.max() < 200:
            raise ValueError(
                f"values from {hu.min()} to {hu.max()} are not Hounsfield units of a body"
            )
        return CT(np.clip(hu, AIR, DENSEST).astype(np.int16), spacing, image, offset)

    def labels(self) -> tuple[NDArray[np.uint8], Spacing]:
        """Our organ labels (z, y, x) in LPS orientation, and their spacing (z, y, x) in mm.

        Raises:
            CaseError: the file is damaged.
            ValueError: it does not lie on the image's grid, or has values that are no labels.
        """
        assert self.label_file is not None
        image = read(self.label_file).image
        if self.image is not None:
            _check_same_grid(image, self.image, "the labels do not lie on the image's grid")
        array, spacing = _turned(image)
        values = self.values or {value: value for value in (0, *ORGANS, UNKNOWN)}
        found = np.unique(array)
        if unknown := sorted({float(v) for v in found} - {float(v) for v in values}):
            raise ValueError(f"label values {', '.join(f'{v:g}' for v in unknown)} are not organs")
        table = np.zeros(1 + int(found.max()), np.uint8)
        for value in found.astype(int):
            table[value] = values[value]
        return table[array.astype(np.int64)], spacing

    def tissues(self) -> tuple[NDArray[np.uint8], Spacing]:
        """The tissue map where all tissues are labelled, else the organs alone.

        Raises:
            CaseError: a file is damaged.
            ValueError: as of `labels`, or the tissues do not lie on the labels' grid, or have
                names that are not known.
        """
        labels, spacing = self.labels()
        labels[labels == UNKNOWN] = 0
        if self.tissue_file is None:
            return labels, spacing
        assert self.label_file is not None
        image = read(self.tissue_file).image
        _check_same_grid(image, self.label_file, "the tissues do not lie on the labels' grid")
        tissues = tissues_from_names(_turned(image)[0].astype(np.uint8), dict(self.tissue_names))
        return np.where(labels > 0, labels, tissues).astype(np.uint8), spacing


def _check_same_grid(image: sitk.Image, other: Path, problem: str) -> None:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(other))
    reader.ReadImageInformation()
    if difference := grid_difference(image, reader):
        raise ValueError(f"{problem}: {difference}")


def _turned(image: sitk.Image) -> tuple[NDArray[Any], Spacing]:
    turn = turn_to(image.GetDirection())
    x, y, z = image.GetSpacing()
    spacing = turn.reorder((z, y, x))
    array = turn.apply(sitk.GetArrayViewFromImage(image)).copy()
    return array, (spacing[0], spacing[1], spacing[2])
