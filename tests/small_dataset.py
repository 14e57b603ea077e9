"""A data folder in nnU-Net's layout of small CTs, and a configuration to prepare it with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import yaml

REPOSITORY = Path(__file__).parents[1]


def liver_and_spleen() -> tuple[np.ndarray, np.ndarray]:
    """HU and labels (z, y, x) in LPS orientation: liver on the right, spleen on the left."""
    labels = np.zeros((12, 20, 24), np.uint8)
    labels[2:9, 6:14, 4:11] = 1
    labels[4:9, 7:13, 15:19] = 3
    hu = np.full(labels.shape, -1000, np.int16)
    hu[:, 3:17, 2:22] = 0
    hu[labels > 0] = 60
    hu[:, 14:16, 11:13] = 400  # the spine
    return hu, labels


def write(path: Path, array: np.ndarray, origin: float = 0.0) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((12.0, 12.0, 12.0))
    image.SetOrigin((origin, 0.0, 0.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


def dataset(root: Path, **more: Any) -> Path:
    """A folder in nnU-Net's layout whose labels 1 and 3 are ours and whose 20 is the colon."""
    labels = {"background": 0, "liver": 1, "spleen": 3, "colon": 20}
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({"labels": labels, **more}))
    return root


def add(root: Path, name: str, hu: np.ndarray, labels: np.ndarray | None, shift: float = 0) -> None:
    write(root / "imagesTr" / f"{name}_0000.nii.gz", hu)
    if labels is not None:
        write(root / "labelsTr" / f"{name}.nii.gz", labels, shift)


def configuration(folder: Path, **changes: Any) -> Path:
    """Our configuration, so small that a step takes some milliseconds."""
    content = yaml.safe_load((REPOSITORY / "training/configs/abdoseg.yaml").read_text())
    content["network"].update(
        features=[4, 6, 8], kernels=[[3, 3, 3]] * 3, strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    )
    content.update(spacing=[12.0] * 3, patch=[8, 12, 12], synthesis_spacing=12.0, coarse_first={})
    content.update(iterations=2, evaluate_every=2, checkpoint_every=2, warmup=0, holdout=[])
    content.update(look={}, empty=[], shares={"labelled": 1.0}, augmentation={}, class_weights=[])
    content.update(changes)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def stored(path: Path, name: str) -> list[int]:
    """The values of an array of a prepared file."""
    with np.load(path) as content:
        return [int(value) for value in np.unique(content[name])]
