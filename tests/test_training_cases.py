"""Which cases are taken, refused, kept aside, and told how far they may be believed."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import SimpleITK as sitk
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.organs import LABEL_OF, ORGANS
from inference.preprocess import preprocess
from training.__main__ import main
from training.cases import find_cases
from training.config import Config
from training.folds import fold_of
from training.losses import partial_dice_cross_entropy
from training.prepare import prepare
from training.prepared_file import opened
from training.samples import Samples
from training.tissues import UNKNOWN

pytestmark = pytest.mark.usefixtures("one_thread")

REPOSITORY = Path(__file__).parents[1]
IN_THE_CHEST = (LABEL_OF["aorta"], LABEL_OF["esophagus"])


def a_patient() -> tuple[np.ndarray, np.ndarray]:
    """HU and labels (z, y, x) in LPS orientation: liver on the right, spleen on the left."""
    labels = np.zeros((12, 20, 24), np.uint8)
    labels[2:9, 6:14, 4:11] = 1
    labels[4:9, 7:13, 15:19] = 3
    hu = np.full(labels.shape, -1000, np.int16)
    hu[:, 3:17, 2:22] = 0
    hu[labels > 0] = 60
    hu[:, 14:16, 11:13] = 400  # the spine
    return hu, labels


def write(path: Path, array: np.ndarray, origin: float = 0.0) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((12.0, 12.0, 12.0))
    image.SetOrigin((origin, 0.0, 0.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


def dataset(root: Path, **more: Any) -> Path:
    """A folder in nnU-Net's layout whose labels 1 and 3 are ours and whose 20 is the colon."""
    labels = {"background": 0, "liver": 1, "spleen": 3, "colon": 20}
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({"labels": labels, **more}))
    return root


def add(root: Path, name: str, hu: np.ndarray, labels: np.ndarray | None, shift: float = 0) -> None:
    write(root / "imagesTr" / f"{name}_0000.nii.gz", hu)
    if labels is not None:
        write(root / "labelsTr" / f"{name}.nii.gz", labels, shift)


def configuration(folder: Path, **changes: Any) -> Path:
    """Our configuration, so small that a step takes some milliseconds."""
    content = yaml.safe_load((REPOSITORY / "training/configs/abdoseg.yaml").read_text())
    content["network"].update(
        features=[4, 6, 8], kernels=[[3, 3, 3]] * 3, strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    )
    content.update(spacing=[12.0] * 3, patch=[8, 12, 12], synthesis_spacing=12.0, coarse_first={})
    content.update(iterations=2, evaluate_every=2, checkpoint_every=2, warmup=0, holdout=[])
    content.update(empty=[], shares={"labelled": 1.0}, augmentation={}, class_weights=[])
    content.update(changes)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def prepared_once(tmp_path: Path) -> tuple[Path, Path, Config]:
    """A dataset of one patient, P1; where it was prepared; and the configuration."""
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    add(data, "P1", *a_patient())
    config = Config.load(configuration(tmp_path))
    prepare(find_cases(data), out, config, 1)
    return data, out, config


def test_each_case_that_cannot_be_right_is_refused_with_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hu, labels = a_patient()
    liver = np.where(labels == 1, 1, 0).astype(np.uint8)
    data = dataset(tmp_path / "data")
    add(data, "good", hu, labels)
    add(data, "moved", hu, labels, shift=5.0)
    add(data, "cut", hu, labels[1:])
    add(data, "number", hu, np.where(labels == 3, 77, labels).astype(np.uint8))
    add(data, "half", hu, labels * np.float32(0.5))
    add(data, "grey", ((hu + 1000) / 10).astype(np.int16), labels)
    add(data, "mirrored", hu, labels[:, :, ::-1])
    add(data, "left_liver", hu, liver[:, :, ::-1])
    add(data, "nothing", hu, labels * 0)
    add(data, "torn", hu, labels)
    image = data / "imagesTr" / "torn_0000.nii.gz"
    image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes())[:2000]))

    work = tmp_path / "work"
    arguments = ["--config", str(configuration(tmp_path)), "--data", str(data)]
    assert main(["prepare", *arguments, "--work", str(work), "--workers", "1"]) == 0

    reasons = {
        "moved": "the labels do not lie on the image's grid: origin (5, 0, 0), not (0, 0, 0)",
        "cut": "the labels do not lie on the image's grid: size (24, 20, 11), not (24, 20, 12)",
        "number": "label values 77 are not organs",
        "half": "label values 0.5, 1.5 are not organs",
        "grey": "values from 0 to 140 are not Hounsfield units of a body",
        "mirrored": "the liver lies left of the spleen",
        "left_liver": "the liver lies in the left half",
        "nothing": "nothing is labelled",
        "torn": "",  # in the reader's words
    }
    lines = (work / "prepared" / "refused.txt").read_text().splitlines()
    said = dict(line.split(": ", 1) for line in lines)
    assert said.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in said[name], name
    assert [p.stem for p in (work / "prepared" / "images").iterdir()] == ["good"]
    assert [line for line in capfd.readouterr().err.splitlines() if line.startswith("refused")] == [
        f"refused: {line}" for line in lines
    ]


