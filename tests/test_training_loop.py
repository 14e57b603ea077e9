"""The loss against a plain version, the loop's promises, and the way to a model folder."""

from __future__ import annotations

import csv
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import SimpleITK as sitk
import torch
import yaml
from torch import nn

from inference.errors import UsageError
from training import checkpoint
from training import train as loop
from training.__main__ import main
from training.batches import batches
from training.cases import find_cases
from training.config import Config
from training.corrections import Edit
from training.evaluate import Evaluated, evaluate
from training.losses import partial_dice_cross_entropy
from training.model_folder import check_place, model_folder
from training.network import make_network
from training.options import parse
from training.pseudolabel import pseudolabel
from training.read_records import read_rows
from training.records import Records
from training.run import Run
from training.run_folder import alone_in
from training.samples import Patch, Samples
from training.steps_left import steps_left
from training.teacher import Teacher
from training.torch_runner import logits_of

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Path(__file__).parents[1] / "training" / "configs" / "abdoseg.yaml"


def _plain_loss(
    logits: np.ndarray, labels: np.ndarray, annotated: np.ndarray, class_weights: list[float]
) -> float:
    """The loss of one patch voxel by voxel, in the words of its docstring."""
    classes = logits.shape[0]
    p = np.exp(logits - logits.max(0))
    p /= p.sum(0)
    told = [c for c in range(1, classes) if annotated[c]]
    p[0] = 1 - p[told].sum(0)
    entropy, counts = [], []
    overlap, size = dict.fromkeys(told, 0.0), dict.fromkeys(told, 0.0)
    for voxel in np.ndindex(labels.shape):
        if labels[voxel] == 255:
            continue
        at = p[(slice(None),) + voxel]
        entropy.append(-np.log(at[labels[voxel]]))
        counts.append(class_weights[labels[voxel]])
        for c in told:
            overlap[c] += at[c] * (labels[voxel] == c)
            size[c] += at[c] + (labels[voxel] == c)
    dice = [(2 * overlap[c] + 1) / (size[c] + 1) for c in told]
    return float(np.average(entropy, weights=counts) + 1 - np.mean(dice))


@pytest.mark.parametrize("class_weights", [None, [1.0, 3.0, 2.0, 8.0, 5.0]])
def test_loss_equals_its_definition_with_partial_labels(class_weights: list[float] | None) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3, 4, 3))
    labels = rng.choice([0, 1, 3, 255], size=(3, 4, 3))
    annotated = np.array([True, True, False, True, False])
    loss = partial_dice_cross_entropy(
        torch.tensor(logits)[None],
        torch.tensor(labels)[None],
        torch.tensor(annotated)[None],
        torch.ones(1),
        torch.tensor(class_weights) if class_weights else None,
    )
    expected = _plain_loss(logits, labels, annotated, class_weights or [1.0] * 5)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_dice_over_a_batch_is_that_of_one_large_patch_without_absent_organs() -> None:
    rng = np.random.default_rng(1)
    logits = torch.tensor(rng.normal(size=(1, 5, 6, 4, 3)), requires_grad=True)
    labels = torch.tensor(rng.choice([0, 1, 3, 255], size=(1, 6, 4, 3)))
    present, both = torch.tensor([[True, True, False, True, False]]), torch.ones(2)
    halves = torch.cat(logits.chunk(2, dim=2)), torch.cat(labels.chunk(2, dim=1))
    here = partial_dice_cross_entropy(*halves, present.expand(2, 5), both, batch_dice=True)
    there = partial_dice_cross_entropy(logits, labels, present, both[:1])
    torch.testing.assert_close(here, there)

    # Of organs that no patch shows, voxels still say that they are not there; Dice says nothing.
    told = torch.ones(2, 5, dtype=torch.bool)
    loss = partial_dice_cross_entropy(*halves, told, both, batch_dice=True)
    known = labels != 255
    p = logits.softmax(dim=1)
    right = p.gather(1, labels.masked_fill(~known, 0)[:, None])[:, 0][known]
    dice = []
    for organ in (1, 3):
        ours, theirs = p[:, organ] * known, labels == organ
        overlap, size = (ours * theirs).sum(), ours.sum() + theirs.sum()
        dice.append((2 * overlap + 1) / (size + 1))
    expected = -right.log().mean() + 1 - sum(dice) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_dice_over_a_batch_weighs_patches_and_skips_what_was_not_annotated_in_them() -> None:
    rng = np.random.default_rng(2)
    logits = torch.tensor(rng.normal(size=(2, 4, 3, 4, 3)))
    labels = torch.tensor(rng.choice([0, 1, 2], size=(2, 3, 4, 3)))
    labels[1][labels[1] == 2] = 0
    annotated = torch.tensor([[True, True, True, False], [True, True, False, False]])
    weights = [1.0, 0.5]
    arguments = logits, labels, annotated, torch.tensor(weights)
    loss = partial_dice_cross_entropy(*arguments, batch_dice=True)

    p = logits.softmax(dim=1).numpy()
    entropy, sums = 0.0, {1: [0.0, 0.0], 2: [0.0, 0.0]}
    for patch, told in enumerate(((1, 2), (1,))):
        for z, y, x in np.ndindex(3, 4, 3):
            label, at = int(labels[patch, z, y, x]), p[patch, :, z, y, x]
            right = at[label] if label else 1 - sum(at[organ] for organ in told)
            entropy -= weights[patch] * float(np.log(right)) / labels.numel()
        for organ in told:
            ours, theirs = p[patch, organ], (labels[patch] == organ).numpy()
            sums[organ][0] += weights[patch] * float((ours * theirs).sum())
            sums[organ][1] += weights[patch] * float(ours.sum() + theirs.sum())
    dice = [(2 * overlap + 1) / (size + 1) for overlap, size in sums.values()]
    assert float(loss) == pytest.approx(entropy + 0.75 * (1 - np.mean(dice)), rel=1e-4)


