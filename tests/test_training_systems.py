"""Each configuration, shrunken, from a data set in nnU-Net's layout to weights that run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("nncf", reason="the training extra is not installed")

import SimpleITK as sitk
import yaml

from inference.organs import ORGANS
from inference.phantom import make_phantom
from inference.plan import Plan
from training.__main__ import main
from training.records.read import read_rows

REPOSITORY = Path(__file__).parents[1]
NAMES = ("abdoseg", "dsunet_eca", "nnunet_half", "nnunet_iso2p5", "unet_baseline")

# Each is one or several whole commands, in processes of their own.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled phantoms, one pseudo-labelled, one unlabelled; FLARE's names for organs."""
    root = tmp_path_factory.mktemp("Dataset001_Phantoms")
    for folder in ("imagesTr", "labelsTr", "pseudolabelsTr"):
        (root / folder).mkdir()
    names = {"RK": 2, "LK": 13, "IVC": 6, "RAG": 7, "LAG": 8}
    labels = {"background": 0, **{n: v for v, n in ORGANS.items() if v not in names.values()}}
    (root / "dataset.json").write_text(
        json.dumps(
            {"channel_names": {"0": "CT"}, "labels": {**labels, **names}, "name": "Phantoms"}
        )
    )
    for seed, where in enumerate(("labelsTr", "labelsTr", "pseudolabelsTr", "")):
        ct, truth = make_phantom(shape=(30, 32, 44), spacing=(10.0, 10.0, 10.0), seed=seed)
        sitk.WriteImage(ct, str(root / "imagesTr" / f"P{seed}_0000.nii.gz"))
        if where:
            sitk.WriteImage(truth, str(root / where / f"P{seed}.nii.gz"))
    return root


