"""The command from file to file: names, exit codes, lines, reports, nothing half-written."""

from __future__ import annotations

import errno
import fcntl
import gzip
import itertools
import json
import os
import pty
import re
import resource
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import put
from tiny_model import make_ct, make_tiny_model

import inference
import inference.batch
from inference.cases import find_cases
from inference.cli import main
from inference.errors import UsageError
from inference.file_names import label_name
from inference.itk_noise import without_noise
from inference.label_table import write_label_table
from inference.machine import seconds_since_start
from inference.model import Model
from inference.organs import COLOURS
from inference.plan import Plan
from inference.progress import Bars
from inference.writing import appearing

REPOSITORY = Path(__file__).parent.parent


class Desk:
    """A folder of CTs, a folder for labels, and the command."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.inputs = folder / "in"
        self.outputs = folder / "out"
        self.report = folder / "report.json"
        self.model = model
        self.inputs.mkdir()

    def put(self, *names: str) -> None:
        for name in names:
            sitk.WriteImage(make_ct(), self.inputs / name)

    def arguments(self, *more: object) -> list[str]:
        given = [str(argument) for argument in more]
        return ["-i", str(self.inputs), "-o", str(self.outputs), "--model", str(self.model), *given]

    def run(self, *more: object) -> int:
        try:
            return main(self.arguments(*more))
        except SystemExit as end:  # argparse
            return int(end.code or 0)

    def there(self) -> list[str]:
        return sorted(path.name for path in self.outputs.iterdir())

    def cases(self) -> list[dict[str, Any]]:
        cases: list[dict[str, Any]] = json.loads(self.report.read_text())["cases"]
        return cases


@pytest.fixture
def desk(tmp_path: Path, tiny_folder: Path) -> Desk:
    return Desk(tmp_path, tiny_folder)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("X_0000.nii.gz", "X.nii.gz"),
        ("X.nii.gz", "X.nii.gz"),
        ("X_0000.nii", "X.nii"),
        ("FLARE_0001_0000.NII.GZ", "FLARE_0001.nii.gz"),
        ("a.b_0000.mha", "a.b.mha"),
        ("X.mhd", "X.mha"),
        ("X.nrrd", "X.nrrd"),
        ("_0000.nii.gz", "_0000.nii.gz"),
        ("X_00001.nii.gz", "X_00001.nii.gz"),
    ],
)
def test_names(name: str, labels: str) -> None:
    assert label_name(name) == labels


def test_0000_beside_0001_is_a_number(desk: Desk) -> None:
    desk.put("img_0000.nii.gz", "img_0001.nii.gz", "FLARE_0007_0000.nii.gz", "FLARE_0008.nii.gz")
    names = [case.target.name for case in find_cases(desk.inputs, desk.outputs)]
    assert names == ["FLARE_0007.nii.gz", "FLARE_0008.nii.gz", "img_0000.nii.gz", "img_0001.nii.gz"]


def test_0000_in_two_formats_is_a_channel(desk: Desk) -> None:
    desk.put("a_0000.nii.gz")
    (desk.inputs / "a_0000.nii").touch()
    names = [case.target.name for case in find_cases(desk.inputs, desk.outputs)]
    assert sorted(names) == ["a.nii", "a.nii.gz"]


def test_a_link_that_leads_nowhere_is_not_passed_over(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.put("a.nii.gz")
    (desk.inputs / "b.nii.gz").symlink_to(desk.inputs / "elsewhere" / "b.nii.gz")
    assert desk.run() == 1
    assert desk.there() == ["a.nii.gz"]
    assert "b.nii.gz: is a link to" in capfd.readouterr().err


def test_a_link_to_itself_costs_no_other_case(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.put("a.nii.gz")
    (desk.inputs / "b.nii.gz").symlink_to("b.nii.gz")
    assert desk.run() == 1
    assert desk.there() == ["a.nii.gz"]
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_name_that_is_not_utf8_costs_no_other_case(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.put("a.nii.gz", "c.nii.gz")
    (desk.inputs / "a.nii.gz").rename(desk.inputs / "b\udcff.nii.gz")
    assert desk.run() == 1
    assert desk.there() == ["c.nii.gz"]
    assert "a name that is not UTF-8" in capfd.readouterr().err


def test_folder_of_every_format(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    desk.put("a_0000.nii.gz", "b.nii", "c.mha", "d.mhd", "e.nrrd", ".hidden.nii.gz")
    (desk.inputs / "notes.txt").write_text("none of a CT's business")
    (desk.inputs / "sub").mkdir()
    assert desk.run() == 0
    assert desk.there() == ["a.nii.gz", "b.nii", "c.mha", "d.mha", "e.nrrd"]
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(desk.outputs / n)) for n in desk.there()]
    assert all(np.array_equal(arrays[0], other) for other in arrays[1:])
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("[1/5] a_0000.nii.gz -> ")
    assert lines[0].endswith(" s")
    assert err == ""


def test_single_file_equals_the_python_call(desk: Desk, tiny: Model) -> None:
    desk.put("a.nii.gz")
    desk.inputs /= "a.nii.gz"
    assert desk.run() == 0
    labels = inference.segment(sitk.ReadImage(desk.inputs), tiny)
    written = sitk.ReadImage(desk.outputs / "a.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(labels), sitk.GetArrayFromImage(written))


def test_bad_cases_do_not_stop_the_others(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    desk.put("a.nii.gz", "e.nii.gz")
    (desk.inputs / "b.nii.gz").write_text("hello")
    sitk.WriteImage(make_ct() * 0, desk.inputs / "c.nii.gz")
    sitk.WriteImage(make_ct()[:, :, 3], desk.inputs / "d.nii.gz")
    assert desk.run("--report", desk.report) == 1
    assert desk.there() == ["a.nii.gz", "e.nii.gz"]
    _, err = capfd.readouterr()
    lines = err.splitlines()
    assert len(lines) == 3
    for line, name, reason in zip(
        lines, "bcd", ("is not a NIfTI file", "is constant", "is a 2D image"), strict=True
    ):
        assert line.startswith(f"error: {desk.inputs / name}.nii.gz: ")
        assert reason in line
    errors = [case["error"] for case in desk.cases()]
    assert [error is None for error in errors] == [True, False, False, False, True]


def test_damaged_channel_is_named(
    tmp_path: Path, tiny: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    make_tiny_model(tmp_path / "pair", inputs=2)
    channels = tuple({"name": name, "normalisation": "none"} for name in ("T1", "T2"))
    rules = {"data": None, "logits": None}
    replace(tiny.plan, channels=channels, crop="none", resampling=rules).save(tmp_path / "pair")
    desk = Desk(tmp_path, tmp_path / "pair")
    desk.put("a_0000.nii.gz")
    (desk.inputs / "a_0001.nii.gz").write_text("hello")
    assert desk.run() == 1
    assert desk.there() == []
    assert capfd.readouterr().err.splitlines() == [
        f"error: {desk.inputs}/a_0000.nii.gz: its channel a_0001.nii.gz is not a NIfTI file,"
        " whatever its name says"
    ]


def test_unexpected_errors_are_one_line_too(
    desk: Desk, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.put("a.nii.gz", "b.nii.gz")
    real = inference.batch.segment_in_stages  # type: ignore[attr-defined]
    calls = []

    def fails_once(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("C++ says\nno")
        return real(*arguments)

    monkeypatch.setattr("inference.batch.segment_in_stages", fails_once)
    assert desk.run("--report", desk.report) == 1
    assert desk.there() == ["b.nii.gz"]
    err = capfd.readouterr().err
    assert err.splitlines() == [
        f"error: {desk.inputs}/a.nii.gz: failed unexpectedly (RuntimeError: no)"
    ]
    assert "fails_once" in desk.cases()[0]["traceback"]


def test_clashing_names_are_refused_and_others_run(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.put("a.nii.gz", "a_0000.nii.gz", "b.nii.gz")
    assert desk.run() == 1
    assert desk.there() == ["b.nii.gz"]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "the same name (a.nii.gz) as those of a_0000.nii.gz" in lines[0]


def test_labels_never_replace_a_ct(desk: Desk) -> None:
    desk.put("a.nii.gz")
    before = (desk.inputs / "a.nii.gz").read_bytes()
    desk.outputs = desk.inputs
    assert desk.run() == 2
    assert (desk.inputs / "a.nii.gz").read_bytes() == before
    desk.inputs /= "a.nii.gz"
    assert desk.run() == 2
    with pytest.raises(UsageError, match="would replace a CT"):
        find_cases(desk.inputs, desk.outputs)


def test_labels_never_lie_among_the_cts_of_a_folder(desk: Desk) -> None:
    desk.put("a_0000.nii.gz")
    desk.outputs = desk.inputs
    assert desk.run() == 2
    assert desk.there() == ["a_0000.nii.gz"]
    desk.inputs /= "a_0000.nii.gz"  # beside a single CT they may lie
    assert desk.run() == 0
    assert desk.there() == ["a.nii.gz", "a_0000.nii.gz"]


@pytest.mark.parametrize(("given", "other"), [("X_0000.nii.gz", "X.nii.gz"), ("Y.mhd", "Y.mha")])
def test_labels_of_one_file_do_not_replace_the_ct_beside_it(
    desk: Desk, given: str, other: str
) -> None:
    desk.put(given, other)
    before = (desk.inputs / other).read_bytes()
    desk.outputs = desk.inputs
    desk.inputs /= given
    assert desk.run() == 2
    assert (desk.outputs / other).read_bytes() == before


def test_a_single_number_among_others_keeps_it(desk: Desk) -> None:
    desk.put("X_0000.nii.gz", "X_0001.nii.gz")
    (case,) = find_cases(desk.inputs / "X_0000.nii.gz", desk.outputs)
    assert case.target.name == "X_0000.nii.gz"


def _make_a_pipe(desk: Desk) -> None:
    desk.inputs.rmdir()
    os.mkfifo(desk.inputs)


def test_a_report_replaces_no_ct_and_no_device(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.put("a.nii.gz")
    before = (desk.inputs / "a.nii.gz").read_bytes()
    pipe = desk.inputs.parent / "pipe"
    os.mkfifo(pipe)
    for report in (desk.inputs / "a.nii.gz", desk.outputs / "a.nii.gz", pipe):
        desk.report = report
        assert desk.run("--report", report) == 2
        assert len(capfd.readouterr().err.splitlines()) == 1
    assert (desk.inputs / "a.nii.gz").read_bytes() == before
    assert pipe.is_fifo()
    link = desk.inputs.parent / "link.json"
    link.symlink_to(desk.inputs.parent / "report.json")
    assert desk.run("--report", link) == 0
    desk.report = link.resolve()
    assert link.is_symlink() and len(desk.cases()) == 1


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


def test_unreadable_file_ending(desk: Desk) -> None:
    desk.inputs /= "x.txt"
    desk.inputs.write_text("hello")
    assert desk.run() == 2


def test_existing_labels_are_replaced(desk: Desk) -> None:
    desk.put("a.nii.gz")
    desk.outputs.mkdir()
    (desk.outputs / "a.nii.gz").write_text("old")
    assert desk.run() == 0
    assert sitk.ReadImage(desk.outputs / "a.nii.gz").GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
def test_a_ct_elsewhere_is_never_replaced(
    desk: Desk, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """Another patient's of the same name, say, or the same CT converted from DICOM."""
    desk.put(name, "b.nii.gz")
    desk.outputs.mkdir()
    there = desk.outputs / name
    sitk.WriteImage(make_ct(), there)
    before = there.read_bytes()
    assert desk.run() == 1
    assert there.read_bytes() == before and "b.nii.gz" in desk.there()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert f"{desk.inputs / name}: its labels would replace {there}, which holds no labels" in line