def test_organs_that_were_not_annotated_are_not_taught_to_be_absent() -> None:
    """Moving probability between background and a hidden organ changes nothing."""
    logits = torch.zeros(1, 4, 2, 2, 2, requires_grad=True)
    labels = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    annotated = torch.tensor([[True, True, False, True]])
    partial_dice_cross_entropy(logits, labels, annotated, torch.ones(1)).backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad[:, 0], logits.grad[:, 2])
    assert (logits.grad[:, 1] > 0).all()


SMALL: dict[str, Any] = {
    "network": {
        "kind": "unet",
        "features": [6, 12, 24],
        "kernels": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "norm": "batch",
        "activation": "relu",
        "bias": False,
        "deep_supervision": False,
    },
    "spacing": (8.0, 8.0, 8.0),
    "patch": (16, 24, 24),
    "iterations": 12,
    "optimiser": "adamw",
    "learning_rate": 0.002,
    "warmup": 2,
    "evaluate_every": 1000,
    "checkpoint_every": 4,
    "ema": 0.9,
    "augmentation": {},
    "placement": {"rule": "anywhere", "foreground": 0.0},
    "shares": {"labelled": 1.0},
    "holdout": ("kept",),
    "empty": (),
    "coarse_first": {},
    "freeze_norm": 1.0,
    "class_weights": (),
}
SPACING = 8.0
ORGANS_SHOWN = {1: "liver", 3: "spleen", 5: "aorta"}


@pytest.fixture
def config() -> Config:
    return replace(Config.load(CONFIG), **SMALL)


def a_patient() -> tuple[np.ndarray, np.ndarray]:
    """HU and labels (z, y, x): three boxes of different brightness in a body in air."""
    labels = np.zeros((16, 24, 24), np.uint8)
    labels[3:13, 4:14, 3:12] = 1
    labels[4:11, 6:13, 15:21] = 3
    labels[2:15, 16:20, 9:14] = 5
    hu = np.full(labels.shape, -1000, np.int16)
    hu[:, 2:22, 1:23] = -60
    for organ, value in ((1, 60), (3, 120), (5, 220)):
        hu[labels == organ] = value
    hu += np.random.default_rng(0).normal(0, 8, hu.shape).astype(np.int16)
    return hu, labels


def _prepare(folder: Path, labels: np.ndarray, annotated: tuple[int, ...]) -> Path:
    """One volume, once to train on and once held out."""
    (folder / "images").mkdir(parents=True)
    for name in ("seen", "kept"):
        np.savez(
            folder / "images" / f"{name}.npz",
            hu=a_patient()[0],
            labels=labels,
            annotated=np.array(annotated, np.uint8),
            spacing=[SPACING] * 3,
        )
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _prepare(tmp_path_factory.mktemp("loop") / "prepared", a_patient()[1], (1, 3, 5))


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that has learnt the volume by heart."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = replace(Config.load(CONFIG), **SMALL)
    # Bent a little, so that it knows the patient at other sizes too.
    bent = {"warp": {"strength": 0.4}}
    config = replace(
        config, iterations=160, checkpoint_every=80, learning_rate=0.01, augmentation=bent
    )
    run = tmp_path_factory.mktemp("trained") / "run"
    loop.train(config, prepared, run)
    torch.set_num_threads(threads)
    return run


def _losses(run: Path) -> dict[int, float]:
    with (run / "log.csv").open() as file:
        return {int(row["iteration"]): float(row["loss"]) for row in csv.DictReader(file)}


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

    whole, halves = _losses(tmp_path / "whole"), _losses(tmp_path / "halves")
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


def test_nobody_else_may_train_in_a_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path / "run"):
        with (
            pytest.raises(ValueError, match="another process is training there"),
            alone_in(tmp_path / "run"),
        ):
            pass
        with alone_in(tmp_path / "other"):
            pass
    with alone_in(tmp_path / "run"):
        pass


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