def test_what_was_not_annotated_is_unknown_all_the_way(tmp_path: Path) -> None:
    """From dataset.json to the patch: other structures, missing organs, single cases."""
    hu, labels = a_patient()
    labels[9:11, 6:9, 6:9] = 20  # a colon: none of the organs
    labels[9, 6, 6] = 255  # somebody was not sure
    data = dataset(tmp_path / "data", annotated={"P2": ["liver"]})
    add(data, "P1", hu, labels)
    add(data, "P2", hu, np.where(labels == 1, 1, 0).astype(np.uint8))
    config = Config.load(configuration(tmp_path))
    assert prepare(find_cases(data), tmp_path / "out", config, 1) == []

    told = {}
    for name in ("P1", "P2"):
        other = {"P1": "P2", "P2": "P1"}[name]
        patches = Samples(tmp_path / "out", config, (other,))
        told[name] = patches[0].annotated.nonzero().flatten().tolist()
    assert told == {"P1": [0, 1, 3], "P2": [0, 1]}
    with np.load(tmp_path / "out" / "images" / "P1.npz") as content:
        assert (content["labels"] == UNKNOWN).sum() == 18


def test_what_is_labelled_but_not_annotated_is_unknown(tmp_path: Path) -> None:
    """A spleen that somebody drew roughly and did not vouch for: by hand and by a network."""
    hu, labels = a_patient()
    data = dataset(tmp_path / "data", annotated={"P1": ["liver"], "P2": ["liver"]})
    add(data, "P1", hu, labels)
    write(data / "imagesTr" / "P2_0000.nii.gz", hu)
    write(data / "pseudolabelsTr" / "P2.nii.gz", labels)
    shares = {"labelled": 0.5, "pseudo": 0.5}
    config = Config.load(configuration(tmp_path, shares=shares))
    assert prepare(find_cases(data), tmp_path / "out", config, 1) == []
    for path in ("images/P1.npz", "pseudo/P2.npz"):
        with np.load(tmp_path / "out" / path) as content:
            assert (content["labels"] == 1).any()
            assert set(np.unique(content["labels"])) == {0, 1, UNKNOWN}
    samples = Samples(tmp_path / "out", config)
    for number in range(8):
        _, drawn_labels, annotated, weight = samples[number]
        logits = torch.zeros(1, 1 + len(ORGANS), *drawn_labels.shape)
        loss = partial_dice_cross_entropy(logits, drawn_labels[None], annotated[None], weight[None])
        assert loss < 10


