"""How good a network is on held-out cases: run as inference runs it, windows and all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from inference.decode import winners
from inference.grid import Spacing
from inference.machine import free_memory
from inference.organs import ORGANS
from inference.postprocess import postprocess
from inference.windows import predict as predict_in_windows
from training.config import Config
from training.network import autocast, multiple_of
from training.prepared_file import opened
from training.tissues import UNKNOWN
from training.warp import per_axis


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
        prepared: folder that `training.prepare.prepare` wrote.
        config: its configuration.
        holdout: cases besides the configuration's hold-out list.

    Yields:
        Each case that was prepared; those without labels have no scores.
    """
    for name in dict.fromkeys((*config.holdout, *holdout)):
        path = prepared / "images" / f"{name}.npz"
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


def logits_of(
    network: nn.Module, hu: np.ndarray, config: Config, exact: bool = False
) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    """Logits (classes, z, y, x) of a prepared volume in HU, in inference's windows.

    Args:
        network: a torch network.
        hu: (z, y, x), on the network's grid.
        config: its configuration.
        exact: in fp32 rather than in bf16.
    """
    device = next(network.parameters()).device
    # Memory of one pass: about 25 bytes per voxel and feature of the finest stage.
    free = free_gpu_memory(device) if device.type == "cuda" else free_memory()
    per_voxel = 25.0 * config.network["features"][0]
    plan = config.plan(multiple_of(network), bytes_per_voxel=per_voxel)
    runner = TorchRunner(network, exact)
    return predict_in_windows(runner, config.normalise(hu), plan, config.air, int(free * 0.7))


def free_gpu_memory(device: torch.device) -> int:
    """Bytes of a GPU that are free, or that PyTorch holds and does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


class TorchRunner:
    """A torch network that runs like `inference.network.Network`.

    Args:
        network: put into evaluation mode while it runs.
        exact: in fp32 rather than in bf16.
    """

    def __init__(self, network: nn.Module, exact: bool) -> None:
        self._network = network
        self._exact = exact

    @torch.no_grad()
    def run(self, volume: np.ndarray) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits float32 (classes, z, y, x) of a normalised volume (z, y, x)."""
        was_training = self._network.training
        device = next(self._network.parameters()).device
        image = torch.from_numpy(np.ascontiguousarray(volume))[None, None].to(device)
        self._network.eval()
        with nullcontext() if self._exact else autocast(image, multiple_of(self._network)):
            logits = self._network(image)[0]
        self._network.train(was_training)
        return logits.float().cpu().numpy()


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """DSC of two masks; None if both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else None
