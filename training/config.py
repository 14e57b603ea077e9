"""A training configuration: one plain YAML file, every value written out in it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Config:
    """Everything that one model's training depends on. Axis order (z, y, x), lengths in mm.

    Attributes:
        name: the model's name and that of its folder under ``weights``.
        version: version of the weights.
        features: channels per stage of the `training.network.UNet`.
        spacing: isotropic spacing of the network's grid.
        clip, subtract, divide: the intensity rule, as in `inference.plan.Plan`.
        patch: voxels per training patch.
        iterations: optimiser steps in all.
        batch: patches per step.
        learning_rate: AdamW's peak rate; it warms up linearly and decays with a cosine to zero.
        warmup: steps of warm-up.
        weight_decay: AdamW's.
        ema: decay of the moving average of the weights, which is what is exported.
        augmentation: strength of the random warps (1: full).
        shares: how often a patch is drawn from ``synthetic`` bodies, ``labelled`` and ``pseudo``
            labelled images; shares of kinds that are missing go to the others.
        holdout: cases that are never trained on; those with labels are scored on.
        seed: of everything random.
        evaluate_every: steps between evaluations on the held-out cases.
        checkpoint_every: steps between checkpoints.
        postprocessing: written into the plan.
    """

    name: str
    version: str
    features: tuple[int, ...]
    spacing: float
    clip: tuple[float, float]
    subtract: float
    divide: float
    patch: tuple[int, int, int]
    iterations: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float
    ema: float
    augmentation: float
    shares: dict[str, float]
    holdout: tuple[str, ...]
    seed: int
    evaluate_every: int
    checkpoint_every: int
    postprocessing: tuple[dict[str, object], ...] = ()

    @staticmethod
    def load(path: Path) -> Config:
        """Read a configuration file.

        Raises:
            ValueError: a key is missing or unknown.
            FileNotFoundError: there is no such file.
        """
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Config)}
        if wrong := sorted(set(content) - known):
            raise ValueError(f"{path}: unknown keys {', '.join(wrong)}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content.items()
        }
        try:
            return Config(**values)
        except TypeError as error:
            raise ValueError(f"{path}: {error}") from None
