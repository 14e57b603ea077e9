"""Which checkpoints a training goes on from or begins with, and which it refuses."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from torch import nn

from training.config import Config
from training.loop import checkpoint
from training.loop import train as loop
from training.loop.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")


def test_another_optimiser_does_not_go_on(config: Config) -> None:
    network = nn.Linear(2, 2)
    sgd = loop.make_optimiser(network, replace(config, optimiser="sgd"))
    with pytest.raises(ValueError, match=r"it.pt: was trained with another optimiser than adamw"):
        loop.continue_optimiser(
            loop.make_optimiser(network, config), sgd.state_dict(), Path("it.pt"), config
        )
    changed = replace(config, weight_decay=0.5)
    muon = loop.make_optimiser(network, replace(config, optimiser="muon"))
    with pytest.raises(ValueError, match=r"it.pt: was trained with another optimiser than adamw"):
        loop.continue_optimiser(
            loop.make_optimiser(network, config), muon.state_dict(), Path("it.pt"), config
        )
    adamw = loop.make_optimiser(network, changed)
    state = loop.make_optimiser(network, config).state_dict()
    loop.continue_optimiser(adamw, state, Path("it.pt"), changed)
    assert adamw.param_groups[0]["weight_decay"] == 0.5


class _Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("as_archive", [True, False])
def test_checkpoints_with_pickled_code_are_refused_and_not_run(
    prepared: Path, tmp_path: Path, config: Config, as_archive: bool
) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    content = {"iteration": 1, "network": {}, "average": {}, "optimiser": _Trap(sprung)}
    if as_archive:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for use in (
        lambda: loop.train(config, prepared, path.parent),
        lambda: loop.train(config, prepared, tmp_path / "other", initial=[path]),
        lambda: Teacher(config, path, config),
        lambda: checkpoint.load_average(path, config),
    ):
        with pytest.raises(ValueError, match=r"checkpoint\.pt: no checkpoint"):
            use()
    assert not sprung.exists()
    torch.load(path, weights_only=False) if as_archive else pickle.loads(path.read_bytes())
    assert sprung.exists()  # the trap is a working one


def test_a_checkpoint_of_another_network_is_one_line(
    trained: Path, prepared: Path, tmp_path: Path, config: Config
) -> None:
    wider = replace(config, network={**config.network, "features": [8, 12, 24]})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    for options in ({"run": tmp_path / "run"}, {"run": tmp_path / "new", "initial": trained}):
        initial = options.get("initial")
        with pytest.raises(ValueError, match="not of abdoseg's network"):
            loop.train(
                wider,
                prepared,
                options["run"],
                initial=[initial / "checkpoint.pt"] if initial else [],
            )


def test_the_mean_of_checkpoints_is_that_of_their_weights(
    trained: Path, tmp_path: Path, config: Config
) -> None:
    ours = trained / "checkpoint.pt"
    state = torch.load(ours, weights_only=True)
    for tensor in state["average"].values():
        tensor += 2 if tensor.is_floating_point() else 0
    torch.save(state, tmp_path / "shifted.pt")
    one = checkpoint.load_average(ours, config).state_dict()
    mean = checkpoint.load_mean([ours, tmp_path / "shifted.pt"], config).state_dict()
    for name, tensor in one.items():
        wanted = tensor + 1 if tensor.is_floating_point() else tensor
        assert torch.allclose(mean[name], wanted, atol=1e-6), name
    alone = checkpoint.load_mean([ours], config).state_dict()
    assert all(torch.equal(alone[name], tensor) for name, tensor in one.items())