@pytest.mark.parametrize(
    "end", ["4", "4,", "4,0.5,0.1", "4,0.5,0.1,", "\0\0\0\0", "4,0.53,0.4,0.5,0.1,0.1", "4,0.5,x,0"]
)
def test_what_a_power_cut_left_of_a_record_is_passed_over(tmp_path: Path, end: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"iteration,loss,seconds_per_iteration,data_wait_share\n2,0.5,0.1,0.0\n{end}")
    assert [row["iteration"] for row in read_rows(path)] == ["2"]
    Records(tmp_path, 2).close()
    assert path.read_text().splitlines()[1:] == ["2,0.5,0.1,0.0"]


def test_an_evaluation_that_was_cut_short_is_done_again(
    prepared: Path, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the first of two held-out cases."""
    folder = tmp_path / "prepared" / "images"
    folder.mkdir(parents=True)
    for name in ("seen", "kept", "kept2"):
        source = prepared / "images" / ("seen.npz" if name == "seen" else "kept.npz")
        (folder / f"{name}.npz").write_bytes(source.read_bytes())
    config = replace(config, iterations=1, holdout=("kept", "kept2"))

    def power_cut(*arguments: Any) -> Iterator[Evaluated]:
        yield next(evaluate(*arguments))
        raise SystemError

    monkeypatch.setattr(loop, "evaluate", power_cut)
    with pytest.raises(SystemError):
        loop.train(config, folder.parent, tmp_path / "run")
    monkeypatch.undo()
    for _ in range(2):  # once more changes nothing
        loop.train(config, folder.parent, tmp_path / "run")
        rows = read_rows(tmp_path / "run" / "scores.csv")
        assert [(row["iteration"], row["case"]) for row in rows] == [("1", "kept"), ("1", "kept2")]


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


def test_what_was_trained_on_is_not_held_out_later(
    prepared: Path, tmp_path: Path, config: Config
) -> None:
    open_ = replace(config, iterations=2, holdout=())
    loop.train(open_, prepared, tmp_path / "run")
    with pytest.raises(ValueError, match=r"kept cannot be held out any more, after 2 steps"):
        loop.train(replace(config, iterations=4), prepared, tmp_path / "run")
    with pytest.raises(ValueError, match="kept cannot be held out"):
        loop.train(replace(open_, iterations=4), prepared, tmp_path / "run", ("kept",))
    loop.train(replace(open_, iterations=3), prepared, tmp_path / "run")


def test_a_case_that_is_held_out_and_not_there_is_said(
    prepared: Path, tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(config, iterations=1, holdout=("kept", "refused"))
    loop.train(short, prepared, tmp_path / "run")
    said = capsys.readouterr().out
    assert "held out, but not prepared with labels, so not scored: refused\n" in said
    with pytest.raises(ValueError, match=r"not scored: refused; .*refused\.txt may say why"):
        loop.train(replace(short, holdout=()), prepared, tmp_path / "fold", ("refused",))


def test_what_a_killed_training_left_is_removed(
    prepared: Path, tmp_path: Path, config: Config
) -> None:
    (tmp_path / "run").mkdir()
    left = tmp_path / "run" / ".0123456789abcdef.partial.pt"
    left.write_bytes(b"half")
    other = tmp_path / "run" / ".mine.partial.pt"
    other.write_bytes(b"mine")
    loop.train(replace(config, iterations=1), prepared, tmp_path / "run")
    assert not left.exists() and other.exists()


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


def test_a_teacher_answers_on_the_students_grid(prepared: Path, trained: Path) -> None:
    """A student at half the spacing and with other intensities asks about the same patient."""
    config = replace(Config.load(CONFIG), **SMALL)
    student = replace(
        config, spacing=(2.0, 2.0, 2.0), clip=(-1024, 400), subtract=-100.0, divide=300.0
    )
    teacher = Teacher(config, trained / "checkpoint.pt", student)
    hu, _ = a_patient()
    fine = np.kron(hu, np.ones((2, 2, 2), np.float32))
    # Whatever the spacing that the configuration ends with: first steps may be coarser.
    answer = teacher(torch.from_numpy(student.normalise(fine))[None, None], (4.0, 4.0, 4.0))
    assert answer.shape == (1, 14, 32, 48, 48)
    network = checkpoint.load_average(trained / "checkpoint.pt", config)
    own = torch.from_numpy(logits_of(network, hu, config)).float()[None]
    enlarged = torch.nn.functional.interpolate(own, answer.shape[2:], mode="trilinear")
    for organ in ORGANS_SHOWN:  # what was not annotated cannot be told from background
        a, b = answer[0].argmax(0) == organ, enlarged[0].argmax(0) == organ
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9


def test_a_teacher_knows_that_the_first_patches_are_coarser(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    config = replace(Config.load(CONFIG), **SMALL)
    coarse = {"share": 0.5, "spacing": [16.0] * 3, "patch": [8, 16, 16]}
    student = replace(config, iterations=4, checkpoint_every=4, coarse_first=coarse)
    teacher = Teacher(config, trained / "checkpoint.pt", student)
    asked = []
    teacher._network.register_forward_pre_hook(lambda _, seen: asked.append(seen[0].shape[2:]))
    loop.train(replace(student, holdout=()), prepared, tmp_path / "run", teacher=teacher)
    # As many millimetres as the student sees: 128 x 256 x 256, then 128 x 192 x 192.
    assert asked == [(16, 32, 32)] * 2 + [(16, 24, 24)] * 2


def test_a_student_learns_from_its_teacher_alone(trained: Path, tmp_path: Path) -> None:
    """Labels that tell nothing but that there is no gallbladder: all else is the teacher's."""
    told_nothing = _prepare(tmp_path / "prepared", np.zeros((16, 24, 24), np.uint8), (9,))
    config = replace(Config.load(CONFIG), **SMALL)
    small = {**config.network, "features": [4, 8, 16]}
    student = replace(
        config, network=small, iterations=300, checkpoint_every=300, learning_rate=0.01
    )
    teacher = Teacher(config, trained / "checkpoint.pt", student, weight=1.0)
    path = loop.train(student, told_nothing, tmp_path / "run", teacher=teacher)
    truth = _prepare(tmp_path / "truth", a_patient()[1], (1, 3, 5))
    (case,) = evaluate(checkpoint.load_average(path, student), truth, student)
    for organ in ORGANS_SHOWN:
        score = case.dice[organ - 1]
        assert score is not None and score > 0.8


def test_pseudo_labels_lie_where_the_organs_do(trained: Path, tmp_path: Path) -> None:
    """In a CT that is stored turned around; the network has seen this patient, upright."""
    hu, labels = a_patient()
    folder = tmp_path / "data" / "unlabelled" / "P1"
    folder.mkdir(parents=True)
    # Stored as HU + 1024, as some scanners' software does.
    image = sitk.GetImageFromArray(np.ascontiguousarray(hu[:, ::-1, ::-1]) + 1024)
    image.SetSpacing((SPACING,) * 3)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(folder / "ct.nii.gz"))
    config = replace(Config.load(CONFIG), **SMALL)
    out = tmp_path / "made"
    networks = [trained / "checkpoint.pt"] * 2
    judged, refused = pseudolabel(find_cases(tmp_path / "data"), networks, config, out, 0.7)
    assert refused == [] and set(judged) == {"P1"}
    assert set(ORGANS_SHOWN) <= set(judged["P1"].kept)

    made = sitk.ReadImage(str(out / "P1.nii.gz"))
    assert made.GetDirection() == image.GetDirection() and made.GetSize() == image.GetSize()
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "P1_preview.png")))
    assert (picture == 255).all(axis=-1).mean() < 0.1  # soft tissue is grey
    found = sitk.GetArrayFromImage(made)[:, ::-1, ::-1]
    known = found != 255
    assert (found[known] == labels[known]).mean() > 0.97
    for organ in ORGANS_SHOWN:
        assert (found == organ).sum() > 0.5 * (labels == organ).sum()
    (case,) = find_cases(tmp_path / "data", out)
    assert case.kind == "pseudo" and case.annotated == judged["P1"].kept

    def again(corrections: dict[str, list[Edit]] | None = None) -> set[str]:
        cases = find_cases(tmp_path / "data")
        return set(pseudolabel(cases, networks, config, out, 0.7, corrections)[0])

    organ = next(iter(ORGANS_SHOWN))
    edits = {"P1": [Edit("erase", (organ,))]}
    assert again() == again({}) == set()
    assert again(edits) == {"P1"}  # they say something new of it
    assert not (sitk.GetArrayFromImage(sitk.ReadImage(str(out / "P1.nii.gz"))) == organ).any()
    assert again(edits) == again() == set()
    assert again({}) == {"P1"}
    # A correction that cannot be made leaves nothing of what it was to replace.
    beside = {"P1": [Edit("erase", (organ,), (slice(500, 501), slice(None), slice(None)))]}
    assert again(beside) == set() and not find_cases(tmp_path / "data", out)[0].annotated
    assert again() == {"P1"}
    (out / "P1.nii.gz").unlink()
    assert again() == {"P1"} and (out / "P1.nii.gz").is_file()


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


