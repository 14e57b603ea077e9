"""The loop's promises: that it goes on as it was, learns, and keeps what it must."""

from __future__ import annotations

import csv
import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from small_training import CONFIG, ORGANS_SHOWN, losses
from torch import nn

from training.config import Config
from training.loop import checkpoint
from training.loop import train as loop
from training.loop.losses import partial_dice_cross_entropy
from training.loop.team import Team
from training.networks.network import make_network
from training.patches.samples import Samples
from training.records.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


def test_interrupted_training_goes_on_to_the_same_curve(
    prepared: Path, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: every loss, every weight, the optimiser's state."""
    config = replace(config, checkpoint_every=1)
    loop.train(config, prepared, tmp_path / "whole")

    saved: list[int] = []

    def save_then_be_told_to_stop(*arguments: Any) -> None:
        checkpoint.save(*arguments)
        saved.append(arguments[-1])
        if len(saved) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "save", save_then_be_told_to_stop)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, prepared, tmp_path / "halves")
    assert 4 <= saved[-1] <= 5
    loop.train(config, prepared, tmp_path / "halves")

    whole, halves = losses(tmp_path / "whole"), losses(tmp_path / "halves")
    assert list(whole) == list(range(1, 13))
    assert halves == whole
    a, b = (
        torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)
        for run in ("whole", "halves")
    )
    for part in ("network", "average"):
        for key in a[part]:
            assert torch.equal(a[part][key], b[part][key]), key
    for number, state in a["optimiser"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, b["optimiser"]["state"][number][key])


