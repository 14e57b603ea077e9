"""What is wrong with a configuration is said in one line, before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import yaml
from small_dataset import add, configuration, dataset, liver_and_spleen
from small_training import CONFIG, SMALL

from training.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_wrong_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIG.read_text() + "\ncolour: blue\n")
    arguments = ["train", "--config", str(wrong), "--data", str(tmp_path), "--out", str(tmp_path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "unknown keys colour" in error and len(error.splitlines()) == 1


def _scanned(slice_: Any, pixel: Any) -> dict[str, Any]:
    scan = {"slice": slice_, "pixel": pixel}
    return {"spacing": [None] * 3, "augmentation": {"scan": scan}}


def _noisy(probability: Any, deviation: Any) -> dict[str, Any]:
    return {"augmentation": {"noise": {"probability": probability, "deviation": deviation}}}


def _coarse(**other: Any) -> dict[str, Any]:
    right = {"share": 0.5, "spacing": [16.0] * 3, "patch": [8, 8, 8]}
    return {"coarse_first": {**right, **other}}


def _network(**other: Any) -> dict[str, Any]:
    return {"network": {**SMALL["network"], **other}}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"augmentation": None}, "nothing is given for augmentation"),
        ({"placement": None, "empty": None}, "nothing is given for empty, placement"),
        ({"augmentation": {"warp": None}}, "augmentation: warp is None, not names and values"),
        ({"augmentation": ["warp"]}, "augmentation is ['warp'], not names"),
        ({"placement": "body"}, "placement is 'body', not names and values"),
        (
            {"shares": {"labelled": None}},
            "shares is {'labelled': None}, not names of one line with a number from 0 each",
        ),
        ({"tiling": "nnunet"}, "tiling is 'nnunet', not one of whole, window"),
        ({"augmentation": {"warp": {}}}, "warp needs strength"),
        (
            {"augmentation": {"warp": {"strength": "much"}}},
            "warp: strength is 'much', not a number",
        ),
        ({"augmentation": {"warp": {"strength": 1, "force": 1}}}, "warp has no force"),
        ({"augmentation": {"noise": {"deviation": [0, 1]}}}, "noise needs probability"),
        ({"augmentation": {"noise": {"probability": 1}}}, "noise needs deviation"),
        (_noisy(1, [0.2, 0.1]), "noise: deviation is [0.2, 0.1], not the lowest and the highest"),
        (_noisy(15, [0, 1]), "noise: probability is 15, not a number from 0 to 1"),
        (_noisy("1e-1", [0, 1]), "noise: probability: YAML takes 1e-1 for text; write 0.1"),
        (
            {"augmentation": {"turn": {"probability": 1, "degrees": 15}}},
            "degrees is 15, not a list",
        ),
        ({"augmentation": {"mirror": {"axes": 2}}}, "mirror: axes is 2, not a list"),
        ({"augmentation": {"mirror": {"axes": [3]}}}, "mirror: axes is [3], not a list"),
        ({"augmentation": {"phase": {}}, "stored": [-250, 350]}, "stored must be wider than clip"),
        ({"coarse_first": {"share": 0.5}}, "coarse_first needs spacing and patch"),
        (_coarse(share="0.5"), "coarse_first: share is '0.5', not a number from 0 to 1"),
        (_coarse(share=60), "coarse_first: share is 60, not a number from 0 to 1"),
        (_coarse(spacing=3.0), "coarse_first: spacing is 3.0, not a list of 3"),
        (_coarse(patch=[8, 12]), "coarse_first: patch is [8, 12], not a list of 3"),
        (_coarse(patch=[8, 8, 9]), "patch [8, 8, 9] is no multiple of the network's"),
        ({"network": {"kind": "unet"}}, "network: missing"),
        (_network(norm="bach"), "network: there is no 'bach'"),
        (_network(kernels=[[2, 3, 3]] * 3), "network: takes no patch"),
        ({"placement": {"rule": "anywhere"}}, "the rule 'anywhere' needs foreground"),
        ({"placement": {"rule": "anywhere", "foreground": 85}}, "foreground is 85, not a number"),
        (
            _network(strides=[[1, 1, 1], [0, 2, 2], [2, 2, 2]]),
            "network: strides is [[1, 1, 1], [0, 2, 2], [2, 2, 2]], not a list of values, each a",
        ),
        (_network(kernels=[[3, 3]] * 3), "network: kernels is [[3, 3], [3, 3], [3, 3]], not a"),
        (_network(features=[8, "a"]), "network: features is [8, 'a'], not a list of values, each"),
        (_network(bias="no"), "network: bias is 'no', not true or false"),
        ({"seed": 10**20}, "seed is 100000000000000000000, not a whole number from 0 to"),
        ({"augmentation": {"slab": {}}}, "slab needs probability"),
        (_scanned(3, [1, 2]), "scan: slice is 3, not the lowest and the highest"),
        (_scanned([0, 5], [1, 2]), "scan: slice is [0, 5], not the lowest and the highest, each a"),
        (_scanned([1, 5], ["a", "b"]), "scan: pixel is ['a', 'b'], not the lowest"),
        ({**_scanned([1, 5], [1, 2]), "spacing": [2.0] * 3}, "scan changes nothing"),
        ({"batch": 6, "drawn_at_once": 4}, "neither of batch and drawn_at_once"),
        ({"augmentation": {"blurr": {}}}, "there is no blurr"),
        ({"placement": {"rule": "everywhere"}}, "there is no rule 'everywhere'"),
        ({"learning_rate": "1e-3"}, "learning_rate: YAML takes 1e-3 for text; write 0.001"),
        ({"learning_rate": 10**400}, "learning_rate is 1000"),
        ({"spacing": 2.0, "augmentation": {"scan": {}}}, "spacing is 2.0, not a list of 3"),
        ({"iterations": 1.5}, "iterations is 1.5, not a whole number"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0, not a whole number from 1"),
        ({"ema": float("nan")}, "ema is nan, not a number from 0 to 1"),
        ({"gradient_clip": -1}, "gradient_clip is -1, not a number above 0"),
        ({"divide": "some"}, "divide is 'some', not a number"),
        ({"batch_dice": "maybe"}, "batch_dice is 'maybe', not true or false"),
        ({"name": 3}, "name is 3, not text"),
        ({"patch": "abc"}, "patch is 'abc', not a list of 3"),
        ({"holdout": "kept"}, "holdout is 'kept', not a list"),
        ({"precision": "INT8"}, "precision is 'INT8', not one of"),
        ({"postprocessing": [{"step": "keep_larges", "labels": [1]}]}, "bad postprocessing"),
        ({"self_training": {"rounds": 2}}, "self_training needs iterations and learning_rate"),
        (
            {"self_training": {"rounds": 0, "iterations": 9, "learning_rate": 0.001}},
            "self_training: rounds is 0, not a whole number from 1",
        ),
        (
            {"self_training": {"rounds": 1, "iterations": 9.5, "learning_rate": 0.001}},
            "self_training: iterations is 9.5, not a whole number from 1",
        ),
        (
            {"self_training": {"rounds": 1, "iterations": 9, "learning_rate": "1e-3"}},
            "self_training: learning_rate: YAML takes 1e-3 for text; write 0.001",
        ),
    ],
)
def test_every_mistake_in_a_configuration_is_one_line(
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: dict[str, Any],
    said: str,
) -> None:
    data = tmp_path / "data" / "unlabelled" / "kept"
    data.mkdir(parents=True)
    content = yaml.safe_load(CONFIG.read_text())
    content.update({k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()})
    content.update(wrong)
    config = tmp_path / "wrong.yaml"
    config.write_text(yaml.safe_dump(content))
    work = tmp_path / "work"
    work.mkdir()
    (work / "prepared").symlink_to(prepared)
    # Said before anything is prepared, which may take hours.
    arguments = ["prepare", "--config", str(config), "--data", str(data.parents[1])]
    assert main([*arguments, "--work", str(work)]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("step", ["prepare", "train"])
def test_names_that_no_case_has_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], step: str
) -> None:
    data = dataset(tmp_path / "data")
    add(data, "P1", *liver_and_spleen())
    add(data, "head", liver_and_spleen()[0], None)
    arguments = ["--data", str(data), "--work", str(tmp_path / "work"), "--workers", "1"]
    for wrong in ({"holdout": ["P1", "P_2"]}, {"empty": ["head", "haed"]}, {"holdout": [7]}):
        config = configuration(tmp_path, **wrong)
        assert main([step, "--config", str(config), *arguments]) == 2
        error = capfd.readouterr().err
        ((key, names),) = wrong.items()
        assert f"{key}: {data} has no case {names[-1]}" in error and len(error.splitlines()) == 1
    # Our own configuration names the empty CTs of our data.
    ours = configuration(tmp_path, empty=["acrin", "s0521"])
    assert main(["prepare", "--config", str(ours), *arguments]) == 0
    assert f"empty: {data} has none of acrin, s0521" in capfd.readouterr().err
