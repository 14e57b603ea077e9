"""plan.json as people edit it: what cannot be is refused before anything is segmented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import SimpleITK as sitk
from openvino import opset13 as ops
from tiny_model import LABELS, make_ct, make_tiny_model

from inference import plan_check
from inference.cli import main
from inference.errors import CaseError, ModelError
from inference.labels import postprocess
from inference.model import Model
from inference.pipeline import segment_in_stages
from inference.plan import Plan

LINEAR = {"order": 1, "order_z": 0, "separate": None}
CT = {"name": "CT", "normalisation": "ct", "clip": [-1000.0, 1000.0], "divide": 100.0}
TAIL = {"step": "cut_tail", "labels": [1], "share": 0.6, "millimetres": 25}
GAS = {"step": "foreign_gas", "labels": [1], "hu": -800, "share": 0.5}


def imported(**changes: Any) -> dict[str, Any]:
    """What a plan with channels says otherwise than the tiny model's."""
    resampling = {"data": LINEAR, "logits": LINEAR}
    return {"channels": [CT], "crop": "none", "resampling": resampling, **changes}


def edited(folder: Path, changes: dict[str, Any]) -> Path:
    """A tiny model folder whose plan.json was edited; a value of ``...`` takes the key away."""
    make_tiny_model(folder)
    content = json.loads((folder / "plan.json").read_text()) | changes
    content = {key: value for key, value in content.items() if value is not ...}
    (folder / "plan.json").write_text(json.dumps(content))
    return folder


def test_an_imported_plan_is_understood(tmp_path: Path) -> None:
    assert Plan.load(edited(tmp_path / "m", imported())).inputs == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"divide": 0}, "divide is 0, not a number from 1e-06"),
        ({"divide": -150}, "divide is -150, not"),
        ({"divide": float("nan")}, "NaN is no number"),
        ({"spacing": [float("inf"), 2, 2]}, "Infinity is no number"),
        ({"spacing": [2, 2]}, "spacing is [2, 2], not a list of 3"),
        ({"spacing": [2, 2, -2]}, "spacing is"),
        ({"subtract": "50"}, "subtract is '50', not a number"),
        ({"subtract": 10**400}, "subtract is 1000"),
        ({"orientation": ["", "P", "S"]}, "orientation is"),
        ({"clip": [1, 2, 3]}, "clip is"),
        ({"clip": [100, -100]}, "clip [100, -100] is not a range"),
        ({"clip_first": [-2000]}, "clip_first is [-2000], not a list of 2"),
        ({"clip_first": [-500, 2000]}, "clip_first [-500, 2000] does not hold clip"),
        ({"clip": ...}, "missing keys clip"),
        ({"colour": 1}, "unknown keys colour"),
        ({"patch": [0, 32, 32]}, "patch is"),
        ({"patch": [16.0, 32, 32]}, "patch is"),
        ({"multiple": [0, 4, 4]}, "multiple is"),
        ({"multiple": [3, 4, 4]}, "is no multiple of [3, 4, 4]"),
        ({"size": [None, "many", 3]}, "size is"),
        ({"labels": ["liver"]}, "labels is ['liver'], not names of one line with"),
        ({"labels": {"": 1}}, "labels is"),
        ({"labels": {"liver\nspleen": 1}}, "labels is"),
        ({"divide": 1e-60}, "divide is 1e-60, not a number from 1e-06"),
        ({"subtract": 1e300}, "subtract is"),
        ({"clip": [-1e308, 1e308]}, "clip is"),
        ({"spacing": [1e-320, 1, 1]}, "spacing is"),
        ({"size": [10**400, None, None]}, "size is"),
        ({"patch": [10**6, 32, 32]}, "patch is"),
        ({"labels": None}, "labels is None"),
        ({"labels": {**LABELS, "liver": 1.5}}, "labels is"),
        ({"labels": {**LABELS, "liver": True}}, "labels is"),
        ({"labels": {**LABELS, "liver": 2}}, "labels are not different"),
        ({"networks": {"f32": 5}}, "networks is"),
        ({"networks": {"fp32": "network.xml"}}, "networks of no precision: fp32"),
        ({"networks": {"f32": "other.xml"}}, "other.xml: missing"),
        ({"orientation": "lps"}, "orientation is 'lps', not three letters"),
        ({"orientation": "LP"}, "orientation is"),
        ({"bytes_per_voxel": {"f32": -1}}, "bytes_per_voxel is"),
        ({"bytes_per_voxel": 100.0}, "bytes_per_voxel is"),
        ({"bytes_per_voxel": {"fp32": 100.0}}, "bytes_per_voxel of no precision: fp32"),
        ({"bytes_per_pass": {"f32": -1}}, "bytes_per_pass is"),
        ({"bytes_per_pass": {"fp32": 100.0}}, "bytes_per_pass of no precision: fp32"),
        ({"bytes_per_voxel": {"int8": 100.0}}, "bytes_per_voxel says nothing of f32"),
        ({"bytes_per_pass": {"int8": 100.0}}, "bytes_per_pass is not of the precisions of"),
        ({"overlap": 1}, "overlap is"),
        ({"outside": "air"}, "outside is"),
        ({"mirror": [0, 0]}, "mirror [0, 0] names an axis twice"),
        ({"members": {"liver": "1"}}, "members is"),
        ({"resampling": ["data"]}, "resampling is"),
        ({"postprocessing": [{"step": "close", "labels": ["liver"]}]}, "bad postprocessing"),
        ({"postprocessing": ["close"]}, "postprocessing is"),
        ({"postprocessing": [{"step": ["close"], "labels": [1]}]}, "bad postprocessing"),
        (
            {"postprocessing": [{"step": "remove_small", "labels": [1], "millilitres": -1}]},
            "bad postprocessing",
        ),
        (
            {"postprocessing": [{"step": "keep_largest", "labels": [1], "cut_millilitres": 0}]},
            "bad postprocessing",
        ),
        (
            {"postprocessing": [{"step": "close", "labels": [1], "cut_millilitres": 5}]},
            "bad postprocessing",
        ),
        ({"postprocessing": [{**GAS, "share": 1.5}]}, "bad postprocessing"),
        ({"postprocessing": [{**GAS, "hu": "low"}]}, "bad postprocessing"),
        ({"postprocessing": [{**GAS, "hu": 40}]}, "bad postprocessing"),
        ({"postprocessing": [{**GAS, "wall": 0}]}, "bad postprocessing"),
        ({"postprocessing": [TAIL], "orientation": "LPI"}, "'cut_tail' needs a first axis"),
        ({"postprocessing": [TAIL], "transpose": [2, 1, 0]}, "'cut_tail' needs a first axis"),
        (imported(postprocessing=[GAS]), "'foreign_gas' needs a CT in HU, not channels"),
        ({"outputs": [0, 1, 77]}, "outputs [77] are values of no label"),
        ({"outputs": [*LABELS.values(), 0]}, "do not begin with background, 0"),
        ({"postprocessing": [{"step": "sides", "labels": [1]}]}, "bad postprocessing"),
        ({"postprocessing": [{"step": "sides", "labels": [1, 2]}]}, "bad postprocessing"),
        ({"postprocessing": [{"step": "sides", "labels": [1, 2, 3]}], "orientation": "RAS"},
         "'sides' needs a last axis that runs to the left"),
        ({"postprocessing": [{"step": "sides", "labels": [1, 2, 3]}], "transpose": [2, 1, 0]},
         "'sides' needs a last axis that runs to the left"),
        (imported(clip_first=[-2000, 2000]), "clip_first is [-2000, 2000], not null"),
        (imported(channels=[CT | {"normalisation": "CT"}]), "channels: normalisation is 'CT', not"),
        (imported(channels=[{"name": "a", "normalisation": "ct"}]), "channels: clip is None"),
        (imported(channels=[CT | {"clip": [3, 2]}]), "channels: clip [3, 2] is not"),
        (imported(channels=[CT | {"colour": 1}]), "channels: got an unexpected keyword"),
        (imported(resampling={"data": LINEAR}), "channels need a resampling"),
        (imported(resampling={"data": None, "logits": LINEAR | {"order": 7}}), "resampling: order"),
        (imported(size=[None, 192, 192]), "size is [None, 192, 192], not three times null"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_plan_is_one_line_and_nothing_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    folder = edited(tmp_path / "model", changes)
    sitk.WriteImage(make_ct(), str(tmp_path / "ct.nii.gz"))
    arguments = ["-i", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--model", str(folder)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith(f"error: {folder}/")
    assert said in error
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_every_step_of_post_processing_is_known_to_the_check() -> None:
    assert set(plan_check._STEPS) == set(postprocess._STEPS)


def test_a_channel_may_have_no_name(tmp_path: Path) -> None:
    assert Plan.load(edited(tmp_path / "m", imported(channels=[CT | {"name": ""}]))).inputs == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 2, "name": "a", "name": "b"}', "'name' is there twice"),
        ("[" * 100_000, "cannot be read"),
        ('{"format": 2', "cannot be read"),
        ("[1]", "not a plan"),
        ('{"format": 1}', "not a plan of format 2 but 1: export or import the model again"),
        ('{"format": 3}', "not a plan of format 2$"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path: Path, text: str, said: str) -> None:
    make_tiny_model(tmp_path)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ModelError, match=said) as caught:
        Plan.load(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "plan.json"))


