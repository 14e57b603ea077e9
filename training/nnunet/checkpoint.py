"""nnU-Net's checkpoints, read without executing anything that is in them."""

from __future__ import annotations

import codecs
import collections
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inference.errors import ModelError, first_line
from training.nnunet.results import written_by_nnunet

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What of a checkpoint is used.

    Attributes:
        weights: the network's parameters by name.
        configuration: the configuration that was trained; ``None`` if it does not say.
        trainer: name of the trainer's class.
        epochs: how many were trained; ``None`` if it does not say.
        mirror_axes: axes along which nnU-Net mirrors at inference, counted without batch and
            channel.
    """

    weights: Weights
    configuration: str | None
    trainer: str
    epochs: int | None
    mirror_axes: tuple[int, ...]


def _harmless() -> list[Any]:
    """The types beside torch's own that nnU-Net stores: NumPy's numbers in the logged losses.

    They hold data and run nothing. NumPy 1 and 2 call the same functions by different names.
    """
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    array = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (array, "numpy.core.multiarray._reconstruct"),
        (array, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        *kinds,
        codecs.encode,
        collections.OrderedDict,
        collections.defaultdict,
        torch.device,
    ]


def load_checkpoint(path: Path, trust: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: the file.
        trust: whether it may hold anything; reading it may then execute what is in it.

    Raises:
        ModelError: it is no checkpoint of nnU-Net v2, or holds more than harmless types.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        with torch.serialization.safe_globals(_harmless()):
            state = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # torch raises many kinds for a file that is not what it wants
        text = str(error)
        if "Unsupported global" in text or "Unsupported class" in text:
            kind = text.split("GLOBAL ")[-1].split(" was not")[0].splitlines()[0]
            raise ModelError(
                f"{where}: holds {kind}, which is none of the harmless types that nnU-Net stores; "
                "--trust-checkpoint reads it all the same, and runs what is in it"
            ) from None
        raise ModelError(f"{where}: cannot be read ({first_line(error)})") from None
    if not isinstance(state, dict) or not {"network_weights", "trainer_name"} <= set(state):
        raise ModelError(f"{where}: no checkpoint of nnU-Net v2")
    with written_by_nnunet(where):
        weights = {_plain(name): value for name, value in state["network_weights"].items()}
        axes = state.get("inference_allowed_mirroring_axes") or ()
        epochs = state.get("current_epoch")
        return Checkpoint(
            weights,
            (state.get("init_args") or {}).get("configuration"),
            str(state["trainer_name"]),
            int(epochs) if epochs is not None else None,
            tuple(int(axis) for axis in axes),
        )


def _plain(name: str) -> str:
    """A parameter's name without what DataParallel and torch.compile put before it."""
    for prefix in ("module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    return name
