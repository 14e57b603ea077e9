"""Wrong usage: exit code 2, one line, and nothing is done."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from desk import REPOSITORY, Desk, start

import inference
from inference.cli import main


def _make_a_pipe(desk: Desk) -> None:
    desk.inputs.rmdir()
    os.mkfifo(desk.inputs)


def _put_deeper(desk: Desk) -> None:
    """Patients' folders, as TotalSegmentator's data has them."""
    for patient in ("p2", "p1"):
        (desk.inputs / patient).mkdir()
        desk.put(f"{patient}/ct.nii.gz")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda d: d.inputs.rmdir(), "no such file or folder"),
        (_make_a_pipe, "neither a file nor a folder"),
        (lambda d: None, "no file is in this folder"),
        (lambda d: (d.inputs / "x.txt").write_text(""), "no CT here"),
        (_put_deeper, "p1/ct.nii.gz is a CT by its ending"),
        (lambda d: setattr(d, "model", "nothing"), "no model 'nothing'"),
        (lambda d: d.outputs.write_text("a file"), "is a file, not a folder"),
        (lambda d: setattr(d, "outputs", Path("/proc/nowhere")), "cannot be written"),
        (lambda d: setattr(d, "outputs", d.inputs / "\udcff"), "its name is not UTF-8"),
        (lambda d: setattr(d, "inputs", d.inputs / ("x" * 300)), "cannot be read (File name too l"),
    ],
)
def test_wrong_usage(
    desk: Desk, capfd: pytest.CaptureFixture[str], prepare: Any, reason: str
) -> None:
    if any(word in reason for word in ("model", "written", "is a file", "UTF-8")):
        desk.put("a.nii.gz")
    prepare(desk)
    assert desk.run() == 2
    err = capfd.readouterr().err
    assert reason in err
    assert len(err.splitlines()) == 1


def test_report_and_label_table_are_two_files(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.put("a.nii.gz")
    table = desk.report.with_suffix(".txt")
    other_name = table.parent / "in" / ".." / table.name
    assert desk.run("--report", table, "--label-table", other_name) == 2
    assert "--report and for --label-table" in capfd.readouterr().err
    assert not table.exists() and not desk.outputs.exists()
    loop = table.parent / "loop.txt"
    loop.symlink_to(loop)
    assert desk.run("--report", loop, "--label-table", table) == 0
    assert not loop.is_symlink() and json.loads(loop.read_text())["cases"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-i", "x"],
        ["-i", "x", "-o", ""],
        ["--demo", "x", "-o", "y"],
        ["-i", "x", "-o", "y", "--threads", "0"],
        ["-i", "x", "-o", "y", "--threads", "9" * 20],
    ],
)
def test_wrong_options(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_a_folder_for_labels_is_not_named_like_a_ct(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.put("a.nii.gz")
    desk.outputs = desk.outputs.with_name("labels.nii.gz")
    assert desk.run() == 2
    assert "is named like a CT; -o is the folder where labels go" in capfd.readouterr().err
    desk.outputs.mkdir()
    assert desk.run() == 0


def test_a_second_input_is_refused(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    desk.put("a.nii.gz", "b.nii.gz")
    assert desk.run("-i", desk.inputs / "a.nii.gz") == 2
    assert "-i may be given once" in capfd.readouterr().err


def test_wrong_usage_is_told_by_the_exit_code_alone_where_nothing_can_be_said() -> None:
    words = shlex.join([sys.executable, "-m", "inference", "-i", "/nowhere", "-o", "/nowhere/else"])
    done = subprocess.run(["bash", "-c", f"{words} 2>/dev/full"], cwd=REPOSITORY, check=False)
    assert done.returncode == 2


def test_demo_without_a_model_writes_nothing(
    tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--demo", str(tmp_path / "demo"), "--model", "nothing"]) == 2
    assert "no model 'nothing'" in capfd.readouterr().err
    arguments = ["--demo", str(tmp_path / "demo"), "--model", str(tiny_folder)]
    assert main([*arguments, "--precision", "bf16"]) == 2
    assert "has no 'bf16' network" in capfd.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("package", ["SimpleITK", "openvino"])
def test_missing_package_is_one_line(desk: Desk, package: str) -> None:
    desk.put("a.nii.gz")
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from inference.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = start("-c", code, *desk.arguments())
    _, err = process.communicate()
    assert process.returncode == 2
    assert err == f"error: {package} is not installed; this needs pip install .\n"


def test_a_package_that_is_too_old_is_one_line(desk: Desk) -> None:
    desk.put("a.nii.gz")
    code = (
        "import sys, types; sys.modules['openvino'] = types.ModuleType('openvino')\n"
        "from inference.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = start("-c", code, *desk.arguments())
    _, err = process.communicate()
    assert process.returncode == 2
    assert re.fullmatch(r"error: .*openvino.*; this needs pip install \.\n", err)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"abdoseg {inference.__version__}\n"
