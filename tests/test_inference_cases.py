"""Which CTs a folder holds, and what their labels are called."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from desk import Desk

from inference.cases import find_cases
from inference.file_names import label_name


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


def test_clashing_names_are_refused_and_others_run(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.put("a.nii.gz", "a_0000.nii.gz", "b.nii.gz")
    assert desk.run() == 1
    assert desk.there() == ["b.nii.gz"]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "the same name (a.nii.gz) as those of a_0000.nii.gz" in lines[0]


def test_a_single_number_among_others_keeps_it(desk: Desk) -> None:
    desk.put("X_0000.nii.gz", "X_0001.nii.gz")
    (case,) = find_cases(desk.inputs / "X_0000.nii.gz", desk.outputs)
    assert case.target.name == "X_0000.nii.gz"


def test_unreadable_file_ending(desk: Desk) -> None:
    desk.inputs /= "x.txt"
    desk.inputs.write_text("hello")
    assert desk.run() == 2


def test_a_file_of_the_longest_name_gets_labels(desk: Desk) -> None:
    name = "\u4e2d" * 80 + "x" * 7 + ".nii.gz"  # 254 bytes of the 255 that there are
    desk.put("a.nii.gz")
    (desk.inputs / "a.nii.gz").rename(desk.inputs / name)
    assert desk.run() == 0
    assert desk.there() == [name]
