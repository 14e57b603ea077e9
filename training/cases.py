"""Where training data comes from: folders of cases, each an image, a label map or both.

Two layouts, which one data folder may also mix:

- nnU-Net's raw data set: ``imagesTr/X_0000.nii.gz``, ``labelsTr/X.nii.gz``, ``dataset.json``.
  Its label names are mapped to our numbers; structures that are none of our organs are unknown,
  and so is 255.
  An image without labels is unlabelled; ``pseudolabelsTr/X.nii.gz`` are labels that a network
  made; labels without an image are a label map. A key ``"annotated"`` of ``dataset.json``,
  ``{"X": ["liver", ...]}``, tells in which cases only some organs were annotated. ``imagesTs``
  is left alone.
- One folder a case: ``cases/NAME`` (``ct.nii.gz`` and ``labels.nii.gz``), ``labelmaps/NAME``
  (``labels.nii.gz`` alone), ``unlabelled/NAME`` (``ct.nii.gz`` alone) and ``pseudo/NAME``
  (both, labels made by a network). Labels have our numbers. ``full_labels.nii.gz`` may add all
  tissues, with ``full_labels_names.json``, ``{"1": "spleen", "2": "kidney_right", ...}``:
  TotalSegmentator's names. ``meta.json``, all of it optional, ``{"annotated_labels": [1, 3],
  "original_dataset": "...", "licence": "..."}``: organs that were annotated, and the model
  card's source.

An organ that was not annotated is unknown there, not absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.checks import check_intensities
from inference.file_names import ending
from inference.grid import Spacing
from inference.hounsfield import AIR, DENSEST
from inference.organs import LABEL_OF, ORGANS, label_of
from inference.orientation import turn_to
from inference.reading import read
from inference.same_grid import grid_difference
from training.tissues import UNKNOWN, tissues_from_names

ANNOTATED = "annotated.json"
"""In a folder of pseudo-labels: which organs were kept in which case, by name."""


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


def find_cases(folder: Path, pseudolabels: Path | None = None) -> list[Case]:
    """All cases of a data folder, ordered by kind and name.

    Args:
        folder: the data folder.
        pseudolabels: a folder that `training.pseudolabel` wrote; its labels make unlabelled
            cases pseudo-labelled ones.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: ``dataset.json`` is missing or cannot be used, two cases have one name, or
            there are pseudo-labels of a case that there is not.
    """
    cases = _folders_of_cases(folder)
    if any((folder / kind).is_dir() for kind in ("imagesTr", "labelsTr")):
        cases += _nnunet_dataset(folder)
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
    return [_with_pseudolabels(case, pseudolabels, kept.get(case.name, [])) for case in cases]


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
    others = [name for name, value in labels.items() if value and _our_label(name) == UNKNOWN]
    return f"{folder}: no labels of {', '.join(lacking)}; they will not be learnt" + (
        f" (dataset.json has, beside our organs, {', '.join(others)})" if others else ""
    )


def read_annotated(folder: Path) -> dict[str, list[str]]:
    """Which organs a folder of pseudo-labels tells, by case; empty where there is none."""
    path = folder / ANNOTATED
    kept = read_json(path) if path.is_file() else {}
    for name, organs in kept.items():
        if not isinstance(organs, list) or not set(organs) <= set(LABEL_OF):
            raise ValueError(f"{path}: {name}: {organs} is no list of organs")
    return kept


def _with_pseudolabels(case: Case, folder: Path | None, organs: list[str]) -> Case:
    if case.kind != "unlabelled" or folder is None or not organs:
        return case
    return replace(
        case,
        kind="pseudo",
        label_file=folder / f"{case.name}.nii.gz",
        annotated=tuple(LABEL_OF[organ] for organ in organs),
        values={value: value for value in (0, *ORGANS, UNKNOWN)},
    )


def _folders_of_cases(folder: Path) -> list[Case]:
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


def _nnunet_dataset(folder: Path) -> list[Case]:
    description = folder / "dataset.json"
    if not description.is_file():
        raise ValueError(f"{folder}: has imagesTr or labelsTr but no dataset.json")
    dataset = read_json(description)
    values = {0: 0, UNKNOWN: UNKNOWN}
    for key in ("labels", "annotated"):
        if not isinstance(dataset.setdefault(key, {}), dict):
            raise ValueError(f"{description}: {key} has no names and values")
    for name, value in dataset["labels"].items():
        if isinstance(value, list):
            raise ValueError(f"{description}: label {name!r} is a region; one number is needed")
        if not isinstance(value, int) or value < 0:
            raise ValueError(f'{description}: labels are "name": number, not "{name}": {value!r}')
        if value in values and value not in (0, UNKNOWN):
            raise ValueError(f"{description}: two labels have the value {value}, {name!r} is one")
        values[value] = _our_label(name) if value else 0
    organs = tuple(sorted({v for v in values.values() if 0 < v < UNKNOWN}))
    if not organs:
        raise ValueError(f"{description}: none of its labels is one of the 13 organs")
    partly = {}
    for case, names in dataset["annotated"].items():
        if not isinstance(names, list) or any(n not in list(dataset["labels"]) for n in names):
            raise ValueError(f"{description}: annotated: {case}: {names} is no list of its labels")
        partly[case] = tuple(v for v in map(_our_label, names) if v in ORGANS)
    images: dict[str, Path] = {}
    for path in sorted((folder / "imagesTr").glob("[!.]*")):
        if (end := ending(path)) is None:
            continue
        name, _, channel = path.name[: -len(end)].rpartition("_")
        if channel != "0000":
            raise ValueError(f"{path}: not NAME_0000{end}; CT has one channel")
        if name in images:
            raise ValueError(f"{path}: the case is there twice, as {images[name].name} too")
        images[name] = path
    made, given = (_labels(folder / f) for f in ("pseudolabelsTr", "labelsTr"))
    if strange := sorted(set(partly) - {*images, *made, *given}):
        raise ValueError(f"{description}: annotated: there is no case {', '.join(strange)}")
    for name, path in {**made, **given}.items():  # nothing is left out, or learnt twice, in silence
        if name not in images and name.removesuffix("_0000") in images:
            raise ValueError(f"{path}: labels have their CT's name without _0000")
        if name in made and name not in images:
            raise ValueError(f"{path}: there is no CT of this name")
    cases = []
    for name in sorted({*images, *given}):
        image = images.get(name)
        labels = given.get(name) or made.get(name)
        kind = "labelled" if name in given else "pseudo" if name in made else "unlabelled"
        cases.append(
            Case(
                name=name,
                kind=kind if image else "labelmap",
                image=image,
                label_file=labels,
                annotated=partly.get(name, organs) if labels else (),
                values=values,
                source=str(dataset.get("name", folder.name)),
                licence=str(dataset.get("licence", dataset.get("license", "unknown"))),
            )
        )
    return cases


def _labels(folder: Path) -> dict[str, Path]:
    labels: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        if (end := ending(path)) is None:
            continue
        name = path.name[: -len(end)]
        if name in labels:
            raise ValueError(f"{path}: the labels are there twice, as {labels[name].name} too")
        labels[name] = path
    return labels


def _our_label(name: str) -> int:
    """Our number for a structure's name; `UNKNOWN` if it is none of our organs."""
    return label_of(name) or UNKNOWN


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it cannot be read, or holds none; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")
    return content


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