def _save_nifti_2(voxels: np.ndarray, path: Path) -> None:
    nib.save(nib.Nifti2Image(voxels, np.eye(4)), path)  # type: ignore[no-untyped-call]


def _as_nifti_2(path: Path) -> None:
    _save_nifti_2(np.zeros((4, 4, 4), np.int16), path)


def _without_axes(path: Path) -> None:
    """A header that ITK refuses: an sform of zeros."""
    sitk.WriteImage(make_ct(), path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[252:256], raw[280:328] = b"\0\0\1\0", bytes(48)
    path.write_bytes(gzip.compress(bytes(raw)))


def _with_a_broken_header(path: Path) -> None:
    path.write_bytes(b"NRRD0004\ntype: short\nnonsense\n")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.nii.gz", _as_nifti_2),
        ("a.nii.gz", _without_axes),
        ("a.nrrd", _with_a_broken_header),
    ],
)
def test_a_ct_that_itk_does_not_read_is_not_replaced(
    desk: Desk, capfd: pytest.CaptureFixture[str], name: str, make: Callable[[Path], None]
) -> None:
    desk.put(name)
    desk.outputs.mkdir()
    there = desk.outputs / name
    make(there)
    before = there.read_bytes()
    assert desk.run() == 1
    assert there.read_bytes() == before
    assert "which holds no labels" in capfd.readouterr().err


