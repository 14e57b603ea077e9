"""What the command prints, and that labels do not depend on who reads it."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk
from desk import REPOSITORY, Desk
from tiny_model import make_ct

from inference.progress import Bars
from inference.read.itk_noise import without_noise


def test_a_fill_value_beyond_float32_makes_no_noise(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    ct = sitk.Cast(make_ct(), sitk.sitkFloat64)
    ct[0, 0, 0] = -1.7e308
    sitk.WriteImage(ct, desk.inputs / "a.nii.gz")
    assert desk.run("--quiet") == 0
    assert capfd.readouterr().err == ""


def test_quiet(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    desk.put("a.nii.gz")
    assert desk.run("--quiet") == 0
    assert capfd.readouterr() == ("", "")
    (desk.inputs / "b.nii.gz").write_text("hello")
    assert desk.run("--quiet") == 1
    assert capfd.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "closed", ["| true", ">/dev/full", "2>/dev/full", ">&-", "2>&-", "<&- >&- 2>&-"]
)
def test_labels_do_not_depend_on_who_reads_the_lines(desk: Desk, closed: str) -> None:
    """Printed is a name that the standard streams' encoding does not know."""
    desk.put("a.nii.gz", "b\u4e2d.nii.gz", "c.nii.gz")
    command = shlex.join([sys.executable, "-m", "inference", *desk.arguments()])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {closed}"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert desk.there() == ["a.nii.gz", "b\u4e2d.nii.gz", "c.nii.gz"]
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_names_with_line_breaks_and_terminal_codes(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.put("a.nii.gz")
    name = "bad\nerror: all\x1b[2J.nii.gz"
    (desk.inputs / name).write_bytes(b"nothing")
    assert desk.run() == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "bad\\nerror: all\\x1b[2J.nii.gz: is " in lines[0]
    assert desk.there() == ["a.nii.gz"]


def test_bars_on_a_terminal(desk: Desk) -> None:
    desk.put("a.nii.gz", "b.nii.gz")
    (desk.inputs / "c.nii.gz").write_text("hello")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "inference", *desk.arguments()],
        cwd=REPOSITORY,
        stdout=slave,
        stderr=slave,
        text=True,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(master)
    assert process.wait() == 1
    text = shown.decode()
    assert "network" in text
    assert "%|" in text
    assert "[2/3] b.nii.gz -> " in text
    assert "c.nii.gz: is not a NIfTI file" in text


def test_bars_are_drawn_while_a_ct_is_read(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background reader keeps standard error for itself: no bar is lost there."""
    kept = threading.Event()

    def read() -> None:
        with without_noise():
            kept.set()
            time.sleep(0.2)

    def shown(step: Callable[[], object]) -> str:
        kept.clear()
        reader = threading.Thread(target=read)
        reader.start()
        kept.wait()
        step()
        reader.join()
        return capfd.readouterr().err

    # File 2 itself, which is what is kept: pytest's own standard error writes past it.
    with os.fdopen(2, "w", closefd=False) as error:
        monkeypatch.setattr(sys, "stderr", error)
        bars: list[Bars] = []
        assert "0/1" in shown(lambda: bars.append(Bars(1)))
        assert "a.nii.gz" in shown(lambda: bars[0].start(Path("a.nii.gz")))
        assert "network" in shown(lambda: bars[0].stage("network", 0.0))
        assert shown(lambda: bars[0].__exit__())
