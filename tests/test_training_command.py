"""How the command ends that is stopped, killed or lacks something."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import SimpleITK as sitk
import torch
import yaml
from small_training import CONFIG, SMALL, SPACING, a_patient, losses, two_rounds

from training.__main__ import main
from training.loop import checkpoint
from training.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert done == max(losses(work / "run"))  # nothing that was done is lost
    assert not list(path.parent.glob(".*partial*"))


def test_a_step_that_is_killed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the system does with what takes the last of the memory."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    _, data = two_rounds(tmp_path / "data")
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


def test_a_gpus_illegal_access_is_not_called_too_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(run: Run) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Run, "__init__", lambda run, config, options: None)
    monkeypatch.setattr(Run, "train", train)
    with pytest.raises(RuntimeError, match="illegal"):
        main(["train", f"--config={CONFIG}", "--data=nowhere"])