def test_a_training_that_goes_on_says_what_is_another_than_before(
    trained: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(Config.load(CONFIG), **SMALL)
    begun = tmp_path / "begun.pt"
    begun.write_bytes((trained / "checkpoint.pt").read_bytes())
    loop.train(config, prepared, tmp_path / "run", initial=[begun])
    begun.unlink()  # it was only needed to begin with
    assert "changed" not in capsys.readouterr().out
    longer = replace(config, iterations=13, learning_rate=0.001)
    loop.train(longer, prepared, tmp_path / "run", initial=[begun])
    said = capsys.readouterr().out
    assert "going on at iteration 12, with its own weights\n" in said
    assert "changed since it was last trained: iterations, learning_rate\n" in said
    with pytest.raises(ValueError, match="13 steps were made, and the configuration has 12"):
        loop.train(config, prepared, tmp_path / "run")
    assert (tmp_path / "run" / "initial.txt").read_text() == f"{begun}\n"
    (machine,) = (tmp_path / "run" / "machines.txt").read_text().splitlines()
    assert "cores of a CPU" in machine or torch.cuda.is_available()


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


def test_batches_come_in_order_from_a_thread_that_ends(prepared: Path, config: Config) -> None:
    samples = Samples(prepared, config)
    numbers = [[2, 5], [1, 0], [3, 4], [7, 6], [9, 8], [11, 10]]
    threads = torch.get_num_threads()
    with batches(samples, numbers) as stream:
        assert any(thread.name == "batches" for thread in threading.enumerate())
        for expected, batch in zip(numbers[:2], stream, strict=False):
            wanted = [samples[number] for number in expected]
            for part, tensor in enumerate(batch):
                assert torch.equal(tensor, torch.stack([patch[part] for patch in wanted]))
    # Four of the batches were not asked for.
    assert not any(thread.name == "batches" for thread in threading.enumerate())
    assert torch.get_num_threads() == threads


def test_what_goes_wrong_in_the_thread_is_raised_in_the_loop(
    prepared: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = Samples(prepared, config)
    made = samples[0]

    def fail_at_3(self: Samples, index: int) -> Patch:
        if index == 3:
            raise MemoryError("full")
        return made

    monkeypatch.setattr(Samples, "__getitem__", fail_at_3)
    with batches(samples, [[0], [1], [2], [3], [4]]) as stream:
        assert [len(next(stream).image) for _ in range(3)] == [1, 1, 1]
        with pytest.raises(MemoryError, match="full"):
            next(stream)
    assert not any(thread.name == "batches" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("step", "number"), [(["train"], signal.SIGINT), ([], signal.SIGTERM)], ids=["step", "command"]
)
def test_a_stopped_training_ends_with_all_its_processes(
    prepared: Path, tmp_path: Path, step: list[str], number: signal.Signals
) -> None:
    """Ctrl-C reaches every process, SIGTERM from a service manager perhaps the first alone."""
    content = yaml.safe_load(CONFIG.read_text())
    endless = {**SMALL, "iterations": 10**6, "checkpoint_every": 2, "evaluate_every": 10**6}
    content.update({k: list(v) if isinstance(v, tuple) else v for k, v in endless.items()})
    config = tmp_path / "endless.yaml"
    config.write_text(yaml.safe_dump(content))
    for name in ("seen", "kept"):
        data = tmp_path / "data" / "cases" / name
        data.mkdir(parents=True)
        for array, file in zip(a_patient(), ("ct", "labels"), strict=True):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((SPACING,) * 3)
            sitk.WriteImage(image, str(data / f"{file}.nii.gz"))
    work = tmp_path / "work"
    (work / "prepared" / "images").mkdir(parents=True)
    settings = {k: content[k] for k in ("spacing", "size", "crop", "stored")}
    (work / "prepared" / "settings.json").write_text(json.dumps(settings))
    for name in ("seen", "kept"):
        source = prepared / "images" / f"{name}.npz"
        (work / "prepared" / "images" / source.name).write_bytes(source.read_bytes())
    command = [*step, "--config", str(config), "--data", str(tmp_path / "data")]
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *command, "--work", str(work), "--workers", "1"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        path = work / "run" / "checkpoint.pt"
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("training: interrupted; the same command goes on")
    assert "Traceback" not in error
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    done = checkpoint.load(path)["iteration"]
    assert done == max(_losses(work / "run"))  # nothing that was done is lost
    assert not list(path.parent.glob(".*partial*"))


def test_class_weights_fade_to_nothing() -> None:
    config = replace(Config.load(CONFIG), class_weights=(1.0,) + (5.0,) * 13, iterations=100)
    cpu = torch.device("cpu")
    for step, expected in ((0, 5.0), (50, 2.0), (100, 1.0)):
        weights = loop.class_weights(config, step, cpu)
        assert weights is not None
        assert weights.tolist() == pytest.approx([1.0] + [expected] * 13)
    assert loop.class_weights(replace(config, class_weights=()), 0, cpu) is None


def test_a_wrong_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIG.read_text() + "\ncolour: blue\n")
    arguments = ["train", "--config", str(wrong), "--data", str(tmp_path), "--out", str(tmp_path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "unknown keys colour" in error and len(error.splitlines()) == 1


def _scanned(slice_: Any, pixel: Any) -> dict[str, Any]:
    scan = {"slice": slice_, "pixel": pixel}
    return {"spacing": [None] * 3, "augmentation": {"scan": scan}}


def _noisy(probability: Any, deviation: Any) -> dict[str, Any]:
    return {"augmentation": {"noise": {"probability": probability, "deviation": deviation}}}


def _coarse(**other: Any) -> dict[str, Any]:
    right = {"share": 0.5, "spacing": [16.0] * 3, "patch": [8, 8, 8]}
    return {"coarse_first": {**right, **other}}


def _network(**other: Any) -> dict[str, Any]:
    return {"network": {**SMALL["network"], **other}}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"augmentation": None}, "nothing is given for augmentation"),
        ({"placement": None, "empty": None}, "nothing is given for empty, placement"),
        ({"augmentation": {"warp": None}}, "augmentation: warp is None, not names and values"),
        ({"augmentation": ["warp"]}, "augmentation is ['warp'], not names"),
        ({"placement": "body"}, "placement is 'body', not names and values"),
        (
            {"shares": {"labelled": None}},
            "shares is {'labelled': None}, not names of one line with a number from 0 each",
        ),
        ({"tiling": "nnunet"}, "tiling is 'nnunet', not one of whole, window"),
        ({"augmentation": {"warp": {}}}, "warp needs strength"),
        (
            {"augmentation": {"warp": {"strength": "much"}}},
            "warp: strength is 'much', not a number",
        ),
        ({"augmentation": {"warp": {"strength": 1, "force": 1}}}, "warp has no force"),
        ({"augmentation": {"noise": {"deviation": [0, 1]}}}, "noise needs probability"),
        ({"augmentation": {"noise": {"probability": 1}}}, "noise needs deviation"),
        (_noisy(1, [0.2, 0.1]), "noise: deviation is [0.2, 0.1], not the lowest and the highest"),
        (_noisy(15, [0, 1]), "noise: probability is 15, not a number from 0 to 1"),
        (_noisy("1e-1", [0, 1]), "noise: probability: YAML takes 1e-1 for text; write 0.1"),
        (
            {"augmentation": {"turn": {"probability": 1, "degrees": 15}}},
            "degrees is 15, not a list",
        ),
        ({"augmentation": {"mirror": {"axes": 2}}}, "mirror: axes is 2, not a list"),
        ({"augmentation": {"mirror": {"axes": [3]}}}, "mirror: axes is [3], not a list"),
        ({"augmentation": {"phase": {}}, "stored": [-250, 350]}, "stored must be wider than clip"),
        ({"coarse_first": {"share": 0.5}}, "coarse_first needs spacing and patch"),
        (_coarse(share="0.5"), "coarse_first: share is '0.5', not a number from 0 to 1"),
        (_coarse(share=60), "coarse_first: share is 60, not a number from 0 to 1"),
        (_coarse(spacing=3.0), "coarse_first: spacing is 3.0, not a list of 3"),
        (_coarse(patch=[8, 12]), "coarse_first: patch is [8, 12], not a list of 3"),
        (_coarse(patch=[8, 8, 9]), "patch [8, 8, 9] is no multiple of the network's"),
        ({"network": {"kind": "unet"}}, "network: missing"),
        (_network(norm="bach"), "network: there is no 'bach'"),
        (_network(kernels=[[2, 3, 3]] * 3), "network: takes no patch"),
        ({"placement": {"rule": "anywhere"}}, "the rule 'anywhere' needs foreground"),
        ({"placement": {"rule": "anywhere", "foreground": 85}}, "foreground is 85, not a number"),
        (
            {"network": {**SMALL["network"], "strides": [[1, 1, 1], [0, 2, 2], [2, 2, 2]]}},
            "strides and pooling are 1 or more",
        ),
        ({"augmentation": {"slab": {}}}, "slab needs probability"),
        (_scanned(3, [1, 2]), "scan: slice is 3, not the lowest and the highest"),
        (_scanned([0, 5], [1, 2]), "scan: slice is [0, 5], not the lowest and the highest, each a"),
        (_scanned([1, 5], ["a", "b"]), "scan: pixel is ['a', 'b'], not the lowest"),
        ({**_scanned([1, 5], [1, 2]), "spacing": [2.0] * 3}, "scan changes nothing"),
        ({"batch": 6, "drawn_at_once": 4}, "neither of batch and drawn_at_once"),
        ({"augmentation": {"blurr": {}}}, "there is no blurr"),
        ({"placement": {"rule": "everywhere"}}, "there is no rule 'everywhere'"),
        ({"learning_rate": "1e-3"}, "learning_rate: YAML takes 1e-3 for text; write 0.001"),
        ({"learning_rate": 10**400}, "learning_rate is 1000"),
        ({"spacing": 2.0, "augmentation": {"scan": {}}}, "spacing is 2.0, not a list of 3"),
        ({"iterations": 1.5}, "iterations is 1.5, not a whole number"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0, not a whole number from 1"),
        ({"ema": float("nan")}, "ema is nan, not a number from 0 to 1"),
        ({"gradient_clip": -1}, "gradient_clip is -1, not a number above 0"),
        ({"divide": "some"}, "divide is 'some', not a number"),
        ({"batch_dice": "maybe"}, "batch_dice is 'maybe', not true or false"),
        ({"name": 3}, "name is 3, not text"),
        ({"patch": "abc"}, "patch is 'abc', not a list of 3"),
        ({"holdout": "kept"}, "holdout is 'kept', not a list"),
        ({"precision": "INT8"}, "precision is 'INT8', not one of"),
        ({"postprocessing": [{"step": "keep_larges", "labels": [1]}]}, "bad postprocessing"),
        ({"self_training": {"rounds": 2}}, "self_training needs iterations and learning_rate"),
        (
            {"self_training": {"rounds": 0, "iterations": 9, "learning_rate": 0.001}},
            "self_training: rounds is 0, not a whole number from 1",
        ),
        (
            {"self_training": {"rounds": 1, "iterations": 9.5, "learning_rate": 0.001}},
            "self_training: iterations is 9.5, not a whole number from 1",
        ),
        (
            {"self_training": {"rounds": 1, "iterations": 9, "learning_rate": "1e-3"}},
            "self_training: learning_rate: YAML takes 1e-3 for text; write 0.001",
        ),
    ],
)
def test_every_mistake_in_a_configuration_is_one_line(
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: dict[str, Any],
    said: str,
) -> None:
    data = tmp_path / "data" / "unlabelled" / "kept"
    data.mkdir(parents=True)
    content = yaml.safe_load(CONFIG.read_text())
    content.update({k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()})
    content.update(wrong)
    config = tmp_path / "wrong.yaml"
    config.write_text(yaml.safe_dump(content))
    work = tmp_path / "work"
    work.mkdir()
    (work / "prepared").symlink_to(prepared)
    # Said before anything is prepared, which may take hours.
    arguments = ["prepare", "--config", str(config), "--data", str(data.parents[1])]
    assert main([*arguments, "--work", str(work)]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--round", "3"], "'abdoseg' has 2 rounds, not 3"),
        (["pseudolabel", "--round", "-1"], "'abdoseg' has 2 rounds, not -1"),
        (["--round", "0"], "--round is for one step alone"),
        (["--checkpoint", "it.pt"], "--checkpoint is for the steps"),
        (["train", "--round", "1"], "no pseudo-labels for this round (no fold, run_round1); run"),
        (["pseudolabel", "--round", "2"], "run_round1/checkpoint.pt: no checkpoint"),
    ],
)
def test_a_round_that_cannot_be_made_is_one_line(
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "data" / "unlabelled" / "kept").mkdir(parents=True)
    content = yaml.safe_load(CONFIG.read_text())
    content.update({k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()})
    content["self_training"] = {"rounds": 2, "iterations": 5, "learning_rate": 0.001}
    config = tmp_path / "rounds.yaml"
    config.write_text(yaml.safe_dump(content))
    work = tmp_path / "work"
    work.mkdir()
    (work / "prepared").symlink_to(prepared)
    given = ["--config", str(config), "--data", str(tmp_path / "data"), "--work", str(work)]
    assert main([*arguments, *given]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def _two_rounds(data: Path) -> tuple[Config, Path]:
    """A configuration with two rounds of self-training, and one CT to label in them."""
    (data / "unlabelled" / "ct").mkdir(parents=True)
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(data / "unlabelled/ct/ct.nii.gz"))
    settings = {"rounds": 2, "iterations": 5, "learning_rate": 0.001}
    return replace(Config.load(CONFIG), empty=(), holdout=(), self_training=settings), data


