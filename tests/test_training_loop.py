"""The loss against a plain version, the loop's promises, and the way to a model folder."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch

from training import checkpoint
from training import train as loop
from training.config import Config
from training.losses import partial_dice_cross_entropy

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


def test_organs_that_were_not_annotated_are_not_taught_to_be_absent() -> None:
    """Moving probability between background and a hidden organ changes nothing."""
    logits = torch.zeros(1, 4, 2, 2, 2, requires_grad=True)
    labels = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    annotated = torch.tensor([[True, True, False, True]])
    partial_dice_cross_entropy(logits, labels, annotated, torch.ones(1)).backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad[:, 0], logits.grad[:, 2])
    assert (logits.grad[:, 1] > 0).all()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small arrays are fastest so, and sums have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config() -> Config:
    base = Config.load(CONFIG)
    return replace(
        base,
        network={
            **base.network,
            "features": [6, 12, 24],
            "kernels": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        },
        spacing=(6.0, 6.0, 6.0),
        patch=(16, 24, 24),
        iterations=12,
        warmup=2,
        evaluate_every=1000,
        checkpoint_every=4,
        ema=0.9,
        augmentation={},
        placement={"rule": "anywhere", "foreground": 0.0},
        shares={"labelled": 1.0},
        holdout=("kept",),
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """One volume with three boxes of different brightness, once to train on, once held out."""
    folder = tmp_path / "prepared" / "images"
    folder.mkdir(parents=True)
    labels = np.zeros((16, 24, 24), np.uint8)
    labels[3:13, 4:14, 3:12] = 1
    labels[4:11, 6:13, 15:21] = 3
    labels[2:15, 16:20, 9:14] = 5
    hu = np.choose(labels // 2, [-60, 120, 220]).astype(np.int16)
    hu[labels == 1] = 60
    hu += np.random.default_rng(0).normal(0, 8, hu.shape).astype(np.int16)
    for name in ("seen", "kept"):
        annotated = np.array([1, 3, 5], np.uint8)
        np.savez(
            folder / f"{name}.npz", hu=hu, labels=labels, annotated=annotated, spacing=[6, 6, 6]
        )
    return tmp_path / "prepared"


def _losses(run: Path) -> dict[int, float]:
    with (run / "log.csv").open() as file:
        return {int(row["iteration"]): float(row["loss"]) for row in csv.DictReader(file)}


def test_interrupted_training_goes_on_to_the_same_curve(
    prepared: Path, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.train(config, prepared, tmp_path / "whole")

    saved: list[int] = []

    def save_then_be_told_to_stop(*arguments: Any) -> None:
        checkpoint.save(*arguments)
        saved.append(arguments[-1])
        if len(saved) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "save", save_then_be_told_to_stop)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, prepared, tmp_path / "halves")
    assert 4 <= saved[-1] < 12
    loop.train(config, prepared, tmp_path / "halves")

    whole, halves = _losses(tmp_path / "whole"), _losses(tmp_path / "halves")
    assert halves[4] == pytest.approx(whole[4], rel=1e-3)
    assert halves[12] == pytest.approx(whole[12], rel=2e-2)
    a, b = (
        torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)["average"]
        for run in ("whole", "halves")
    )
    for key in a:
        assert torch.allclose(a[key], b[key], atol=2e-2), key


def test_training_overfits_a_small_volume(prepared: Path, tmp_path: Path, config: Config) -> None:
    config = replace(
        config, iterations=160, checkpoint_every=80, evaluate_every=160, learning_rate=0.01
    )
    loop.train(config, prepared, tmp_path / "run")
    with (tmp_path / "run" / "scores.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    for organ in ("liver", "spleen", "aorta"):
        assert float(row[organ]) > 0.9
    assert row["stomach"] == ""  # not annotated: not scored


def test_a_wrong_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.__main__ import main

    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIG.read_text() + "\ncolour: blue\n")
    arguments = ["train", "--config", str(wrong), "--data", str(tmp_path), "--out", str(tmp_path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "unknown keys colour" in error and len(error.splitlines()) == 1
