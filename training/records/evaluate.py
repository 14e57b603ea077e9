"""How good a network is on held-out cases: run as inference runs it, windows and all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from inference.grid import Spacing
from inference.labels.postprocess import postprocess
from inference.network.winners import winners
from inference.organs import ORGANS
from training.agreement import dice
from training.config import Config
from training.data.tissues import UNKNOWN
from training.networks.network import multiple_of
from training.networks.torch_runner import logits_of
from training.preparation.prepared_file import file_of, opened
from training.sampling.warp import per_axis


@dataclass(frozen=True)
class Evaluated:
    """A held-out case.

    Attributes:
        name: of the case.
        hu: the CT (z, y, x), on the network's grid.
        labels: its own labels.
        predicted: the network's labels.
        spacing: mm per axis.
        dice: DSC per organ; None where it is not annotated, or absent from both.
    """

    name: str
    hu: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    spacing: Spacing
    dice: list[float | None]


def evaluate(
    network: nn.Module, prepared: Path, config: Config, holdout: tuple[str, ...] = ()
) -> Iterator[Evaluated]:
    """Segment the held-out cases, with the plan's post-processing, on the network's grid.

    Args:
        network: what to evaluate.
        prepared: folder that `training.preparation.prepare.prepare` wrote.
        config: its configuration.
        holdout: cases besides the configuration's hold-out list.

    Yields:
        Each case that was prepared; those without labels have no scores.
    """
    for name in dict.fromkeys((*config.holdout, *holdout)):
        path = file_of(prepared, "labelled", name)
        if not path.exists():
            continue
        with opened(path) as content:
            hu, labels = content["hu"], content["labels"]
            spacing = per_axis(content["spacing"].tolist())
            annotated = set(content["annotated"].tolist())
        predicted = predict(network, hu, spacing, config)
        scores = [
            dice((predicted == o) & (labels != UNKNOWN), labels == o) if o in annotated else None
            for o in ORGANS
        ]
        yield Evaluated(name, hu, labels, predicted, spacing, scores)


def predict(network: nn.Module, hu: np.ndarray, spacing: Spacing, config: Config) -> np.ndarray:
    """Labels uint8 (z, y, x) of a prepared volume in HU, post-processed as in inference."""
    logits = logits_of(network, hu, config)
    found = postprocess(logits, spacing, config.plan(multiple_of(network)), ct=hu)
    return winners(logits) if found is None else found