@pytest.mark.parametrize("fails", ["aside", "in place"])
def test_a_model_folder_is_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A folder that cannot be moved away, or the new one that cannot take its place."""
    out = tmp_path / "model"
    out.mkdir()
    (out / "plan.json").write_text("before")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if (self == out) == (fails == "aside") and self.name != "before":
            raise OSError("busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="busy"), model_folder(out) as folder:
        (folder / "plan.json").write_text("after")
    assert (out / "plan.json").read_text() == "before"
    monkeypatch.undo()
    with model_folder(out) as folder:
        (folder / "plan.json").write_text("after")
    assert (out / "plan.json").read_text() == "after" and [*tmp_path.iterdir()] == [out]
    monkeypatch.setattr(Path, "is_mount", lambda path: path == out)
    with pytest.raises(UsageError, match="is a mount point"):
        check_place(out)


def test_a_step_that_is_killed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the system does with what takes the last of the memory."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    _, data = _two_rounds(tmp_path / "data")
    content = yaml.safe_load(CONFIG.read_text())
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**content, "empty": [], "holdout": []}))
    assert main([f"--config={tmp_path / 'c.yaml'}", f"--data={data}", f"--work={tmp_path}"]) == 137
    (line,) = capsys.readouterr().err.splitlines()
    assert "prepare was killed (signal 9)" in line


def test_a_missing_compiler_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(run: Run) -> None:
        torch._inductor.cpp_builder.get_cpp_compiler()

    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/g++"))
    torch._inductor.cpp_builder.cpp_compiler_search.cache_clear()
    monkeypatch.setattr(Run, "__init__", lambda run, config, options: None)
    monkeypatch.setattr(Run, "train", train)
    assert main(["train", f"--config={CONFIG}", "--data=nowhere"]) == 2
    assert capsys.readouterr().err == (
        "training: torch.compile needs a C and C++ compiler; install one, or give --no-compile\n"
    )


def test_every_round_draws_patches_of_its_own(prepared: Path, tmp_path: Path) -> None:
    """Folds are drawn with the seed too: what is held out stays the same."""
    config, data = _two_rounds(tmp_path / "data")
    for name in "abcdef":
        (data / "cases" / name).mkdir(parents=True)
        for file in ("ct.nii.gz", "labels.nii.gz"):
            sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(data / "cases" / name / file))
    content = yaml.safe_load(CONFIG.read_text())
    content.update(self_training=dict(config.self_training), empty=[], holdout=[])
    path = tmp_path / "rounds.yaml"
    path.write_text(yaml.safe_dump(content))
    given = ["--config", str(path), "--data", str(data), "--work", str(tmp_path / "work")]
    bent = {"augmentation": {"warp": {"strength": 0.4}}}
    drawn, held_out = set(), set()
    for number in range(3):
        run = Run(Config.load(path), parse(["prepare", *given, "--fold=1", f"--round={number}"]))
        held_out.add(run.holdout)
        samples = Samples(prepared, replace(run.config, **{**SMALL, **bent}))
        drawn.add(tuple(float(samples[index].image.sum()) for index in range(4)))
    assert len(drawn) == 3 and len(held_out) == 1


def test_the_whole_command_goes_on_with_the_round_that_was_begun(tmp_path: Path) -> None:
    """Rounds of another run, or of another fold, are others."""
    config, data = _two_rounds(tmp_path / "data")

    def steps(*more: str) -> str:
        given = ["--config", "c", "--data", str(data), "--work", str(tmp_path / "work"), *more]
        made = steps_left(config, parse(given))
        return " ".join(f"{step}{flag.removeprefix('--round=')}" for step, flag in made)

    from_the_first = (
        "prepare0 train0 pseudolabel1 prepare1 train1 pseudolabel2 prepare2 train2 export2"
    )
    assert steps() == from_the_first
    for name in ("run", "run_round1"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "checkpoint.pt").touch()
    assert steps() == "prepare1 train1 pseudolabel2 prepare2 train2 export2"
    assert steps("--run", "second") == steps("--fold", "0") == from_the_first
    (tmp_path / "annotated.json").write_text("{}")
    assert steps("--pseudolabels", str(tmp_path)) == "prepare0 train0 export0"
    with pytest.raises(ValueError, match="no pseudo-labels here"):
        steps("--pseudolabels", str(tmp_path / "mistyped"))
    for name in ("work", "."):  # the model folder is replaced as a whole
        (tmp_path / name / "plan.json").touch()
        with pytest.raises(ValueError, match="would take the place of the training"):
            steps("--out", str(tmp_path / name))
    with pytest.raises(ValueError, match=r"typo\.yaml: no such file"):
        steps("--corrections", str(tmp_path / "typo.yaml"))
    with pytest.raises(ValueError, match="no rounds that label CTs"):
        steps("--pseudolabels", str(tmp_path), "--corrections", str(tmp_path / "annotated.json"))
    (tmp_path / "failures.md").write_bytes("Fältchen".encode("latin-1"))
    with pytest.raises(ValueError, match=r"failures\.md: not UTF-8"):
        steps("--known-failures", str(tmp_path / "failures.md"))
    with pytest.raises(ValueError, match="run 'pseudolabel --round 2' first"):
        given = ["--config", "c", "--data", str(data), "--work", str(tmp_path / "work")]
        Run(config, parse(["prepare", *given, "--round", "2"])).prepare()
    for option in (["--initial"], ["--teacher", str(CONFIG)], ["--known-failures"]):
        with pytest.raises(ValueError, match="mistyped: no such file or folder"):
            steps(*option, str(tmp_path / "mistyped"))
    with pytest.raises(UsageError, match="exists and is no model folder"):
        steps("--out", str(data))
    (tmp_path / "work" / "run" / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match=r"run: has no checkpoint, but .*run_round1 has"):
        steps()
    corrections = tmp_path / "corrections.yaml"
    corrections.write_text("of_nobody:\n  - doubt: [liver]\n")
    with pytest.raises(ValueError, match="of_nobody: there is no such case"):
        steps("--corrections", str(corrections))


def test_a_round_has_the_pseudo_labels_and_weights_of_the_training_before(tmp_path: Path) -> None:
    config, data = _two_rounds(tmp_path / "data")

    def of(step: str, number: int) -> Run:
        given = [step, "--config", "c", "--data", str(data), "--work", str(tmp_path)]
        return Run(config, parse([*given, "--run", "it", f"--round={number}"]))

    for number, before in ((1, "it"), (2, "it_round1")):
        weights = [tmp_path / before / "checkpoint.pt"]
        labels = tmp_path / f"it_round{number}" / "pseudolabels"
        assert of("pseudolabel", number).checkpoints == weights
        assert of("train", number).initial == weights
        begun = of("train", number).config
        assert (begun.iterations, begun.coarse_first, begun.class_weights) == (5, {}, ())
        for step in ("pseudolabel", "prepare", "train"):
            assert of(step, number).pseudolabels == labels
    assert of("export", 2).checkpoints == [tmp_path / "it_round2" / "checkpoint.pt"]
    assert of("train", 0).config.iterations == config.iterations
