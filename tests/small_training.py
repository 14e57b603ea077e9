"""A training so small that a step takes milliseconds: its patient, configuration and records."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from training.config import Config

CONFIG = Path(__file__).parents[1] / "training" / "configs" / "abdoseg.yaml"
SMALL: dict[str, Any] = {
    "network": {
        "kind": "unet",
        "features": [6, 12, 24],
        "kernels": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "norm": "batch",
        "activation": "relu",
        "bias": False,
        "deep_supervision": False,
    },
    "spacing": (8.0, 8.0, 8.0),
    "patch": (16, 24, 24),
    "iterations": 12,
    "optimiser": "adamw",
    "learning_rate": 0.002,
    "warmup": 2,
    "evaluate_every": 1000,
    "checkpoint_every": 4,
    "ema": 0.9,
    "augmentation": {},
    "placement": {"rule": "anywhere", "foreground": 0.0},
    "shares": {"labelled": 1.0},
    "holdout": ("kept",),
    "empty": (),
    "coarse_first": {},
    "freeze_norm": 1.0,
    "class_weights": (),
    "look": {},
}
SPACING = 8.0
ORGANS_SHOWN = {1: "liver", 3: "spleen", 5: "aorta"}


def a_patient() -> tuple[np.ndarray, np.ndarray]:
    """HU and labels (z, y, x): three boxes of different brightness in a body in air."""
    labels = np.zeros((16, 24, 24), np.uint8)
    labels[3:13, 4:14, 3:12] = 1
    labels[4:11, 6:13, 15:21] = 3
    labels[2:15, 16:20, 9:14] = 5
    hu = np.full(labels.shape, -1000, np.int16)
    hu[:, 2:22, 1:23] = -60
    for organ, value in ((1, 60), (3, 120), (5, 220)):
        hu[labels == organ] = value
    hu += np.random.default_rng(0).normal(0, 8, hu.shape).astype(np.int16)
    return hu, labels


def prepare_volume(folder: Path, labels: np.ndarray, annotated: tuple[int, ...]) -> Path:
    """One volume, once to train on and once held out."""
    (folder / "images").mkdir(parents=True)
    for name in ("seen", "kept"):
        np.savez(
            folder / "images" / f"{name}.npz",
            hu=a_patient()[0],
            labels=labels,
            annotated=np.array(annotated, np.uint8),
            spacing=[SPACING] * 3,
        )
    return folder


def losses(run: Path) -> dict[int, float]:
    with (run / "log.csv").open() as file:
        return {int(row["iteration"]): float(row["loss"]) for row in csv.DictReader(file)}


def two_rounds(data: Path) -> tuple[Config, Path]:
    """A configuration with two rounds of self-training, and one CT to label in them."""
    (data / "unlabelled" / "ct").mkdir(parents=True)
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(data / "unlabelled/ct/ct.nii.gz"))
    settings = {"rounds": 2, "iterations": 5, "learning_rate": 0.001}
    return replace(Config.load(CONFIG), empty=(), holdout=(), self_training=settings), data
