"""A training configuration: one plain YAML file, every value written out in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from inference.errors import ModelError
from inference.grid import Shape
from inference.kinds import with_tuples
from inference.organs import LABEL_OF
from inference.plan import NETWORK_FILES, Plan
from training.config_check import problems_of
from training.yaml_file import load_yaml

if TYPE_CHECKING:
    from torch import Tensor

_Volume = TypeVar("_Volume", np.ndarray, "Tensor")

_NETWORK = {"f32": NETWORK_FILES["f32"]}
_UNKNOWN: Mapping[str, float] = {}


@dataclass(frozen=True)
class Config:
    """Everything that one model's training depends on. Axis order (z, y, x), lengths in mm.

    Attributes:
        name: the model's name and that of its folder under ``weights``.
        version: version of the weights.
        network: the ``kind`` of network and its arguments, see `training.networks.unets`.
        spacing, size, crop, clip, subtract, divide, patch, tiling, overlap, precision, look,
            postprocessing: written into the model's plan as they are, see `inference.plan.Plan`.
            Training prepares its images with the same rules, and draws patches of that size.
        stored: HU range of the prepared images: that of ``clip``, or wider where an augmentation
            changes HU before they are clipped; the plan's ``clip_first`` then.
        synthesis_spacing: isotropic spacing at which synthetic CT is drawn for a patch.
        drawn_at_once: patches, above each other, that are drawn as one and follow each other:
            drawing one of few slices can cost more than a step of a small network.
        batch: patches per step, over all GPUs together.
        iterations: optimiser steps in all.
        optimiser: "adamw", "sgd" (with Nesterov momentum 0.99) or "muon", see `training.loop.muon`.
        learning_rate: the highest rate.
        schedule: how the rate falls to zero: "cosine", or "polynomial" with the exponent 0.9.
        warmup: steps in which the rate rises first.
        weight_decay: the optimiser's.
        gradient_clip: highest norm of the gradient.
        ema: decay of the moving average of the weights, which is what is exported.
        seed: of everything random; a round of self-training adds its number.
        placement: where patches lie, see `training.patches.samples`.
        augmentation: name to arguments; those of intensities act in this order, see
            `training.patches.augment`.
        shares: how often a patch is drawn from ``synthetic`` bodies, ``labelled`` images, these
            ``transferred`` to other anatomies, ``empty`` images without any organ, and
            ``pseudo`` labelled ones; shares of kinds that are missing go to the others.
        pseudo_weight: what a pseudo-labelled patch counts in the loss; a labelled one counts 1.
        holdout: cases that are never trained on; those with labels are scored on.
        folds: in how many parts cases are divided for cross-validation (``--fold``).
        evaluate_every: steps between evaluations on the held-out cases.
        checkpoint_every: steps between checkpoints.
        class_weights: what a voxel of each class counts in the cross entropy, background first;
            all the same where there are none. They fade to 1 during the training; rounds of
            self-training have none.
        batch_dice: whether the Dice loss is that of a batch's patches together, of those that one
            process has of it, see `training.loop.losses`; otherwise each patch has its own.
        empty: CTs known to hold none of the organs (but perhaps esophagus and aorta).
        freeze_norm: share of the steps after which batch norms keep their statistics; from then
            on the network is trained as it will be run, whatever the extent of the image.
        coarse_first: ``spacing`` and ``patch`` of the first ``share`` of the steps, which are
            cheaper so; empty for none.
        self_training: ``rounds`` that follow the training, each of ``iterations`` steps that begin
            with the weights before it and the ``learning_rate``, on pseudo-labels that the
            network before it gave CTs without labels; empty for none.
        not_int8: convolutions that stay in floating point in the int8 network, counted in the
            order in which they run; negative ones from the last.
    """

    name: str
    version: str
    network: Mapping[str, Any]
    spacing: tuple[float | None, float | None, float | None]
    size: tuple[int | None, int | None, int | None]
    crop: str
    clip: tuple[float, float]
    subtract: float
    divide: float
    patch: Shape
    tiling: str
    overlap: float
    precision: str
    look: Mapping[str, Any]
    postprocessing: tuple[Mapping[str, Any], ...]
    stored: tuple[float, float]
    synthesis_spacing: float
    drawn_at_once: int
    batch: int
    iterations: int
    optimiser: str
    learning_rate: float
    schedule: str
    warmup: int
    weight_decay: float
    gradient_clip: float
    ema: float
    seed: int
    placement: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    shares: Mapping[str, float]
    pseudo_weight: float
    holdout: tuple[str, ...]
    folds: int
    evaluate_every: int
    checkpoint_every: int
    class_weights: tuple[float, ...]
    batch_dice: bool
    empty: tuple[str, ...]
    freeze_norm: float
    coarse_first: Mapping[str, Any]
    self_training: Mapping[str, Any]
    not_int8: tuple[int, ...]

    def __post_init__(self) -> None:
        if problems := problems_of(self):
            raise ValueError("; ".join(problems))

    def plan(
        self,
        multiple: Shape,
        networks: Mapping[str, str] = _NETWORK,
        bytes_per_voxel: Mapping[str, float] = _UNKNOWN,
    ) -> Plan:
        """The plan of a model that was trained with this configuration.

        Args:
            multiple: the network's.
            networks: precision to file name; by default as if there were one network.
            bytes_per_voxel: precision to what was measured.
        """
        return Plan(
            name=self.name,
            version=self.version,
            spacing=self.spacing,
            size=self.size,
            crop=self.crop,
            clip=(float(self.clip[0]), float(self.clip[1])),
            clip_first=self._clip_first,
            subtract=self.subtract,
            divide=self.divide,
            patch=self.patch,
            multiple=multiple,
            tiling=self.tiling,
            overlap=self.overlap,
            networks=networks,
            precision=self.precision if self.precision in networks else next(iter(networks)),
            labels=LABEL_OF,
            bytes_per_voxel=bytes_per_voxel,
            look=self.look,
            postprocessing=self.postprocessing,
        )

    @property
    def plan_in_hu(self) -> Plan:
        """The plan by which images are prepared for training: HU, in the range to be stored."""
        plan = self.plan((1, 1, 1))
        return replace(plan, clip=self.stored, clip_first=None, subtract=0.0, divide=1.0)

    @property
    def _clip_first(self) -> tuple[float, float] | None:
        """What inference must clip to before it resizes, as the preparation does."""
        low, high = map(float, self.stored)
        return None if (low, high) == tuple(map(float, self.clip)) else (low, high)

    def grid_at(
        self, iteration: int
    ) -> tuple[Shape, tuple[float | None, float | None, float | None]]:
        """Voxels of a patch and their mm, each (z, y, x), at a step of the training."""
        coarse = self.coarse_first
        if coarse and iteration < coarse["share"] * self.iterations:
            return tuple(coarse["patch"]), tuple(coarse["spacing"])
        return self.patch, self.spacing

    @property
    def rounds(self) -> int:
        """Rounds of self-training that follow the training."""
        return int(self.self_training.get("rounds", 0))

    def in_round(self, number: int) -> Config:
        """The configuration of a round of self-training; itself for 0, the training before them.

        Raises:
            ValueError: there is no such round.
        """
        if not 0 <= number <= self.rounds:
            raise ValueError(f"configuration {self.name!r} has {self.rounds} rounds, not {number}")
        if number == 0:
            return self
        steps, rate = self.self_training["iterations"], self.self_training["learning_rate"]
        # What lets small organs be found at all draws them too large, and they are found by now.
        # Another seed, or every round would see the patches of the one before again.
        return replace(
            self,
            iterations=steps,
            learning_rate=rate,
            coarse_first={},
            class_weights=(),
            seed=(self.seed + number) % 2**32,
        )

    def normalise(self, hu: _Volume) -> _Volume:
        """Hounsfield units, a float32 array or tensor, to the network's intensities."""
        return (hu.clip(*self.clip) - self.subtract) / self.divide

    @property
    def air(self) -> float:
        """The normalised value of air, as inference pads with it."""
        return self.plan((1, 1, 1)).air

    @staticmethod
    def load(path: Path) -> Config:
        """Read a configuration file.

        Raises:
            ValueError: not YAML, a key is missing or unknown, or a value is impossible.
            FileNotFoundError: there is no such file.
        """
        content = load_yaml(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: not a configuration")
        known = {entry.name for entry in fields(Config)}
        if unknown := sorted(map(str, set(content) - known)):
            raise ValueError(f"{path}: unknown keys {', '.join(unknown)}")
        if missing := sorted(known - set(content)):
            raise ValueError(f"{path}: missing keys {', '.join(missing)}")
        if empty := sorted(name for name, value in content.items() if value is None):
            raise ValueError(f"{path}: nothing is given for {', '.join(empty)}")
        try:
            values = with_tuples(content)
            for names in ("holdout", "empty"):
                if isinstance(values[names], tuple):
                    values[names] = tuple(map(str, values[names]))  # a name may be all digits
            config = Config(**values)
            config.plan((1, 1, 1))  # raises what inference would refuse
            return config
        except (TypeError, ValueError, ModelError) as error:
            raise ValueError(f"{path}: {error}") from None
