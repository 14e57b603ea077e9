"""What may go on in a training's folder, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from small_training import CONFIG, SMALL

from training.config import Config
from training.loop import train as loop
from training.records.run_folder import alone_in

pytestmark = pytest.mark.usefixtures("one_thread")


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
