"""What is written beside the labels: the report, pictures, the table of names and colours."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from desk import Desk
from tiny_model import make_ct

from inference.machine import seconds_since_start
from inference.organs import COLOURS
from inference.plan import Plan
from inference.write.label_table import write_label_table


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
