"""Learning from a larger network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from small_dataset import add, configuration, dataset, liver_and_spleen
from small_training import CONFIG, ORGANS_SHOWN, SMALL, a_patient, prepare_volume

from training.__main__ import main
from training.config import Config
from training.loop import checkpoint
from training.loop import train as loop
from training.loop.teacher import Teacher
from training.networks.torch_runner import logits_of
from training.records.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


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
    told_nothing = prepare_volume(tmp_path / "prepared", np.zeros((16, 24, 24), np.uint8), (9,))
    config = replace(Config.load(CONFIG), **SMALL)
    small = {**config.network, "features": [4, 8, 16]}
    student = replace(
        config, network=small, iterations=300, checkpoint_every=300, learning_rate=0.01
    )
    teacher = Teacher(config, trained / "checkpoint.pt", student, weight=1.0)
    path = loop.train(student, told_nothing, tmp_path / "run", teacher=teacher)
    truth = prepare_volume(tmp_path / "truth", a_patient()[1], (1, 3, 5))
    (case,) = evaluate(checkpoint.load_average(path, student), truth, student)
    for organ in ORGANS_SHOWN:
        score = case.dice[organ - 1]
        assert score is not None and score > 0.8


def test_a_teacher_is_named_on_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = dataset(tmp_path / "data")
    add(data, "P1", *liver_and_spleen())
    config = str(configuration(tmp_path))
    arguments = ["--config", config, "--data", str(data), "--work", str(tmp_path / "work")]
    assert main(["prepare", *arguments, "--workers", "1"]) == 0
    assert main(["train", *arguments]) == 0
    taught = ["train", *arguments, "--run", "student", "--teacher", config]
    assert main([*taught, str(tmp_path / "work" / "run" / "checkpoint.pt")]) == 0
    assert (tmp_path / "work" / "student" / "checkpoint.pt").exists()
    capfd.readouterr()
    assert main([*taught, str(tmp_path / "nothing.pt")]) == 2
    assert "nothing.pt" in capfd.readouterr().err
