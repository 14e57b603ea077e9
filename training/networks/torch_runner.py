"""Runs a torch network on a whole volume as inference runs an exported one: in its windows."""

from __future__ import annotations

from contextlib import nullcontext
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn

from inference.machine import free_memory
from inference.network.windows import predict_in_windows
from training.config import Config
from training.networks.mixed_precision import autocast
from training.networks.network import multiple_of

MEMORY_SHARE = 0.7
"""Share of the free memory that one pass may take."""

_alone = Lock()
"""A pass takes what memory it finds and sets the network's mode: threads wait for each other."""


def logits_of(
    network: nn.Module, hu: np.ndarray, config: Config, exact: bool = False
) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    """Logits (classes, z, y, x) of a prepared volume in HU, in inference's windows.

    Threads may call it; only one network runs at a time.

    Args:
        network: a torch network.
        hu: (z, y, x), on the network's grid.
        config: its configuration.
        exact: in fp32 rather than in bf16.
    """
    image = config.normalise(hu.astype(np.float32))
    with _alone:
        return _logits_of(network, image, config, exact)


def _logits_of(
    network: nn.Module, image: np.ndarray, config: Config, exact: bool
) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    device = next(network.parameters()).device
    # Memory of one pass: about 25 bytes per voxel and feature of the finest stage.
    free = free_gpu_memory(device) if device.type == "cuda" else free_memory()
    per_voxel = 25.0 * config.network["features"][0]
    plan = config.plan(multiple_of(network), bytes_per_voxel={"f32": per_voxel})
    runner = TorchRunner(network, exact)
    return predict_in_windows(runner, image, plan, int(free * MEMORY_SHARE))


def free_gpu_memory(device: torch.device) -> int:
    """Bytes of a GPU that are free, or that PyTorch holds and does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


class TorchRunner:
    """A torch network that runs like `inference.network.network.Network`.

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
