"""The command from file to file: labels, exit codes, warnings, the demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from desk import Desk, start
from tiny_model import make_ct, make_tiny_model

import inference
import inference.batch
from inference.cli import main
from inference.model import Model
from inference.network.network import Network


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

    def fails_once(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("C++ says\nno")
        return real(*arguments, **options)

    monkeypatch.setattr("inference.batch.segment_in_stages", fails_once)
    assert desk.run("--report", desk.report) == 1
    assert desk.there() == ["b.nii.gz"]
    err = capfd.readouterr().err
    assert err.splitlines() == [
        f"error: {desk.inputs}/a.nii.gz: failed unexpectedly (RuntimeError: no)"
    ]
    assert "fails_once" in desk.cases()[0]["traceback"]


def test_memory_of_the_passes_is_let_go_when_no_case_follows(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.put("a.nii.gz", "b.nii.gz")
    real = Network.release_features
    asked = []

    def release(network: Network) -> None:
        asked.append(network.passes)
        real(network)

    monkeypatch.setattr(Network, "release_features", release)
    assert desk.run() == 0
    assert asked == [2]
    first, last = (
        sitk.GetArrayFromImage(sitk.ReadImage(desk.outputs / name)) for name in desk.there()
    )
    assert first.any() and np.array_equal(first, last)


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


def test_light_imports_stay_light() -> None:
    code = (
        "import sys, inference, inference.organs, inference.plan, inference.preprocess.resample\n"
        "import inference.preprocess.orientation, inference.cli\n"
        "assert 'openvino' not in sys.modules and 'SimpleITK' not in sys.modules\n"
        "from inference import ORGANS, Plan\n"
        "import inference.preprocess.preprocess, inference.labels.decode\n"
        "assert 'openvino' not in sys.modules\n"
        "from inference import segment\n"
        "assert callable(segment) and callable(inference.segment)\n"
    )
    process = start("-c", code)
    assert process.communicate()[1] == ""
    assert process.returncode == 0
