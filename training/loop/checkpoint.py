"""Checkpoints: written whole or not at all, read without executing anything in them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inference.errors import first_line
from inference.write.files import appearing
from training.config import Config
from training.networks.ir_weights import fill_from_ir
from training.networks.network import make_network


def save(
    path: Path, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, done: int
) -> None:
    """Write a checkpoint.

    Args:
        path: where to; what was there is replaced in one step.
        network: as trained.
        average: the moving average of its weights.
        optimiser: its optimiser.
        done: steps that were made.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    state = {
        "iteration": done,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    try:
        with appearing(path) as partial, partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it takes the old one's place
    except (OSError, RuntimeError) as error:  # torch's own where the disk is full
        reason = getattr(error, "strerror", None) or "is the disk full?"
        raise OSError(f"{path}: cannot be written ({reason})") from None


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, into the host's memory.

    Modules and optimisers copy from there to where they are; the optimiser's step counts must
    stay in the host's, or each step would wait for the GPU to tell them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no checkpoint (train first)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not what it wants
        reason = first_line(error)
        raise ValueError(f"{path}: no checkpoint, or a damaged one ({reason})") from None
    if not isinstance(state, dict) or "average" not in state:
        raise ValueError(f"{path}: no checkpoint of this trainer")
    return state


def load_average(path: Path, config: Config) -> nn.Module:
    """The moving average of the weights in a checkpoint, ready to be used.

    Args:
        path: a checkpoint, or a model folder: then these are the weights that it ships.
        config: of the network.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: a folder that holds no model.
        ValueError: it is no checkpoint or model of this configuration's network.
    """
    network = make_network(dict(config.network))
    if path.is_dir():
        plan = fill_from_ir(network, path)
        if (*plan.clip, plan.subtract, plan.divide) != (
            *config.clip,
            config.subtract,
            config.divide,
        ):
            print(f"note: {path} wants other intensities than {config.name!r}", file=sys.stderr)
    else:
        fill(network, load(path)["average"], path, config)
    return network.eval()


def load_mean(paths: Sequence[Path], config: Config) -> nn.Module:
    """The mean of several checkpoints' averages, ready to be used.

    Of checkpoints of one training, some thousand steps apart, the mean is often better than each
    (stochastic weight averaging, Izmailov et al. 2018).

    Args:
        paths: at least one checkpoint, or one model folder: its norms are folded away, so it
            has no mean with others.
        config: of the network that all of them are of.

    Raises:
        FileNotFoundError: one does not exist.
        ModelError: a folder that holds no model.
        ValueError: one is not of this configuration's network, or a model folder is not alone.
    """
    if len(paths) > 1 and (folders := [str(path) for path in paths if path.is_dir()]):
        raise ValueError(f"{folders[0]}: of a model folder and others no mean can be taken")
    first, *others = [load_average(path, config) for path in paths]
    states = [network.state_dict() for network in others]
    with torch.no_grad():
        for name, weight in first.state_dict().items():
            if weight.is_floating_point():  # not the count of batches
                weight.copy_(torch.stack([weight, *(state[name] for state in states)]).mean(0))
    return first


def fill(network: nn.Module, weights: dict[str, Any], path: Path, config: Config) -> None:
    """Give a network the weights of a checkpoint.

    Raises:
        ValueError: they are another network's.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        # PyTorch's first line names its class; the first difference is in the next.
        reason = str(error).strip().splitlines()[:2][-1].strip()
        raise ValueError(f"{path}: not of {config.name}'s network ({reason})") from None