@settings(max_examples=30, deadline=None)
@given(
    names=st.sets(st.text("abc_019", min_size=1, max_size=6), max_size=30),
    folds=st.integers(1, 7),
    seed=st.integers(0, 5),
)
def test_folds_divide_the_cases(names: set[str], folds: int, seed: int) -> None:
    parts = [fold_of(names, fold, folds, seed) for fold in range(folds)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == [fold_of(sorted(names)[::-1], fold, folds, seed) for fold in range(folds)]


def test_a_fold_is_scored_on_and_not_trained_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = dataset(tmp_path / "data")
    for number in range(5):
        add(data, f"P{number}", *a_patient())
    arguments = ["--config", str(configuration(tmp_path, folds=2)), "--data", str(data)]
    arguments += ["--work", str(tmp_path / "work"), "--workers", "1"]
    assert main(["prepare", *arguments]) == 0
    scored = {}
    for fold in ("0", "1"):
        assert main(["train", *arguments, "--fold", fold]) == 0
        rows = (tmp_path / "work" / f"run_fold{fold}" / "scores.csv").read_text().splitlines()[1:]
        scored[fold] = {row.split(",")[1] for row in rows}
        assert f"training on {5 - len(scored[fold])} labelled" in capfd.readouterr().out
    assert scored["0"] | scored["1"] == {f"P{number}" for number in range(5)}
    assert not scored["0"] & scored["1"]
    assert main(["train", *arguments, "--fold", "2"]) == 2
    assert "there is no fold 2: folds are 0 to 1" in capfd.readouterr().err


def test_a_teacher_is_named_on_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = dataset(tmp_path / "data")
    add(data, "P1", *a_patient())
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


def test_no_fold_learns_from_the_pseudo_labels_of_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hu, labels = a_patient()
    data, work = dataset(tmp_path / "data"), tmp_path / "work"
    for number in range(4):
        add(data, f"P{number}", hu, labels)
    add(data, "bare", hu, None)
    shares = {"labelled": 0.5, "pseudo": 0.5}
    config = str(configuration(tmp_path, folds=2, shares=shares))
    arguments = ["--config", config, "--data", str(data), "--work", str(work), "--workers", "1"]

    def done(step: str, *options: str) -> str:
        """What a step says."""
        code = main([step, *arguments, *options])
        out, error = capfd.readouterr()
        assert code == (2 if "training: " in error else 0)
        return str(out + error)

    done("prepare")
    assert "training on 2 labelled" in done("train", "--fold", "0")  # no pseudo-labels: as before
    done("pseudolabel", "--fold", "0")
    assert [path.name for path in work.glob("pseudo*")] == ["pseudolabels_fold0"]
    for name in ("pseudolabels", "pseudolabels_fold0"):  # as if they had been sure of the liver
        made = np.where(labels == 1, 1, UNKNOWN if name == "pseudolabels" else 0)
        write(work / name / "bare.nii.gz", made.astype(np.uint8))
        (work / name / "annotated.json").write_text('{"bare": ["liver"]}')

    pseudo = work / "prepared" / "pseudo" / "bare.npz"
    done("prepare", "--fold", "0")
    assert stored(pseudo, "labels") == [0, 1]
    assert "2 labelled, 1 pseudo" in done("train", "--fold", "0", "--run", "second")
    assert "run 'prepare --fold 1' first" in done("train", "--fold", "1")
    assert "4 labelled, 1 pseudo" in done("train")  # scored on neither fold
    done("prepare", "--fold", "1")
    assert not pseudo.exists()
    assert "training on 2 labelled\n" in done("train", "--fold", "1")
    done("prepare")
    assert stored(pseudo, "labels") == [1, UNKNOWN]
    assert "has pseudo-labels for no fold" in done("train", "--fold", "0", "--run", "third")


@pytest.mark.parametrize("step", ["prepare", "train"])
def test_names_that_no_case_has_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], step: str
) -> None:
    data = dataset(tmp_path / "data")
    add(data, "P1", *a_patient())
    add(data, "head", a_patient()[0], None)
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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"annotated": {"P9": ["liver"]}}, "annotated: there is no case P9"),
        ({"annotated": ["P1"]}, "annotated has no names and values"),
        ({"annotated": {"P1": [["liver"]]}}, "is no list of its labels"),
        ({"labels": ["liver"]}, "labels has no names and values"),
        ({"labels": {"liver": 1, "ignore": -1}}, 'labels are "name": number, not "ignore": -1'),
        ({"labels": {"1": "liver"}}, 'labels are "name": number, not "1": \'liver\''),
        ({"labels": {"both": [1, 3]}}, "label 'both' is a region"),
        ({"labels": {"liver": 1, "tumour": 1}}, "two labels have the value 1, 'tumour' is one"),
    ],
)
def test_descriptions_that_mean_nothing_are_refused(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    data = dataset(tmp_path, **more)
    add(data, "P1", *a_patient())
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        find_cases(data)
    assert str(data / "dataset.json") in str(caught.value)


@pytest.mark.parametrize("folder", ["labelsTr", "pseudolabelsTr"])
def test_labels_in_two_files_are_refused(tmp_path: Path, folder: str) -> None:
    data = dataset(tmp_path)
    hu, labels = a_patient()
    add(data, "P1", hu, None)
    write(data / folder / "P1.nii.gz", labels)
    write(data / folder / "P1.nii", labels)
    with pytest.raises(ValueError, match=r"P1\.nii\.gz: the labels are there twice, as P1\.nii"):
        find_cases(data)


@pytest.mark.parametrize("folder", ["labelsTr", "pseudolabelsTr"])
def test_pseudolabels_lie_elsewhere_than_the_datas_labels(
    tmp_path: Path, folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """There the numbers are those of dataset.json; ours would be read as other organs."""
    data = dataset(tmp_path / "data")
    add(data, "P1", *a_patient())
    arguments = ["--config", str(configuration(tmp_path)), "--data", str(data)]
    own = ["--pseudolabels", str(data / folder), "--work", str(tmp_path / "work")]
    assert main(["pseudolabel", *arguments, *own]) == 2
    assert f"{data / folder}: lies among the data's labels" in capfd.readouterr().err


@pytest.mark.parametrize("folder", ["labelsTr", "pseudolabelsTr"])
def test_labels_under_a_name_that_no_ct_has_are_refused(tmp_path: Path, folder: str) -> None:
    """`P2_0000` is a common slip: the CT would be unlabelled, its labels another case's."""
    data = dataset(tmp_path)
    add(data, "P1", *a_patient())
    add(data, "P2", a_patient()[0], None)
    wrong = data / folder / "P2_0000.nii.gz"
    write(wrong, a_patient()[1])
    with pytest.raises(ValueError, match="have their CT's name without _0000"):
        find_cases(data)
    wrong.rename(wrong.with_name("P3.nii.gz"))
    if folder == "labelsTr":  # labels without a CT are a label map
        assert {case.name: case.kind for case in find_cases(data)}["P3"] == "labelmap"
    else:
        with pytest.raises(ValueError, match="there is no CT of this name"):
            find_cases(data)


def test_files_that_are_no_cases_or_not_there_cost_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = dataset(tmp_path / "data")
    add(data, "P1", *a_patient())
    for folder in ("imagesTr", "labelsTr"):
        (data / folder / "._P1_0000.nii.gz").write_text("macOS")
    (data / "cases" / ".ipynb_checkpoints").mkdir(parents=True)
    (data / "imagesTr" / "lost_0000.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    (data / "imagesTr" / "b\udcff_0000.nii.gz").write_text("a name that is not UTF-8")
    assert {case.name for case in find_cases(data)} == {"P1", "lost", "b\udcff"}
    work = tmp_path / "work"
    arguments = ["--config", str(configuration(tmp_path)), "--data", str(data)]
    assert main(["prepare", *arguments, "--work", str(work), "--workers", "1"]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("refused")]
    assert len(lines) == 2 and "No such file or directory" in lines[1]
    assert (work / "prepared" / "images" / "P1.npz").exists()
    assert len((work / "prepared" / "refused.txt").read_text().splitlines()) == 2


def test_damaged_prepared_files_are_named(prepared_once: tuple[Path, Path, Config]) -> None:
    _, out, config = prepared_once
    path = out / "images" / "P1.npz"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-30])
    with pytest.raises(ValueError, match=re.escape(f"{path}: damaged")):
        Samples(out, config)
    (out / "settings.json").write_text("")
    with pytest.raises(ValueError, match=r"settings\.json: cannot be read"):
        prepare([], out, config, 1)


def test_whatever_byte_is_wrong_a_prepared_file_is_whole_or_damaged(
    prepared_once: tuple[Path, Path, Config],
) -> None:
    _, out, _ = prepared_once
    path = out / "images" / "P1.npz"
    content = path.read_bytes()
    with opened(path) as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    damaged = 0
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), 150, replace=False):
        wrong = bytearray(content)
        wrong[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(wrong)
        try:
            with opened(path) as arrays:
                read = {name: arrays[name] for name in whole}
        except ValueError as error:
            damaged += str(error) == f"{path}: damaged; remove it and prepare again"
        else:
            assert all(np.array_equal(read[name], array) for name, array in whole.items())
    assert damaged > 75  # about 110: nobody reads a zip file's dates, which differ by run


def test_organs_that_no_label_is_understood_as_are_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """AMOS22 writes "arota", which is understood; another's "Leber" is not."""
    names = {"background": 0, "Leber": 1, "spleen": 3, "arota": 5}
    data = dataset(tmp_path / "data", labels=names)
    add(data, "P1", *a_patient())
    arguments = ["--data", str(data), "--work", str(tmp_path / "work"), "--workers", "1"]
    assert main(["prepare", "--config", str(configuration(tmp_path)), *arguments]) == 0
    error = capfd.readouterr().err
    assert "no labels of liver, right_kidney, pancreas, inferior" in error
    assert "(dataset.json has, beside our organs, Leber)" in error


def test_pseudo_labels_of_a_case_that_there_is_not_are_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    add(data, "P1", a_patient()[0], None)
    (tmp_path / "annotated.json").write_text('{"P_1": ["liver"]}')
    with pytest.raises(ValueError, match="has no case P_1"):
        find_cases(data, tmp_path)


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """A prepared folder in which every file is of one brightness, by which patches tell it."""
    shape = (12, 16, 16)
    files = {
        "images/atlas": 10,
        "images/P1": 20,
        "images/P1__b": 30,
        "images/bare": 40,
        "transferred/P1__atlas": 50,
        "transferred/P2__other": 60,
        "empty/head": 70,
        "pseudo/P3": 80,
    }
    for name, hu in files.items():
        labels = np.zeros(shape, np.uint8)
        if "empty" not in name:
            labels[3:9, 4:12, 4:12] = 1
        told = {"images/bare": [], "empty/head": [v for v in ORGANS if v not in IN_THE_CHEST]}
        path = tmp_path / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(
            path,
            hu=np.full(shape, hu, np.int16),
            labels=labels,
            annotated=np.array(told.get(name, [1]), np.uint8),
            spacing=[12.0] * 3,
        )
    return tmp_path


def drawn(folder: Path, aside: tuple[str, ...] = (), **changes: Any) -> list[tuple[int, Any]]:
    """Brightness and patch of many samples."""
    shares = {"labelled": 0.3, "transferred": 0.3, "empty": 0.2, "pseudo": 0.2}
    placement = {"rule": "anywhere", "foreground": 0.5}
    options = {"shares": shares, "pseudo_weight": 0.25, "placement": placement, **changes}
    config = Config.load(configuration(folder, **options))
    samples = Samples(folder, config, aside)
    patches = [samples[i] for i in range(120)]
    hu = [p.image * config.divide + config.subtract for p in patches]
    return [(round(float(h.max())), p) for h, p in zip(hu, patches, strict=True)]


def test_patches_come_from_every_kind_by_its_share(kinds: Path) -> None:
    counts: dict[int, int] = {}
    for hu, patch in drawn(kinds):
        counts[hu] = counts.get(hu, 0) + 1
        assert float(patch.weight) == (0.25 if hu == 80 else 1.0)
    assert set(counts) == {10, 20, 30, 50, 60, 70, 80}  # "bare" has no labels
    assert 20 < counts[50] + counts[60] < 52  # 36 are expected
    assert 10 < counts[70] < 40


def test_patches_around_an_organ_show_nothing_beside_the_body(tmp_path: Path) -> None:
    hu = np.full((24, 40, 40), -1000, np.int16)
    hu[:, 8:30, 5:33] = 40
    labels = np.zeros(hu.shape, np.uint8)
    labels[0, 29, 5] = 1  # at the edge of the body
    labels[12, 15, 20] = 2
    path = tmp_path / "images" / "P1.npz"
    path.parent.mkdir()
    np.savez(path, hu=hu, labels=labels, annotated=np.array([1, 2], np.uint8), spacing=[12.0] * 3)
    placement = {"rule": "anywhere", "foreground": 1.0}
    options = {"shares": {"labelled": 1.0}, "placement": placement, "augmentation": {}}
    config = Config.load(configuration(tmp_path, patch=[8, 16, 32], clip=[-1000, 200], **options))
    samples = Samples(tmp_path, config)
    seen = set()
    for i in range(30):
        patch = samples[i]
        shown = (patch.image[0] * config.divide + config.subtract).round()
        assert (shown[..., 2:30] == 40).all()  # 28 wide, in the middle of 32
        assert (shown[..., :2] == -1000).all() and (shown[..., 30:] == -1000).all()
        seen |= set(patch.labels.unique().tolist()) - {0}
    assert seen == {1, 2}


@pytest.mark.parametrize("spacing", [12.0, 11.95])
@pytest.mark.parametrize("placement", ["labelled_slices", "anywhere"])
def test_a_patch_that_is_not_varied_is_a_part_of_the_ct(
    tmp_path: Path, placement: str, spacing: float
) -> None:
    """Voxel by voxel, so the labels are still those of the image."""
    hu = np.random.default_rng(5).integers(-250, 200, (25, 41, 40)).astype(np.int16)
    labels = (hu > 50).astype(np.uint8)
    path = tmp_path / "images" / "P1.npz"
    path.parent.mkdir()
    np.savez(path, hu=hu, labels=labels, annotated=np.array([1], np.uint8), spacing=[spacing] * 3)
    rule = {"rule": placement, **({"foreground": 0.5} if placement == "anywhere" else {})}
    options = {"shares": {"labelled": 1.0}, "placement": rule, "augmentation": {}}
    config = Config.load(configuration(tmp_path, patch=[8, 16, 32], clip=[-1000, 200], **options))
    samples = Samples(tmp_path, config)
    parts = np.lib.stride_tricks.sliding_window_view(hu, (8, 16, 32))
    for i in range(12):
        image = samples[i].image[0].numpy() * config.divide + config.subtract
        near = np.abs(parts[..., 0, 0, 0] - image[0, 0, 0]) < 0.5
        assert any(np.abs(part - image).max() < 0.5 for part in parts[near])
        assert np.array_equal(samples[i].labels.numpy() == 1, image > 50.5)


def test_a_ct_without_organs_tells_that_all_but_those_of_the_chest_are_absent(kinds: Path) -> None:
    patches = [patch for hu, patch in drawn(kinds, shares={"empty": 1.0}) if hu == 70]
    assert len(patches) == 120
    for patch in patches:
        assert not patch.labels.any()
        assert patch.annotated.tolist() == [v not in IN_THE_CHEST for v in range(1 + len(ORGANS))]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("atlas", {20, 30, 60, 70, 80}),  # what was bent from it goes too
        ("P1", {10, 60, 70, 80}),  # "P1__b" cannot be told from P1 with an atlas b
        ("P1__b", {10, 20, 50, 60, 70, 80}),
        ("other", {10, 20, 30, 50, 70, 80}),
        ("head", {10, 20, 30, 50, 60, 80}),
    ],
)
def test_nothing_of_a_held_out_case_is_drawn(kinds: Path, name: str, left: set[int]) -> None:
    assert {hu for hu, _ in drawn(kinds, (name,))} == left
    assert {hu for hu, _ in drawn(kinds, (), holdout=[name])} == left


