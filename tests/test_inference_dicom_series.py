"""Which DICOM series folders hold, and what their labels are called."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import edit, moved, page, put, save, slice_of, slices_in
from pydicom.uid import (
    BasicTextSRStorage,
    MRImageStorage,
)
from tiny_model import make_ct

from inference.cases import find_cases
from inference.cli import main
from inference.dicom.read import read_series
from inference.dicom.series import find_series
from inference.errors import CaseError, UsageError


def test_what_is_no_ct_volume_is_left_alone(tmp_path: Path) -> None:
    plane, axes = np.zeros((4, 4), np.int16), np.eye(3)[:2]
    ct = put(tmp_path / "ct")
    report = slice_of(plane, (0, 0, 0), axes, SOPClassUID=BasicTextSRStorage, Modality="SR")
    del report.PixelData
    save(report, tmp_path / "ct" / "report.dcm")
    (tmp_path / "ct" / "notes.txt").write_text("no slice")
    (tmp_path / "ct" / ".hidden.dcm").touch()
    scout = {"SeriesInstanceUID": "1.1", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    for index in range(3):
        save(slice_of(plane, (0, 0, index), axes, **scout), tmp_path / "ct" / f"scout{index}")
        bolus = slice_of(plane, (0, 0, 0), axes, SeriesInstanceUID="1.5")
        save(bolus, tmp_path / "ct" / f"bolus{index}")
        mr = slice_of(plane, (0, 0, index), axes, SOPClassUID=MRImageStorage, Modality="MR")
        save(mr, tmp_path / "mr" / str(index))
        screen = {"SeriesInstanceUID": "1.6", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}
        nowhere = slice_of(plane, (0, 0, 0), axes, **screen)
        del nowhere.ImagePositionPatient
        save(nowhere, tmp_path / "screen" / str(index))
        colour = slice_of(np.zeros((4, 12), np.uint8), (0, 0, index), axes, SamplesPerPixel=3)
        colour.Columns, colour.BitsAllocated, colour.BitsStored, colour.HighBit = 4, 8, 8, 7
        colour.PhotometricInterpretation, colour.PlanarConfiguration = "RGB", 0
        save(colour, tmp_path / "colour" / str(index))
    save(slice_of(plane, (0, 0, 0), axes, SeriesInstanceUID="1.7"), tmp_path / "one" / "a.dcm")
    (series,) = find_series(tmp_path)
    assert {one.path for one in series.slices} == set(ct) and series.problem is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no file is in this folder"):
        find_cases(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UsageError, match="or a DICOM series"):
        find_cases(tmp_path / "mr", tmp_path / "out")


def names(source: Path) -> list[str]:
    return [case.target.name for case in find_cases(source, source.parent / "out")]


def test_labels_are_named_after_folders_and_numbers(tmp_path: Path) -> None:
    small = make_ct((3, 4, 5))
    top = tmp_path / "top"
    put(top / "p1" / "CT", small)
    for number in (10, 9):
        for path in put(tmp_path / str(number), small, SeriesInstanceUID=f"1.{number}"):
            edit(path, SeriesNumber=number)
            (top / "p2").mkdir(exist_ok=True)
            path.rename(top / "p2" / f"{number}{path.name}")
    assert names(top) == ["p1_CT.nii.gz", "p2_9.nii.gz", "p2_10.nii.gz"]
    assert names(top / "p1" / "CT") == ["CT.nii.gz"]
    for path in (top / "p2").glob("10*"):
        edit(path, SeriesNumber=9)
    assert names(top) == ["p1_CT.nii.gz", "p2_1.10.nii.gz", "p2_1.9.nii.gz"]
    (top / "again").symlink_to(top / "p1")
    (top / "p1" / "loop").symlink_to(top)
    assert names(top) == ["p1_CT.nii.gz", "p2_1.10.nii.gz", "p2_1.9.nii.gz"]
    for path in put(tmp_path / "other", small, SeriesInstanceUID="1.9"):
        edit(path, PatientID="somebody else", SeriesNumber=9)
        path.rename(top / "p2" / f"other{path.name}")
    problems = [case.problem for case in find_cases(top, tmp_path / "out") if case.problem]
    assert len(problems) == 2 and all("same number and UID" in str(line) for line in problems)
    for path in (top / "p2").glob("other*"):
        path.unlink()
    put(top / "p1_CT", small)
    problems = [case.problem for case in find_cases(top, tmp_path / "out") if case.problem]
    assert len(problems) == 2 and all("the same name" in str(problem) for problem in problems)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_headers_make_no_odd_file_names(tmp_path: Path) -> None:
    small = make_ct((3, 4, 5))
    for index, (number, uid) in enumerate(
        [(b"3\xe9", "1.1"), (b"../../x", "1.2"), (b"", "1/../2"), (b"9" * 300, "1.4")]
    ):
        for path in put(tmp_path / str(index), small, SeriesInstanceUID=uid):
            edit(path, SeriesNumber="777")
            content = path.read_bytes()
            assert content.count(b"IS\x04\x00777 ") == 1
            stored = number + b" " * (len(number) % 2)
            length = len(stored).to_bytes(2, "little")
            changed = content.replace(b"IS\x04\x00777 ", b"IS" + length + stored)
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / f"{index}{path.name}").write_bytes(changed)
    cases = find_cases(tmp_path / "in", tmp_path / "out")
    assert len(cases) == 4 and all(case.target.parent == tmp_path / "out" for case in cases)
    assert all(re.fullmatch(r"in_[0-9A-Za-z.-]+\.nii\.gz", case.target.name) for case in cases)
    assert ["too long" in str(case.problem) for case in cases].count(True) == 1


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii", "x.img", "x.hdr", "x.mha"])
def test_folders_may_be_named_like_files(tmp_path: Path, tiny_folder: Path, name: str) -> None:
    put(tmp_path / "in" / name)
    arguments = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--quiet"]
    assert main([*arguments, "--model", str(tiny_folder)]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{name}.nii.gz"]


def test_a_series_in_several_folders_is_one(tmp_path: Path) -> None:
    """Copies are not, nor patients whose UIDs somebody made the same."""
    for index, path in enumerate(put(tmp_path / "whole")):
        (tmp_path / "in" / f"DIR{index // 7}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "in" / f"DIR{index // 7}")
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")
    assert case.target.name == "in.nii.gz"
    whole = sitk.GetArrayFromImage(read_series(slices_in(tmp_path / "whole")).image)
    assert np.array_equal(sitk.GetArrayFromImage(case.read().image), whole)
    shutil.copytree(tmp_path / "whole", tmp_path / "two" / "a")
    shutil.copytree(tmp_path / "whole", tmp_path / "two" / "b")
    for path in (tmp_path / "two" / "b").iterdir():
        moved(path, 0.0, 30.0, 0.0)
    assert names(tmp_path / "two") == ["a.nii.gz", "b.nii.gz"]
    for path in (tmp_path / "two" / "b").iterdir():  # above the other one, as one scan might be
        moved(path, 0.0, -30.0, 20 * make_ct().GetSpacing()[2])
    assert names(tmp_path / "two") == ["two.nii.gz"]
    for path in (tmp_path / "two" / "b").iterdir():
        edit(path, PatientID="another")
    assert names(tmp_path / "two") == ["a.nii.gz", "b.nii.gz"]


def test_a_series_in_several_folders_is_not_segmented_in_part(tmp_path: Path) -> None:
    for index, path in enumerate(put(tmp_path / "whole")):
        if index != 7:
            (tmp_path / "in" / f"DIR{index // 7}").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "in" / f"DIR{index // 7}")
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")
    with pytest.raises(CaseError, match="some are missing"):
        case.read()
    (tmp_path / "in" / "DIR1" / "IM77").touch()
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")
    assert case.problem and "IM77 is empty" in case.problem


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: shutil.copytree(folder / "3", folder / "3b"), "slices in one place"),
        (
            lambda folder: edit(next((folder / "7").iterdir()), PixelSpacing=[1.5, 1.5]),
            "different pixel spacing",
        ),
    ],
    ids=["doubled", "other"],
)
def test_a_series_of_one_slice_a_folder_is_not_left_alone(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    for index, path in enumerate(put(tmp_path / "whole")):
        (tmp_path / "in" / str(index)).mkdir(parents=True)
        shutil.copy(path, tmp_path / "in" / str(index))
    assert names(tmp_path / "in") == ["in.nii.gz"]
    spoil(tmp_path / "in")
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")
    with pytest.raises(CaseError, match=said):
        case.read()


def test_halves_with_a_slice_in_common_are_not_two_cts(tmp_path: Path) -> None:
    for index, path in enumerate(put(tmp_path / "whole")):
        for half, here in (("a", index <= 7), ("b", index >= 7)):
            (tmp_path / "in" / half).mkdir(parents=True, exist_ok=True)
            if here:
                shutil.copy(path, tmp_path / "in" / half)
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")
    with pytest.raises(CaseError, match="slices in one place"):
        case.read()


def test_what_has_no_position_may_lie_in_several_folders(tmp_path: Path) -> None:
    put(tmp_path / "ct")
    for name in "ab":
        (tmp_path / name).mkdir()
        page([tmp_path / name / "x"], SeriesInstanceUID="1.8")
    assert names(tmp_path) == ["ct.nii.gz"]


def test_a_series_of_several_is_told_by_its_number(
    tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "in", SeriesNumber=3)
    for path in put(tmp_path / "other", SeriesNumber=4, SeriesInstanceUID="1.9")[1:]:
        path.rename(tmp_path / "in" / f"b{path.name}")
    next((tmp_path / "in").glob("bIM*7")).unlink()
    arguments = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    options = ["--quiet", "--report", str(tmp_path / "r.json")]
    assert main([*arguments, "--model", str(tiny_folder), *options]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'in'}: series 4: has slices 2.5 to 5 mm")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in_3.nii.gz"]
    first, second = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert (first["series"], second["series"]) == ("3", "4") and second["error"].startswith("has s")


def test_a_folder_of_files_is_not_searched(tmp_path: Path) -> None:
    """CTs beside the DICOM that they were made of would be segmented twice."""
    put(tmp_path / "in" / "dicom")
    sitk.WriteImage(make_ct(), tmp_path / "in" / "ct.nii.gz")
    assert names(tmp_path / "in") == ["ct.nii.gz"]


def test_wrong_usage(tmp_path: Path) -> None:
    paths = put(tmp_path / "in")
    with pytest.raises(UsageError, match="name the folder with all the slices"):
        find_cases(paths[0], tmp_path / "out")
    with pytest.raises(UsageError, match="labels would lie among CTs"):
        find_cases(tmp_path / "in", tmp_path / "in" / ".." / "in")
    with pytest.raises(UsageError, match="labels would lie among CTs"):
        find_cases(tmp_path, tmp_path / "in")
    with pytest.raises(UsageError, match="wants 2 channels"):
        find_cases(tmp_path / "in", tmp_path / "out", 2)