def shrink(name: str, folder: Path, **changes: Any) -> Path:
    """A configuration file for a much smaller network, patch and training."""
    content = yaml.safe_load((REPOSITORY / f"training/configs/{name}.yaml").read_text())
    kind = name.split("_")[0]
    network: dict[str, Any] = {"features": [4, 4, 8, 8, 8]}
    small: dict[str, Any]
    if kind == "nnunet":
        network = {"features": [4, 4, 6, 6, 8, 8]}
        coarse = [20.0, 10.0, 10.0] if name == "nnunet_half" else [10.0, 10.0, 10.0]
        small = {"patch": [8, 32, 64], "spacing": coarse, "batch": 2}
    elif kind == "abdoseg":
        network["features"] = [4, 4, 6, 6, 8]
        small = {"patch": [16, 16, 32], "spacing": [10.0] * 3, "synthesis_spacing": 10.0}
        first = {"share": 0.4, "spacing": [20.0] * 3, "patch": [16, 16, 32]}
        small.update(coarse_first=first, freeze_norm=0.6, empty=[])
        small["self_training"] = {"rounds": 2, "iterations": 2, "learning_rate": 0.001}
    else:
        small = {"patch": [3, 32, 32], "size": [None, 32, 32]}
    content["network"].update(network)
    content.update(
        small, iterations=3, evaluate_every=2, checkpoint_every=2, holdout=["P1"], warmup=0
    )
    content.update(changes)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_one_command_makes_weights_that_inference_runs(
    name: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = shrink(name, tmp_path)
    work, out = tmp_path / "work", tmp_path / "weights" / name
    arguments = ["--config", str(config), "--data", str(data), "--out", str(out)]
    assert main([*arguments, "--work", str(work), "--workers", "1"]) == 0

    printed = capfd.readouterr().out
    assert "int8 on P0: logits error" in printed
    errors = [float(each) for each in re.findall(r"logits error ([0-9.]+)", printed)]
    assert len(errors) >= 2 and max(errors) < 0.5
    assert "waiting for data" in printed
    run = work / "run"
    for file in ("curves.png", "pictures/P1_0000003.png", "pictures/P1_truth.png"):
        assert (run / file).stat().st_size > 1000
    assert list((run / "tensorboard").iterdir())
    assert [row["iteration"] for row in read_rows(run / "log.csv")] == ["2", "3"]
    assert {row["case"] for row in read_rows(run / "scores.csv")} == {"P1"}

    rounds = [folder for folder in sorted(work.glob("run_round*")) if folder.is_dir()]
    assert len(rounds) == (2 if name == "abdoseg" else 0)
    for folder in rounds:
        assert [row["iteration"] for row in read_rows(folder / "log.csv")] == ["2"]
        assert (folder / "pseudolabels").is_dir()

    plan = Plan.load(out)
    # What one pass needs was measured, and is known to inference.
    assert set(plan.bytes_per_voxel) == set(plan.networks)
    assert min(plan.bytes_per_voxel.values()) > 10
    original = yaml.safe_load((REPOSITORY / f"training/configs/{name}.yaml").read_text())
    assert (plan.tiling, plan.crop) == (original["tiling"], original["crop"])
    assert [dict(step) for step in plan.postprocessing] == original["postprocessing"]
    card = (out / "README.md").read_text()
    assert ("3 + 2 + 2 steps" if rounds else "\n3 steps") in card
    assert "Not a medical device" in card and "held out | 1 |" in card and "| int8 |" in card

    ct = sitk.ReadImage(str(data / "imagesTr" / "P1_0000.nii.gz"))
    for precision in plan.networks if name == "abdoseg" else [plan.precision]:
        labels = segment(data / "imagesTr" / "P1_0000.nii.gz", out, precision, tmp_path)
        assert labels.GetSize() == ct.GetSize()
        assert set(np.unique(sitk.GetArrayViewFromImage(labels))) <= {0, *ORGANS}


def segment(ct: Path, model: Path, precision: str, folder: Path) -> sitk.Image:
    """Through the command, in a process of its own."""
    out = folder / precision
    command = ["-i", str(ct), "-o", str(out), "--model", str(model), "--precision", precision]
    subprocess.run(
        [sys.executable, "-m", "inference", *command, "--threads", "1", "--quiet"],
        cwd=REPOSITORY,
        check=True,
    )
    return sitk.ReadImage(str(out / ct.name.replace("_0000", "")))


@pytest.mark.parametrize("name", ["abdoseg", "dsunet_eca", "unet_baseline"])
def test_small_networks_learn_one_volume_by_heart(name: str, tmp_path: Path) -> None:
    """The networks as configured, through the whole command to labels on the CT's own grid."""
    content = yaml.safe_load((REPOSITORY / f"training/configs/{name}.yaml").read_text())
    content.update(
        shares={"labelled": 1.0},
        augmentation={},
        class_weights=[],
        holdout=[],
        postprocessing=[],
        placement={"rule": "anywhere", "foreground": 0.5},
        iterations=150,
        evaluate_every=1000,
        checkpoint_every=1000,
        warmup=5,
        learning_rate=0.005,
        ema=0.9,
    )
    if name == "abdoseg":
        content.update(spacing=[10.0] * 3, patch=[16, 32, 32], coarse_first={}, empty=[])
    else:
        content.update(size=[None, 32, 32], patch=[3, 32, 32], batch=4)
    config = tmp_path / f"{name}.yaml"
    config.write_text(yaml.safe_dump(content))
    data, truth = _one_patient(tmp_path / "data")
    out = tmp_path / "weights" / name
    arguments = ["--config", str(config), "--data", str(data), "--out", str(out)]
    assert main([*arguments, "--work", str(tmp_path / "work"), "--workers", "1"]) == 0
    found = segment(data / "imagesTr" / "P0_0000.nii.gz", out, "f32", tmp_path)
    labels = sitk.GetArrayFromImage(found)
    for organ in (1, 3, 5):
        a, b = labels == organ, truth == organ
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9, ORGANS[organ]


def _one_patient(folder: Path) -> tuple[Path, np.ndarray]:
    """A data set of one CT with three organs, and its labels (z, y, x)."""
    labels = np.zeros((14, 32, 32), np.uint8)
    labels[2:11, 6:18, 5:15] = 1
    labels[4:12, 8:17, 20:28] = 3
    labels[1:13, 21:26, 14:20] = 5
    hu = np.full(labels.shape, -1000, np.int16)
    hu[:, 2:30, 2:30] = -60
    for organ, value in ((1, 60), (3, 130), (5, 230)):
        hu[labels == organ] = value
    hu += np.random.default_rng(0).normal(0, 8, hu.shape).astype(np.int16)
    for array, name in ((hu, "imagesTr/P0_0000.nii.gz"), (labels, "labelsTr/P0.nii.gz")):
        (folder / name).parent.mkdir(parents=True)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((10.0, 10.0, 10.0))
        sitk.WriteImage(image, str(folder / name))
    names = {"background": 0, "liver": 1, "spleen": 3, "aorta": 5}
    (folder / "dataset.json").write_text(json.dumps({"labels": names}))
    return folder, labels


@pytest.mark.parametrize("name", ["abdoseg", "nnunet_iso2p5"])
def test_two_processes_train_as_one(name: str, data: Path, tmp_path: Path) -> None:
    """With batch norm, and with outputs at several depths, the coarsest of which has no loss."""
    as_it_is = yaml.safe_load((REPOSITORY / f"training/configs/{name}.yaml").read_text())
    # Of a slab, mostly air, batch norm's statistics are far from those of the other process.
    unslabbed = {key: each for key, each in as_it_is["augmentation"].items() if key != "slab"}
    config = shrink(
        name,
        tmp_path,
        shares={"labelled": 1.0},
        batch=2,
        iterations=3,
        evaluate_every=3,
        checkpoint_every=1,
        coarse_first={},
        augmentation=unslabbed,
    )
    arguments = ["--config", str(config), "--data", str(data), "--work", str(tmp_path / "work")]
    assert main(["prepare", *arguments, "--workers", "1"]) == 0
    assert main(["train", *arguments, "--run", "alone"]) == 0
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "train", *arguments, "--name", "together"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    a, b = (read_rows(tmp_path / "work" / run / "log.csv") for run in ("alone", "together"))
    assert [row["iteration"] for row in a] == [row["iteration"] for row in b] == ["1", "2", "3"]
    # Each process has its own batch norm's statistics; what that changes grows step by step.
    for alone, together, apart in zip(a, b, (0.01, 0.02, 0.05), strict=True):
        assert float(together["loss"]) == pytest.approx(float(alone["loss"]), rel=apart)
    assert len(read_rows(tmp_path / "work" / "together" / "scores.csv")) == 1


def test_teachers_and_pseudo_labels_are_one_command_each(data: Path, tmp_path: Path) -> None:
    config = shrink("abdoseg", tmp_path, holdout=["P1"], iterations=2)
    work = tmp_path / "work"
    arguments = ["--config", str(config), "--data", str(data), "--work", str(work)]
    arguments += ["--workers", "1"]
    assert main(["prepare", *arguments]) == 0
    assert main(["train", *arguments]) == 0
    teacher = [str(config), str(work / "run" / "checkpoint.pt")]
    assert main(["train", *arguments, "--run", "student", "--teacher", *teacher]) == 0
    assert (work / "student" / "checkpoint.pt").exists()

    assert main(["pseudolabel", *arguments]) == 0  # an untrained network is sure of nothing
    told = json.loads((work / "pseudolabels" / "annotated.json").read_text())
    assert set(told) == {"P3"}
    # As if it had been sure of the liver.
    image = sitk.ReadImage(str(data / "imagesTr" / "P3_0000.nii.gz"))
    labels = np.full(sitk.GetArrayViewFromImage(image).shape, 255, np.uint8)
    labels[10:20, 10:20, 5:15] = 1
    made = sitk.GetImageFromArray(labels)
    made.CopyInformation(image)
    sitk.WriteImage(made, str(work / "pseudolabels" / "P3.nii.gz"))
    (work / "pseudolabels" / "annotated.json").write_text(json.dumps({"P3": ["liver"]}))
    assert main(["prepare", *arguments]) == 0
    with np.load(work / "prepared" / "pseudo" / "P3.npz") as found:
        assert found["annotated"].tolist() == [1]
        assert set(np.unique(found["labels"])) == {1, 255}


def test_measuring_prints_rows_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("nnunet_half", "nnunet_iso2p5", "dsunet_eca")
    options = [word for n in names for word in ("--config", str(shrink(n, tmp_path)))]
    assert main(["measure", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    header, _, *rows = rows
    assert [row[0] for row in rows] == list(names)
    for row in rows:
        assert len(row) == len(header)
        assert all(float(cell) > 0 for cell in row[2:7])
        assert row[7] == "-" or float(row[7]) > 0
    assert rows[0][1:] == rows[1][1:]  # the same network and patch: measured once
    assert "threads" in lines[-1]
