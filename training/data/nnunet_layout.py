"""Cases in the layout of nnU-Net's raw data sets.

``imagesTr/X_0000.nii.gz``, ``labelsTr/X.nii.gz``, ``dataset.json``. Its label names are mapped to
our numbers; structures that are none of our organs are unknown, and so is 255. An image without
labels is unlabelled; ``pseudolabelsTr/X.nii.gz`` are labels that a network made; labels without an
image are a label map. A key ``"annotated"`` of ``dataset.json``, ``{"X": ["liver", ...]}``, tells
in which cases only some organs were annotated. ``imagesTs`` is left alone.
"""

from __future__ import annotations

from pathlib import Path

from inference.file_names import ending
from inference.organs import ORGANS, label_of
from training.data.case import Case
from training.data.tissues import UNKNOWN
from training.json_file import read_json


def nnunet_dataset(folder: Path) -> list[Case]:
    """The cases of a raw data set of nnU-Net's, ordered by name.

    Args:
        folder: the data folder.

    Raises:
        ValueError: ``dataset.json`` is missing or cannot be used, or files do not fit together.
    """
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
        values[value] = our_label(name) if value else 0
    organs = tuple(sorted({v for v in values.values() if 0 < v < UNKNOWN}))
    if not organs:
        raise ValueError(f"{description}: none of its labels is one of the 13 organs")
    partly = {}
    for case, names in dataset["annotated"].items():
        if not isinstance(names, list) or any(n not in list(dataset["labels"]) for n in names):
            raise ValueError(f"{description}: annotated: {case}: {names} is no list of its labels")
        partly[case] = tuple(v for v in map(our_label, names) if v in ORGANS)
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


def our_label(name: str) -> int:
    """Our number for a structure's name; `UNKNOWN` if it is none of our organs."""
    return label_of(name) or UNKNOWN