def test_one_infinite_gradient_costs_one_step_and_many_end_the_training(
    prepared: Path,
    tmp_path: Path,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, calls = nn.utils.clip_grad_norm_, itertools.count(1)
    infinite = {2}

    def clip(parameters: Any, most: float) -> torch.Tensor:
        parameters = list(parameters)
        if next(calls) in infinite:
            parameters[0].grad[0] = torch.inf
        return real(parameters, most)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    config = replace(config, checkpoint_every=2)
    path = loop.train(config, prepared, tmp_path / "run")
    assert "iteration 2 left out: its gradient's norm is" in capsys.readouterr().out
    state = torch.load(path, weights_only=True)
    for part in ("network", "average"):
        assert all(weight.isfinite().all() for weight in state[part].values())
    steps = {int(each["step"]) for each in state["optimiser"]["state"].values()}
    assert steps == {config.iterations - 1}

    infinite.update(range(1000))
    longer = replace(config, iterations=40)
    with pytest.raises(ValueError, match="holds the state before"):
        loop.train(longer, prepared, tmp_path / "run")
    kept = torch.load(path, weights_only=True)["network"]
    assert all(weight.isfinite().all() for weight in kept.values())


def test_training_overfits_a_small_volume(trained: Path) -> None:
    with (trained / "scores.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    for organ in ORGANS_SHOWN.values():
        assert float(row[organ]) > 0.9
    assert row["stomach"] == ""  # not annotated: not scored


def test_organs_that_no_case_tells_are_never_found(
    trained: Path, prepared: Path, config: Config
) -> None:
    """Left open, they would hide in all of the background, and win there."""
    network = checkpoint.load_average(trained / "checkpoint.pt", config)
    (case,) = evaluate(network, prepared, config)
    assert set(np.unique(case.predicted)) <= {0, *ORGANS_SHOWN}
    told = {0, *ORGANS_SHOWN}
    left_open = Samples(prepared, config)
    assert {*left_open.untold} == {*range(14)} - told
    assert {*left_open[0].annotated.nonzero().flatten().tolist()} == told
    assert Samples(prepared, config, untold_is_absent=True)[0].annotated.all()


def test_weights_to_begin_with_may_know_what_no_case_tells(
    trained: Path,
    prepared: Path,
    tmp_path: Path,
    config: Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = replace(config, iterations=2)
    loop.train(short, prepared, tmp_path / "anew")
    assert "so taught to be absent: right_kidney, pancreas" in capsys.readouterr().out
    for _ in range(2):  # it is known when it goes on, too
        loop.train(short, prepared, tmp_path / "run", initial=[trained / "checkpoint.pt"])
        assert "so not taught anew: right_kidney, pancreas" in capsys.readouterr().out
        short = replace(short, iterations=3)


def test_a_case_that_is_held_out_and_not_there_is_said(
    prepared: Path, tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(config, iterations=1, holdout=("kept", "refused"))
    loop.train(short, prepared, tmp_path / "run")
    said = capsys.readouterr().out
    assert "held out, but not prepared with labels, so not scored: refused\n" in said
    with pytest.raises(ValueError, match=r"not scored: refused; .*refused\.txt may say why"):
        loop.train(replace(short, holdout=()), prepared, tmp_path / "fold", ("refused",))


def test_frozen_norms_keep_their_statistics_and_weights_go_on(
    prepared: Path, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def remember(path: Path, network: torch.nn.Module, *_: Any) -> None:
        states.append({k: v.clone() for k, v in network.state_dict().items()})

    monkeypatch.setattr(loop, "save", remember)
    config = replace(config, iterations=8, checkpoint_every=1, freeze_norm=0.5)
    loop.train(config, prepared, tmp_path / "run")
    counted = [k for k in states[0] if k.endswith("num_batches_tracked")]
    statistics = [k for k in states[0] if k.endswith(("running_mean", "running_var"))]
    assert len(counted) == 10 and len(statistics) == 20
    for step, state in enumerate(states, start=1):
        assert {int(state[k]) for k in counted} == {min(step, 4)}
        same = [torch.equal(state[k], states[3][k]) for k in statistics]
        assert all(same) if step >= 4 else not any(same)
    first = "encoder.0.0.weight"
    assert not torch.equal(states[-1][first], states[4][first])


def test_frozen_norms_are_used_as_inference_does(
    prepared: Path, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With norms frozen from the start, the first loss is that of the network in evaluation."""
    seen: list[torch.Tensor] = []
    real = partial_dice_cross_entropy

    def remember(logits: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        seen.append(logits.detach().float())
        return real(logits, *others, **options)

    monkeypatch.setattr(loop, "partial_dice_cross_entropy", remember)
    config = replace(config, iterations=1, freeze_norm=0.0)
    loop.train(config, prepared, tmp_path / "run")
    torch.manual_seed(config.seed)
    network = make_network(dict(config.network)).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = network(Samples(prepared, config)[0].image[None]).float()
    assert torch.allclose(seen[0], expected, atol=0.02)


def test_class_weights_fade_to_nothing() -> None:
    config = replace(Config.load(CONFIG), class_weights=(1.0,) + (5.0,) * 13, iterations=100)
    cpu = torch.device("cpu")
    for step, expected in ((0, 5.0), (50, 2.0), (100, 1.0)):
        weights = loop.class_weights(config, step, cpu)
        assert weights is not None
        assert weights.tolist() == pytest.approx([1.0] + [expected] * 13)
    assert loop.class_weights(replace(config, class_weights=()), 0, cpu) is None


def test_volumes_leave_a_gpu_room_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.load(CONFIG.parent / "nnunet_iso2p5.yaml")
    gb = 1e9
    one, four = (Team(0, size, torch.device("cuda", 0)) for size in (1, 4))
    for free, team, most in ((80, one, 40), (24, one, 4), (8, one, 0), (24, four, 12)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda free=free: (free * gb, 0))
        room = loop._room_for_volumes(config, team) / gb
        assert 0.4 * most <= room <= most
    assert loop._room_for_volumes(config, Team(0, 1, torch.device("cpu"))) == 0


def test_rates_fall_as_configured() -> None:
    sgd, cosine, ours = (
        Config.load(CONFIG.parent / f"{name}.yaml")
        for name in ("nnunet_iso2p5", "dsunet_eca", "abdoseg")
    )
    assert loop.learning_rate(sgd, 0) == 0.01
    assert loop.learning_rate(sgd, 125_000) == pytest.approx(0.01 * 0.5**0.9)
    assert loop.learning_rate(cosine, 25_000) == pytest.approx(0.0005)
    half = ours.learning_rate / 2
    assert loop.learning_rate(ours, ours.warmup // 2 - 1) == pytest.approx(half, rel=0.01)