def test_what_cannot_be_looked_into_is_not_replaced(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("inference.writing.data_type", refuse)
    desk.put("a.nii.gz")
    desk.outputs.mkdir()
    (desk.outputs / "a.nii.gz").write_text("whatever")
    assert desk.run() == 1
    assert "(cannot be read: Permission denied)" in capfd.readouterr().err
    assert (desk.outputs / "a.nii.gz").read_text() == "whatever"


def test_labels_in_nifti_2_are_labels(desk: Desk) -> None:
    desk.put("a.nii.gz")
    desk.outputs.mkdir()
    _save_nifti_2(np.zeros((4, 4, 4), np.uint8), desk.outputs / "a.nii.gz")
    assert desk.run() == 0
    assert sitk.ReadImage(desk.outputs / "a.nii.gz").GetSize() == make_ct().GetSize()


def test_one_folder_under_two_names_is_one_folder(desk: Desk) -> None:
    desk.put("a.nii.gz")
    desk.outputs.mkdir()
    os.link(desk.inputs / "a.nii.gz", desk.outputs / "a.nii.gz")
    with pytest.raises(UsageError, match="would replace a CT"):
        find_cases(desk.inputs, desk.outputs)


def test_one_folder_mounted_twice_is_one_folder(desk: Desk, tmp_path: Path) -> None:
    """As both of a container's folders."""
    desk.put("a.nii.gz")
    before = (desk.inputs / "a.nii.gz").read_bytes()
    (tmp_path / "again").mkdir()
    mounted = ["unshare", "--mount", "sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"']
    mounted += ["sh", str(desk.inputs), str(tmp_path / "again")]
    try:
        subprocess.run([*mounted, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nobody may mount here; the test above compares a hard link instead")
    arguments = ["-i", str(desk.inputs), "-o", str(tmp_path / "again"), "--model", str(desk.model)]
    ran = subprocess.run(
        [*mounted, sys.executable, "-m", "inference", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2 and "labels would lie among CTs" in ran.stderr
    assert (desk.inputs / "a.nii.gz").read_bytes() == before


def test_a_report_replaces_no_slice(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    paths = put(desk.inputs)
    before = paths[0].read_bytes()
    assert desk.run("--report", paths[0]) == 2
    assert "is a DICOM file, which --report would replace" in capfd.readouterr().err
    assert paths[0].read_bytes() == before and not desk.outputs.exists()


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


def test_a_fill_value_beyond_float32_makes_no_noise(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    ct = sitk.Cast(make_ct(), sitk.sitkFloat64)
    ct[0, 0, 0] = -1.7e308
    sitk.WriteImage(ct, desk.inputs / "a.nii.gz")
    assert desk.run("--quiet") == 0
    assert capfd.readouterr().err == ""


def test_existing_labels_stay_where_a_case_fails(desk: Desk) -> None:
    desk.outputs.mkdir()
    (desk.inputs / "a.nii.gz").write_text("hello")
    (desk.outputs / "a.nii.gz").write_text("old")
    assert desk.run() == 1
    assert (desk.outputs / "a.nii.gz").read_text() == "old"


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


def test_report(desk: Desk) -> None:
    desk.put("a_0000.nii.gz")
    assert desk.run("--report", desk.report, "--threads", 2) == 0
    content = json.loads(desk.report.read_text())
    assert content["model"] == {
        "name": "tiny",
        "version": "1",
        "folder": str(desk.model),
        "precision": "f32",
        "arithmetic": "f32",
    }
    # These tests' own process began it all, however long ago that is by now.
    assert 0 < content["start_seconds"] < seconds_since_start()
    assert content["threads"] == 2
    assert content["processor"]
    (case,) = content["cases"]
    assert case["file"] == str(desk.inputs / "a_0000.nii.gz")
    assert case["shape"] == [44, 40, 20]
    assert case["spacing"] == pytest.approx([1.5, 1.4, 2.5])
    stages = ["load", "read", "preprocess", "compile", "network", "postprocess", "labels", "write"]
    assert list(case["seconds"]) == [*stages, "total"]
    known = sum(case["seconds"][stage] for stage in stages)
    assert known <= case["seconds"]["total"] + 0.001
    assert known > 0.9 * case["seconds"]["total"]  # no second goes anywhere else
    assert case["peak_memory_mb"] > 10
    assert case["passes"] == 1
    assert len(case["window"]) == 3
    assert all(size % 4 == 0 for size in case["window"])
    assert case["warnings"] == []
    labels = sitk.GetArrayFromImage(sitk.ReadImage(desk.outputs / "a.nii.gz"))
    for organ, value in {"liver": 1, "left_kidney": 13}.items():
        volume = (labels == value).sum() * 1.5 * 1.4 * 2.5 / 1000
        assert case["millilitres"][organ] == pytest.approx(volume, rel=1e-3)


def read_tables(snap: Path, slicer: Path) -> list[dict[int, tuple[str, tuple[int, ...]]]]:
    """Both programs' tables by the rules of their formats: value to name and colour."""
    found: list[dict[int, tuple[str, tuple[int, ...]]]] = [{}, {}]
    for line in snap.read_text().splitlines():
        if not line.startswith("#"):
            row = re.fullmatch(r'(\d+) (\d+) (\d+) (\d+) [01] [01] [01] "([^"]+)"', line)
            assert row is not None
            found[0][int(row[1])] = (row[5], tuple(int(row[k]) for k in (2, 3, 4)))
    for line in slicer.read_text().splitlines():
        if not line.startswith("#"):
            value, name, *colour, opacity = line.split()
            assert opacity in ("0", "255")
            found[1][int(value)] = (name, tuple(map(int, colour)))
    return found


def test_label_tables(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    desk.put("a.nii.gz")
    snap, slicer = desk.outputs / "tables" / "organs.txt", desk.report.with_suffix(".ctbl")
    assert desk.run("--label-table", snap) == desk.run("--label-table", slicer) == 0
    for table in read_tables(snap, slicer):
        names = {name.replace(" ", "_"): value for value, (name, _) in table.items() if value}
        assert names == Plan.load(desk.model).labels
        assert all(colour == COLOURS[value] for value, (_, colour) in table.items() if value)
    capfd.readouterr()
    (desk.outputs / "folder.txt").mkdir()
    for bad in ("table.csv", "table", "a.nii.gz", "folder.txt"):
        assert desk.run("--label-table", desk.outputs / bad) == 2
        assert len(capfd.readouterr().err.splitlines()) == 1


def test_label_tables_of_imported_models(desk: Desk) -> None:
    """Names may be anything, and there may be more labels than colours."""
    labels = {"left lung": 255, 'the "tail"': 2, "bone": 14}
    plan = replace(Plan.load(desk.model), labels=labels)
    snap, slicer = desk.inputs / "a.TXT", desk.inputs / "a.ctbl"
    for path in (snap, slicer):
        write_label_table(path, plan)
    assert [list(table) for table in read_tables(snap, slicer)] == [[0, 2, 14, 255]] * 2


def test_empty_labels_are_said(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    image = sitk.Minimum(make_ct(), 0)  # no organ's intensity: a leg, to this model
    sitk.WriteImage(image, desk.inputs / "leg.nii.gz")
    assert desk.run("--report", desk.report) == 0
    assert not sitk.GetArrayFromImage(sitk.ReadImage(desk.outputs / "leg.nii.gz")).any()
    assert "no organ was found" in capfd.readouterr().err
    assert "no organ was found" in desk.cases()[0]["warnings"][0]


def test_hu_plus_1024_give_the_same_labels(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    desk.put("a.nii.gz")
    shifted = sitk.Cast(sitk.Maximum(make_ct() + 1024, 0), sitk.sitkUInt16)
    sitk.WriteImage(shifted, desk.inputs / "b.nii.gz")
    assert desk.run() == 0
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(desk.outputs / n)) for n in desk.there())
    assert np.mean(a == b) > 0.999
    err = capfd.readouterr().err
    assert "b.nii.gz: values from 1" in err
    assert "look like HU + 1024: 1024 was taken off" in err


def test_one_slice(desk: Desk) -> None:
    sitk.WriteImage(make_ct()[:, :, 8:9], desk.inputs / "a.nii.gz")
    assert desk.run() == 0
    assert sitk.ReadImage(desk.outputs / "a.nii.gz").GetSize() == (44, 40, 1)


def test_quiet(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    desk.put("a.nii.gz")
    assert desk.run("--quiet") == 0
    assert capfd.readouterr() == ("", "")
    (desk.inputs / "b.nii.gz").write_text("hello")
    assert desk.run("--quiet") == 1
    assert capfd.readouterr().err.startswith("error: ")


def test_organs_can_be_told_apart_in_pictures() -> None:
    for one, other in itertools.combinations(COLOURS.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 50, (one, other)


def test_cts_that_differ_in_their_ending_have_a_picture_each(desk: Desk) -> None:
    for name in ("a.nii.gz", "a_0000.mha", "b.nii.gz"):
        sitk.WriteImage(make_ct(), desk.inputs / name)
    assert desk.run("--preview") == 0
    labels = ["a.mha", "a.nii.gz", "b.nii.gz"]
    pictures = ["a.mha_preview.png", "a.nii.gz_preview.png", "b_preview.png"]
    assert desk.there() == sorted(labels + pictures)


def test_preview(desk: Desk) -> None:
    image = sitk.DICOMOrient(make_ct(), "RAI")
    sitk.WriteImage(image, desk.inputs / "a_0000.nii.gz")
    assert desk.run("--preview") == 0
    assert desk.there() == ["a.nii.gz", "a_preview.png"]
    picture = sitk.GetArrayFromImage(sitk.ReadImage(desk.outputs / "a_preview.png"))
    height, width, _ = picture.shape
    axial, coronal, sagittal = 44 * 1.5 / (40 * 1.4), 44 * 1.5 / (20 * 2.5), 40 * 1.4 / (20 * 2.5)
    assert width == pytest.approx(height * (axial + coronal + sagittal), rel=0.05)
    assert (np.ptp(picture.astype(int), axis=2) > 50).mean() > 0.02  # coloured pixels
    # Radiological: the left kidney (bluish) is on the right of the coronal slice, below the top.
    start = round(height * axial) + 8
    panel = picture[:, start : start + round(height * coronal)].astype(int)
    rows, columns = np.nonzero(panel[..., 2] - panel[..., 0] > 25)
    assert columns.min() > panel.shape[1] / 2
    assert rows.mean() < height / 2


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


def start(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores these, and would hand that down.
        preexec_fn=lambda: [
            signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)
        ],
        **settings,
    )


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


def test_wrong_usage_is_told_by_the_exit_code_alone_where_nothing_can_be_said() -> None:
    words = shlex.join([sys.executable, "-m", "inference", "-i", "/nowhere", "-o", "/nowhere/else"])
    done = subprocess.run(["bash", "-c", f"{words} 2>/dev/full"], cwd=REPOSITORY, check=False)
    assert done.returncode == 2


def test_a_file_of_the_longest_name_gets_labels(desk: Desk) -> None:
    name = "\u4e2d" * 80 + "x" * 7 + ".nii.gz"  # 254 bytes of the 255 that there are
    desk.put("a.nii.gz")
    (desk.inputs / "a.nii.gz").rename(desk.inputs / name)
    assert desk.run() == 0
    assert desk.there() == [name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_in_the_middle_of_writing(desk: Desk, number: signal.Signals) -> None:
    """The process is stopped while its temporary file is there."""
    desk.put("a.nii.gz", "b.nii.gz")
    slow = (
        "import sys, time, inference.writing as w, inference.cli as c\n"
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
        "import sys, inference.network as n, inference.cli as c\n"
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
        "import sys, time, inference.network as n, inference.cli as c\n"
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


def test_demo(tmp_path: Path, tiny_folder: Path) -> None:
    assert main(["--demo", str(tmp_path / "demo"), "--model", str(tiny_folder), "--quiet"]) == 0
    (source,) = (tmp_path / "demo/inputs").iterdir()
    (target,) = (tmp_path / "demo/outputs").iterdir()
    assert sitk.ReadImage(source).GetSize() == sitk.ReadImage(target).GetSize()


def test_demo_leaves_what_else_lies_there_alone(tmp_path: Path, tiny_folder: Path) -> None:
    mine, earlier = tmp_path / "inputs" / "mine.nii.gz", tmp_path / "outputs" / "mine.nii.gz"
    for path in (mine, earlier):
        path.parent.mkdir()
        path.write_text("not to be touched")
    assert main(["--demo", str(tmp_path), "--model", str(tiny_folder), "--quiet"]) == 0
    assert mine.read_text() == earlier.read_text() == "not to be touched"
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {
        "mine.nii.gz",
        "phantom.nii.gz",
    }


def test_demo_without_a_model_writes_nothing(
    tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--demo", str(tmp_path / "demo"), "--model", "nothing"]) == 2
    assert "no model 'nothing'" in capfd.readouterr().err
    arguments = ["--demo", str(tmp_path / "demo"), "--model", str(tiny_folder)]
    assert main([*arguments, "--precision", "bf16"]) == 2
    assert "has no 'bf16' network" in capfd.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_light_imports_stay_light() -> None:
    code = (
        "import sys, inference, inference.organs, inference.plan, inference.resample\n"
        "import inference.orientation, inference.cli\n"
        "assert 'openvino' not in sys.modules and 'SimpleITK' not in sys.modules\n"
        "from inference import ORGANS, Plan\n"
        "import inference.preprocess, inference.decode\n"
        "assert 'openvino' not in sys.modules\n"
        "from inference import segment\n"
        "assert callable(segment) and callable(inference.segment)\n"
    )
    process = start("-c", code)
    assert process.communicate()[1] == ""
    assert process.returncode == 0


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