def test_cts_named_empty_are_prepared_as_such(tmp_path: Path) -> None:
    hu, labels = a_patient()
    data = dataset(tmp_path / "data")
    add(data, "P1", hu, labels)
    add(data, "head", hu, None)
    add(data, "neck", hu, labels * 0)  # somebody looked: there is nothing
    shares = {"labelled": 0.5, "empty": 0.5}
    config = Config.load(configuration(tmp_path, empty=["head", "neck"], shares=shares))
    assert prepare(find_cases(data), tmp_path / "out", config, 1) == []
    samples = Samples(tmp_path / "out", config)
    assert [p.stem for p in samples.sources["empty"]] == ["head", "neck"]
    assert [p.stem for p in samples.sources["labelled"]] == ["P1"]


def test_the_first_steps_are_coarser_in_whole_batches(kinds: Path) -> None:
    coarse = {"share": 0.4, "spacing": [24.0] * 3, "patch": [4, 8, 8]}
    config = Config.load(configuration(kinds, coarse_first=coarse, iterations=6, batch=4))
    samples = Samples(kinds, config)
    shapes = [tuple(samples[i].labels.shape) for i in range(24)]
    assert shapes == [(4, 8, 8)] * 12 + [(8, 12, 12)] * 12  # 2.4 steps: three