def _network(path: Path, kind: Any, inputs: int, factor: float = 1.0) -> None:
    source = ops.parameter([1, inputs, -1, -1, -1], kind, name="image")
    values = ops.multiply(source, ops.constant(np.array(factor, kind)))
    parts = [ops.reduce_sum(values, np.array([1]), keep_dims=True)] * (1 + len(LABELS))
    ov.save_model(ov.Model([ops.concat(parts, 1)], [source]), path, compress_to_fp16=False)


@pytest.mark.parametrize(
    ("kind", "inputs", "said"),
    [(np.float64, 1, "input is not float32"), (np.float32, 2, "input of 2 channels")],
)
def test_a_network_with_another_input_is_refused_at_once(
    tmp_path: Path, kind: Any, inputs: int, said: str
) -> None:
    make_tiny_model(tmp_path)
    _network(tmp_path / "network.xml", kind, inputs)
    with pytest.raises(ModelError, match=said):
        Model.load(tmp_path)


@pytest.mark.parametrize("tiling", ["whole", "window"])
def test_logits_that_are_no_numbers_are_no_empty_answer(tmp_path: Path, tiling: str) -> None:
    make_tiny_model(tmp_path, tiling=tiling)
    _network(tmp_path / "network.xml", np.float32, 1, float("nan"))
    with pytest.raises(ModelError, match="no numbers"):
        segment_in_stages([make_ct()], Model.load(tmp_path))


def test_channels_that_do_not_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.load(edited(tmp_path / "m", imported()))
    image = make_ct()
    assert segment_in_stages([image], model).labels.any()
    monkeypatch.setattr("inference.preprocess.preprocess.free_memory", lambda: 10**6)
    image.SetSpacing([20 * size for size in image.GetSpacing()])
    with pytest.raises(CaseError, match="too large for the memory"):
        segment_in_stages([image], model)


def test_an_empty_name_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sitk.WriteImage(make_ct(), str(tmp_path / "ct.nii.gz"))
    assert main(["-i", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path), "--model", ""]) == 2
    assert "no model ''" in capsys.readouterr().err
