"""What is prepared and refused, what stays of it, and how an interruption ends it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import SimpleITK as sitk
import torch
from small_dataset import REPOSITORY, add, configuration, dataset, liver_and_spleen, write

from inference.preprocess.preprocess import preprocess
from training.__main__ import main
from training.config import Config
from training.data.cases import find_cases
from training.patches.samples import Samples
from training.preparation.prepare import prepare

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_case_that_cannot_be_right_is_refused_with_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hu, labels = liver_and_spleen()
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


def test_cts_named_empty_are_prepared_as_such(tmp_path: Path) -> None:
    hu, labels = liver_and_spleen()
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


def test_label_maps_without_a_body_are_refused_and_the_others_prepared(tmp_path: Path) -> None:
    _, labels = liver_and_spleen()
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


def test_nothing_stays_of_cases_that_are_gone_or_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hu, labels = liver_and_spleen()
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


_TOLD_BETWEEN_JOBS = """
import os, signal, time
from training.preparation import prepare

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
    _, labels = liver_and_spleen()
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
