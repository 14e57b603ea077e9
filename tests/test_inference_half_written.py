"""Nothing half-written is left: on a full disk, or when the command is stopped."""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from desk import Desk, start
from tiny_model import make_ct, make_tiny_model

import inference.batch
from inference.write.files import appearing


@pytest.mark.parametrize("room", [2000, 0])  # ITK says something of the first alone
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "a.nrrd"])
def test_full_disk(
    desk: Desk,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    room: int,
) -> None:
    """Files may grow to so many bytes only, which acts as a disk that is full."""
    desk.put(name)
    desk.outputs.mkdir()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 14, sitk.GetArrayFromImage(make_ct()).shape).astype(np.uint8)
    noise *= room > 0  # little to write
    real = inference.batch.write  # type: ignore[attr-defined]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def on_a_full_disk(path: Path, labels: Any, *rest: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            real(path, noise, *rest)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr("inference.batch.write", on_a_full_disk)
    try:
        assert desk.run() == 1
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    assert desk.there() == []
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "labels cannot be written" in lines[0]


def test_appearing_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), appearing(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
    assert target.read_text() == "old"
    with appearing(target) as temporary:
        assert temporary.name.endswith(".partial.txt")
        with appearing(tmp_path / f"{'a' * 99}.txt") as one:
            with appearing(tmp_path / f"b{'a' * 99}.txt") as other:
                assert one != other
                other.touch()
            one.touch()
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_in_the_middle_of_writing(desk: Desk, number: signal.Signals) -> None:
    """The process is stopped while its temporary file is there."""
    desk.put("a.nii.gz", "b.nii.gz")
    slow = (
        "import sys, time, inference.write.files as w, inference.cli as c\n"
        "real = w.write_labels\n"
        "def slowly(file, *rest):\n"
        "    file.write(b'half'); file.flush(); time.sleep(60)\n"
        "w.write_labels = slowly\n"
        "sys.exit(c.main(sys.argv[1:]))\n"
    )
    process = start("-c", slow, *desk.arguments())
    deadline = time.monotonic() + 60
    while not (desk.outputs.is_dir() and any(".partial." in name for name in desk.there())):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert desk.there() == []


def test_stopped_in_a_long_pass(desk: Desk) -> None:
    """A network that takes minutes is left within a moment."""
    desk.model = desk.outputs.parent / "slow"
    make_tiny_model(desk.model, spacing=(0.1, 0.12, 0.12), crop="none")
    desk.put("a.nii.gz")
    slow = (
        "import sys, inference.network.network as n, inference.cli as c\n"
        "real = n.ov.Tensor\n"
        "def told(*a, **k):\n"
        "    print('pass', flush=True); return real(*a, **k)\n"
        "n.ov.Tensor = told\n"
        "sys.exit(c.main(sys.argv[1:]))\n"
    )
    process = start("-c", slow, *desk.arguments("--threads", 1))
    assert process.stdout is not None
    assert process.stdout.readline() == "pass\n"
    time.sleep(0.3)
    begun = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert time.monotonic() - begun < 10
    assert desk.there() == []


def test_ctrl_c_twice_while_the_network_compiles(desk: Desk) -> None:
    """The compiling thread is waited for at the very end, when the first Ctrl-C was seen to."""
    desk.put("a.nii.gz")
    slow = (
        "import sys, time, inference.network.network as n, inference.cli as c\n"
        "real = n.Network._compile\n"
        "def slowly(*a):\n"
        "    print('compiles', flush=True); time.sleep(4); return real(*a)\n"
        "n.Network._compile = slowly\n"
        "c.program()\n"
    )
    process = start("-c", slow, *desk.arguments())
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "compiles\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "interrupted\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert desk.there() == []
