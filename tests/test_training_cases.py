"""Which cases a data folder has, and which descriptions and files of it are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from small_dataset import add, configuration, dataset, liver_and_spleen, write

from training.__main__ import main
from training.data.cases import find_cases

pytestmark = pytest.mark.usefixtures("one_thread")


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
    add(data, "P1", *liver_and_spleen())
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        find_cases(data)
    assert str(data / "dataset.json") in str(caught.value)


@pytest.mark.parametrize("folder", ["labelsTr", "pseudolabelsTr"])
def test_labels_in_two_files_are_refused(tmp_path: Path, folder: str) -> None:
    data = dataset(tmp_path)
    hu, labels = liver_and_spleen()
    add(data, "P1", hu, None)
    write(data / folder / "P1.nii.gz", labels)
    write(data / folder / "P1.nii", labels)
    with pytest.raises(ValueError, match=r"P1\.nii\.gz: the labels are there twice, as P1\.nii"):
        find_cases(data)


@pytest.mark.parametrize("folder", ["labelsTr", "pseudolabelsTr"])
def test_labels_under_a_name_that_no_ct_has_are_refused(tmp_path: Path, folder: str) -> None:
    """`P2_0000` is a common slip: the CT would be unlabelled, its labels another case's."""
    data = dataset(tmp_path)
    add(data, "P1", *liver_and_spleen())
    add(data, "P2", liver_and_spleen()[0], None)
    wrong = data / folder / "P2_0000.nii.gz"
    write(wrong, liver_and_spleen()[1])
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
    add(data, "P1", *liver_and_spleen())
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


def test_organs_that_no_label_is_understood_as_are_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """AMOS22 writes "arota", which is understood; another's "Leber" is not."""
    names = {"background": 0, "Leber": 1, "spleen": 3, "arota": 5}
    data = dataset(tmp_path / "data", labels=names)
    add(data, "P1", *liver_and_spleen())
    arguments = ["--data", str(data), "--work", str(tmp_path / "work"), "--workers", "1"]
    assert main(["prepare", "--config", str(configuration(tmp_path)), *arguments]) == 0
    error = capfd.readouterr().err
    assert "no labels of liver, right_kidney, pancreas, inferior" in error
    assert "(dataset.json has, beside our organs, Leber)" in error