def test_changed_labels_are_prepared_anew(prepared_once: tuple[Path, Path, Config]) -> None:
    data, out, config = prepared_once
    hu, labels = a_patient()
    first = (out / "images" / "P1.npz").stat().st_mtime_ns
    prepare(find_cases(data), out, config, 1)
    assert (out / "images" / "P1.npz").stat().st_mtime_ns == first
    add(data, "P1", hu, np.where(labels == 3, 0, labels).astype(np.uint8))
    later = time.time() + 5
    os.utime(data / "labelsTr" / "P1.nii.gz", (later, later))
    prepare(find_cases(data), out, config, 1)
    with np.load(out / "images" / "P1.npz") as content:
        assert set(np.unique(content["labels"])) == {0, 1}


def test_what_an_older_version_prepared_is_prepared_anew(
    prepared_once: tuple[Path, Path, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, config = prepared_once
    path = out / "images" / "P1.npz"
    first = path.stat().st_mtime_ns
    monkeypatch.setattr("training.fingerprint._FORM", 99)
    prepare(find_cases(data), out, config, 1)
    later = path.stat().st_mtime_ns
    assert later > first
    prepare(find_cases(data), out, config, 1)
    assert path.stat().st_mtime_ns == later


def stored(path: Path, name: str) -> list[int]:
    """The values of an array of a prepared file."""
    with np.load(path) as content:
        return [int(value) for value in np.unique(content[name])]


def test_edited_descriptions_are_prepared_anew(tmp_path: Path) -> None:
    """Only what they concern: other names for the labels, organs that are not annotated."""
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    add(data, "P1", *a_patient())
    add(data, "P2", *a_patient())
    config = Config.load(configuration(tmp_path))
    prepare(find_cases(data), out, config, 1)
    p1, p2 = (out / "images" / f"{name}.npz" for name in ("P1", "P2"))
    before = p2.stat().st_mtime_ns
    dataset(data, annotated={"P1": ["liver"]})
    prepare(find_cases(data), out, config, 1)
    assert stored(p1, "annotated") == [1] and stored(p1, "labels") == [0, 1, UNKNOWN]
    assert p2.stat().st_mtime_ns == before
    names = {"labels": {"background": 0, "liver": 1, "pancreas": 3}}
    (data / "dataset.json").write_text(json.dumps(names))
    prepare(find_cases(data), out, config, 1)
    assert stored(p2, "annotated") == stored(p2, "labels")[1:] == [1, 4]


def test_a_file_that_is_replaced_by_an_older_one_is_prepared_anew(
    prepared_once: tuple[Path, Path, Config],
) -> None:
    data, out, config = prepared_once
    _, labels = a_patient()
    replaced = data / "labelsTr" / "P1.nii.gz"
    write(replaced, np.where(labels == 3, 0, labels).astype(np.uint8))
    os.utime(replaced, (1e9, 1e9))
    prepare(find_cases(data), out, config, 1)
    assert stored(out / "images" / "P1.npz", "labels") == [0, 1]


@pytest.mark.parametrize("name", ["P1_0000.mhd", "P1_0000.nrrd"])
def test_voxels_that_lie_beside_their_header_are_looked_at(tmp_path: Path, name: str) -> None:
    """Of the same size, under a header that stays."""
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    hu, labels = a_patient()
    write(data / "labelsTr" / "P1.nii.gz", labels)
    config = Config.load(configuration(tmp_path))

    def prepared(hu: np.ndarray) -> int:
        image = sitk.GetImageFromArray(hu)
        image.SetSpacing((12.0, 12.0, 12.0))
        (data / "imagesTr").mkdir(exist_ok=True)
        path = data / "imagesTr" / name
        sitk.WriteImage(image, str(path))
        if path.suffix == ".nrrd":  # ITK writes one file; put its voxels apart
            header, voxels = path.read_bytes().split(b"\n\n", 1)
            path.write_bytes(header + b"\ndata file: P1.raw\n\n")
            (path.parent / "P1.raw").write_bytes(voxels)
        assert prepare(find_cases(data), out, config, 1) == []
        return max(stored(out / "images" / "P1.npz", "hu"))

    assert prepared(hu) == 400
    hu[hu == 400] = 300
    assert prepared(hu) == 300


def test_copied_data_is_the_same_data_and_other_data_is_refused(
    prepared_once: tuple[Path, Path, Config], tmp_path: Path
) -> None:
    data, out, config = prepared_once
    path = out / "images" / "P1.npz"
    before = path.stat().st_mtime_ns
    copy = shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copy)  # times are now
    for file in copy.rglob("*.nii.gz"):
        os.utime(file, (2e9, 2e9))
    prepare(find_cases(copy), out, config, 1)
    assert path.stat().st_mtime_ns == before

    other = dataset(tmp_path / "other")
    add(other, "Q1", *a_patient())
    with pytest.raises(ValueError, match="prepared from other data"):
        prepare(find_cases(other), out, config, 1)
    assert path.stat().st_mtime_ns == before


def test_nothing_stays_of_cases_that_are_gone_or_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hu, labels = a_patient()
    fine = np.kron(labels, np.ones((2, 2, 2), np.uint8))
    for name in ("atlas", "gone", "spoilt", "stays"):
        write(tmp_path / "data" / "labelmaps" / name / "labels.nii.gz", fine)
    atlas = tmp_path / "data" / "labelmaps" / "atlas"
    write(atlas / "full_labels.nii.gz", fine)
    (atlas / "full_labels_names.json").write_text('{"1": "liver", "3": "spleen"}')
    for name in ("C1", "C2"):
        write(tmp_path / "data" / "cases" / name / "ct.nii.gz", hu)
        write(tmp_path / "data" / "cases" / name / "labels.nii.gz", labels)
    out = tmp_path / "out"
    config = Config.load(configuration(tmp_path, shares={"synthetic": 0.5, "labelled": 0.5}))
    assert prepare(find_cases(tmp_path / "data"), out, config, 2) == []
    (out / "bodies" / ".1.partial.P.npz").touch()  # another process is writing it
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    shutil.rmtree(tmp_path / "data" / "labelmaps" / "gone")
    shutil.rmtree(tmp_path / "data" / "cases" / "C1")
    write(tmp_path / "data" / "labelmaps" / "spoilt" / "labels.nii.gz", fine[:, :, ::-1])
    assert len(prepare(find_cases(tmp_path / "data"), out, config, 2)) == 1
    assert "removed 3 prepared file(s)" in capfd.readouterr().err  # C1 was a patient as well
    left = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    names = ("images/C1", "bodies/C1__atlas", "bodies/gone__atlas", "bodies/spoilt__atlas")
    lost = {out / f"{name}.npz" for name in names}
    assert left == {path: made for path, made in before.items() if path not in lost}

    # Another configuration does not need the bodies: they stay for the next one.
    for other in ({"shares": {"labelled": 1.0}}, {"holdout": ["atlas", "C2"]}):
        changed = Config.load(configuration(tmp_path, **other))
        prepare(find_cases(tmp_path / "data"), out, changed, 2)
        assert left.items() <= {p: p.stat().st_mtime_ns for p in out.rglob("*.npz")}.items()


def test_label_maps_without_a_body_are_refused_and_the_others_prepared(tmp_path: Path) -> None:
    _, labels = a_patient()
    point = np.zeros_like(labels)
    point[5, 10, 10] = 1
    slice_alone = np.where(np.arange(12)[:, None, None] == 5, labels, 0).astype(np.uint8)
    maps = {"bare": labels * 0, "good": labels, "point": point, "slice": slice_alone}
    for name, array in maps.items():
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((4.0, 4.0, 1.0 if name == "slice" else 4.0))
        path = tmp_path / "data" / "labelmaps" / name / "labels.nii.gz"
        path.parent.mkdir(parents=True)
        sitk.WriteImage(image, str(path))
    config = Config.load(configuration(tmp_path, shares={"synthetic": 1.0}))
    refused = prepare(find_cases(tmp_path / "data"), tmp_path / "out", config, 1)
    assert refused[0] == "bare: nothing is labelled"
    assert [line.split(": ")[0] for line in refused] == ["bare", "point", "slice"]
    assert [path.stem for path in (tmp_path / "out" / "bodies").iterdir()] == ["good"]


_TOLD_BETWEEN_JOBS = """
import os, signal, time
from training import prepare

prepare._end_when_told()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except BaseException:
    pass  # as the pool does
prepare._run(None)
print("went on")
"""


def test_a_process_that_is_told_to_end_between_two_jobs_does_not_begin_the_next() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TOLD_BETWEEN_JOBS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_preparation_ends_and_leaves_whole_files(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Eight patients, each a second or more of registration, and one worker."""
    _, labels = a_patient()
    fine = np.kron(labels, np.ones((4, 4, 4), np.uint8))
    for name in ("atlas", *(f"P{i}" for i in range(8))):
        folder = tmp_path / "data" / "labelmaps" / name
        write(folder / "labels.nii.gz", fine)
        if name == "atlas":
            write(folder / "full_labels.nii.gz", fine)
            names = {"1": "liver", "3": "spleen"}
            (folder / "full_labels_names.json").write_text(json.dumps(names))
    config = configuration(tmp_path, shares={"synthetic": 1.0})
    command = ["prepare", "--config", str(config), "--data", str(tmp_path / "data")]
    command += ["--work", str(tmp_path / "work"), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *command],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    bodies = tmp_path / "work" / "prepared" / "bodies"
    try:
        while not list(bodies.glob("[!.]*.npz")):
            assert process.poll() is None
            time.sleep(0.05)
        if number == signal.SIGINT:  # a terminal tells all of them
            os.killpg(process.pid, number)
        else:  # a service manager may tell the first alone
            process.send_signal(number)
        _, error = process.communicate(timeout=300)
        assert process.returncode == 130
        assert error.splitlines()[-1].startswith("training: interrupted; the same command")
        assert "Traceback" not in error
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # no worker is left
    finally:
        process.kill()
    files = sorted(path.name for path in bodies.iterdir())
    assert 1 <= len(files) < 9
    for name in files:
        assert not name.startswith(".")
        with np.load(bodies / name) as content:
            assert torch.from_numpy(content["tissues"]).any()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "training/configs").glob("*.yaml")), ids=str)
def test_training_sees_what_inference_sees(path: Path) -> None:
    """Of a CT in whole HU: prepared and normalised, or preprocessed by the exported plan."""
    config = Config.load(path)
    plan = config.plan((1, 1, 1))
    spacing = tuple(step or 2.0 for step in plan.spacing)
    hu = np.random.default_rng(0).integers(-1024, 3071, (6, 20, 24)).astype(np.int16)
    seen = preprocess(hu, (spacing[0], spacing[1], spacing[2]), plan).values
    prepared = preprocess(hu, (spacing[0], spacing[1], spacing[2]), config.plan_in_hu).values
    if plan.size == (None, None, None):  # else it is resized: rounded once on the way
        prepared = np.round(prepared)
    np.testing.assert_allclose(config.normalise(prepared), seen, atol=1e-5)
    lowest, highest = plan.clip
    assert seen.min() == pytest.approx((lowest - plan.subtract) / plan.divide, abs=1e-5)
    assert config.air == pytest.approx(float(seen.min()), abs=1e-5)
    assert seen.max() <= (highest - plan.subtract) / plan.divide + 1e-5
