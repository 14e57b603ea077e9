"""A larger, trained network from which a smaller one learns (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import Config
from training.loop.checkpoint import load_average
from training.networks.mixed_precision import autocast
from training.networks.network import multiple_of


class Teacher:
    """A network that answers for another one's patches, on their grid.

    Its own grid may be finer or coarser, and its intensities other ones; what the student's
    clipping took away it does not see.

    Args:
        config: the teacher's configuration.
        checkpoint: its weights: a checkpoint or a model folder.
        student: the configuration of the network that learns.
        weight: share of the loss that is the teacher's; labels make up the rest.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ModelError: it is a folder that holds no model.
        ValueError: it is not one of the teacher's network, or the weight is not in 0 to 1.
    """

    temperature = 2.0
    """See `training.loop.losses.distillation`."""

    def __init__(
        self, config: Config, checkpoint: Path, student: Config, weight: float = 0.5
    ) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"the teacher's weight {weight} is not in 0 to 1")
        self.weight = weight
        self._config = config
        self._student = student
        self._network = load_average(checkpoint, config).requires_grad_(False)

    @torch.no_grad()
    def __call__(self, image: Tensor, spacing: Sequence[float | None]) -> Tensor:
        """Logits (n, classes, z, y, x) for a student's patches.

        Args:
            image: the patches (n, 1, z, y, x), normalised as the student's.
            spacing: their mm (z, y, x). Where it is None, or the teacher has no spacing of its
                own, the teacher looks at the student's voxels.
        """
        self._network.to(image.device)
        mine, theirs = self._config, self._student
        hu = image * theirs.divide + theirs.subtract
        seen = mine.normalise(hu)
        shape = seen.shape[2:]
        own = [
            n if step is None or wanted is None else max(1, round(n * step / wanted))
            for n, step, wanted in zip(shape, spacing, mine.spacing, strict=True)
        ]
        if own != list(shape):
            seen = F.interpolate(seen, own, mode="trilinear")
        multiple = multiple_of(self._network)
        after = [-n % m for n, m in zip(own, multiple, strict=True)]
        seen = F.pad(seen, [n for a in reversed(after) for n in (0, a)], value=mine.air)
        with autocast(seen, multiple):
            logits: Tensor = self._network(seen)
        logits = logits[:, :, : own[0], : own[1], : own[2]].float()
        return logits if own == list(shape) else F.interpolate(logits, shape, mode="trilinear")
