"""DICOM series, written slice by slice with pydicom: what is read, what is refused, the names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import put, save, slice_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)
from tiny_model import make_ct

from inference.cases import Case, find_cases
from inference.cli import main
from inference.dicom.header import Slice, read_slices
from inference.dicom.read import read_series
from inference.dicom.series import find_series
from inference.errors import CaseError, UsageError

Spoil = Callable[[list[Path]], Any]


def slices_in(folder: Path) -> list[Slice]:
    return [one for path in sorted(folder.iterdir()) for one in read_slices(path)]


def edit(path: Path, **changes: Any) -> Path:
    data = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(data, name, value)
    data.save_as(path)
    return path


def compressed(path: Path) -> bytes:
    data = pydicom.dcmread(path)
    data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(path)
    return path.read_bytes()


def deflated(path: Path, pixels: bytes) -> None:
    data = pydicom.dcmread(path)
    data.PixelData = pixels
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)


def moved(path: Path, *by: float) -> Path:
    place = pydicom.dcmread(path).ImagePositionPatient
    return edit(path, ImagePositionPatient=[a + b for a, b in zip(place, by, strict=True)])


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    step=st.sampled_from([0.6, 1.0, 2.5, 5.0]),
    signed=st.booleans(),
    rescale=st.sampled_from([(1, -1024), (1, 0), (2, -8192), (0.5, -100)]),
    syntax=st.sampled_from(
        [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]
    ),
    order=st.permutations(range(5)),
)
def test_any_stack_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, float, float],
    step: float,
    signed: bool,
    rescale: tuple[float, float],
    syntax: UID,
    order: list[int],
) -> None:
    """Voxels in HU, and each voxel's place, in whatever order and encoding the slices come."""
    rng = np.random.default_rng(order)
    # Blocks: of a slice of 6 x 7 pixels of noise GDCM refused what run lengths made of it.
    stored = rng.integers(0, 4096, (5, 6, 7)).repeat(6, 1).repeat(6, 2)
    stored = stored.astype(np.int16 if signed else np.uint16)
    turn = sitk.Euler3DTransform((0, 0, 0), *angles)
    direction = np.reshape(turn.GetMatrix(), (3, 3))
    origin = rng.uniform(-300, 300, 3)
    folder = tmp_path_factory.mktemp("series")
    for name, index in enumerate(order):
        place = origin + direction[:, 2] * step * index
        slope, intercept = rescale
        data = slice_of(
            stored[index], place, direction[:, :2].T, RescaleSlope=slope, RescaleIntercept=intercept
        )
        save(data, folder / f"{name}.dcm", syntax)
    (series,) = find_series(folder)
    scan = read_series(series.slices)
    image = scan.image
    assert scan.warnings == () and image.GetSize() == (42, 36, 5)
    assert image.GetSpacing() == pytest.approx((1.5, 0.75, step), abs=1e-4)
    assert np.allclose(image.GetOrigin(), origin, atol=1e-4)
    assert np.allclose(np.reshape(image.GetDirection(), (3, 3)), direction, atol=1e-5)
    expected = stored.astype(np.float64) * rescale[0] + rescale[1]
    assert np.array_equal(sitk.GetArrayFromImage(image), expected)
    whole = isinstance(rescale[0], int)
    assert image.GetPixelID() == (sitk.sitkInt16 if whole else sitk.sitkFloat32)


def test_it_is_what_simpleitk_reads(tmp_path: Path) -> None:
    put(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    theirs = reader.Execute()
    (series,) = find_series(tmp_path)
    ours = read_series(series.slices).image
    assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    for image in (ours, theirs):
        assert image.GetSpacing() == pytest.approx(make_ct().GetSpacing())
        assert image.GetOrigin() == pytest.approx(make_ct().GetOrigin(), abs=1e-4)
        assert image.GetDirection() == pytest.approx(make_ct().GetDirection())


def test_values_beyond_int16_are_cut_off(tmp_path: Path) -> None:
    """Wrapped around, metal of 40,000 HU would be less than air."""
    planes = np.array([[0, 1024], [3000, 65535]], np.uint16)
    for index in range(3):
        save(slice_of(planes, (0, 0, index), np.eye(3)[:2]), tmp_path / f"{index}.dcm")
    voxels = sitk.GetArrayFromImage(read_series(slices_in(tmp_path)).image)
    assert voxels.dtype == np.int16
    assert (voxels == [[-1024, 0], [1976, 32767]]).all()


def enhanced(path: Path) -> FileMetaDataset:
    meta = pydicom.dcmread(path).file_meta
    meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    return meta


def truncated(paths: list[Path]) -> None:
    paths[4].write_bytes(paths[4].read_bytes()[:-900])


BAD: dict[str, tuple[Spoil, str]] = {
    "missing": (lambda paths: paths[3].unlink(), "2.5 to 5 mm apart: some are missing"),
    "doubled": (
        lambda paths: save(pydicom.dcmread(paths[3]), paths[3].with_name("x")),
        "one place",
    ),
    "truncated": (truncated, "cannot be read"),
    "cut in the header": (lambda paths: paths[4].write_bytes(paths[4].read_bytes()[:700]), "IM"),
    "emptied": (lambda paths: (paths[0].parent / "lost.dcm").touch(), "lost.dcm"),
    "a link to nothing": (lambda paths: (paths[0].parent / "IM1").symlink_to("gone"), "IM1"),
    "shifted": (lambda paths: [moved(p, i * 0.5, 0, 0) for i, p in enumerate(paths)], "shifted"),
    "turned": (
        lambda paths: edit(paths[2], ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
        "different directions",
    ),
    "no axes": (
        lambda paths: [edit(p, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]) for p in paths],
        "impossible axis directions",
    ),
    "other pixels": (lambda paths: edit(paths[2], PixelSpacing=[3, 3]), "different pixel spacing"),
    "other size": (
        lambda paths: edit(paths[2], Rows=4, Columns=4, PixelData=bytes(32)),
        "4 x 4 pixels",
    ),
    "uneven": (
        lambda paths: [moved(p, 0, 0, 0.05 * i * i) for i, p in enumerate(reversed(paths))],
        "mm apart",
    ),
    "every third missing": (
        lambda paths: list(map(Path.unlink, paths[2::3])),
        "2.5 to 5 mm apart: some are missing",
    ),
    "without a position": (
        lambda paths: edit(paths[-1], ImagePositionPatient=None),
        "do not say where they lie: IM0000",
    ),
    "emptied at the end": (lambda paths: paths[-1].write_bytes(b""), "IM0000 is empty"),
    "a page in its place": (
        lambda paths: paths[-1].write_text("<html>not found</html>"),
        "IM0000 is no DICOM file",
    ),
    "cut in the preamble": (lambda paths: paths[-1].write_bytes(bytes(100)), "IM0000 is empty"),
    "too few pixels": (
        lambda paths: edit(paths[2], PixelData=pydicom.dcmread(paths[2]).PixelData[:-1000]),
        "too few pixels",
    ),
    "cut in compressed pixels": (
        lambda paths: paths[2].write_bytes(compressed(paths[2])[:-100]),
        "is damaged or truncated: IM",
    ),
    "too few pixels, deflated": (
        lambda paths: deflated(paths[2], pydicom.dcmread(paths[2]).PixelData[:-1000]),
        "too few pixels",
    ),
    "more rows than pixels": (lambda paths: [edit(p, Rows=42) for p in paths], "too few pixels"),
    "inverted": (
        lambda paths: edit(paths[2], PhotometricInterpretation="MONOCHROME1"),
        "MONOCHROME1",
    ),
    "two reconstructions": (
        lambda paths: [edit(p, ConvolutionKernel=f"B{i % 2}") for i, p in enumerate(paths)],
        "several reconstructions among each other",
    ),
    "two acquisitions": (
        lambda paths: [edit(p, AcquisitionNumber=i % 2) for i, p in enumerate(paths)],
        "several acquisitions among each other",
    ),
    "enhanced": (
        lambda paths: [
            edit(p, SOPClassUID=EnhancedCTImageStorage, file_meta=enhanced(p)) for p in paths
        ],
        "does not say where its slices lie",
    ),
    "flat pixels": (
        lambda paths: [edit(path, PixelSpacing=[0, 0]) for path in paths],
        "impossible spacing",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_regular_stack_costs_one_line_and_no_other_case(
    tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil, reason = BAD[kind]
    put(tmp_path / "in" / "good")
    spoil(put(tmp_path / "in" / "bad"))
    folders = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main([*folders, "--model", str(tiny_folder), "--quiet"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'in' / 'bad'}: ") and reason in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]


def page(paths: list[Path], **changes: Any) -> Path:
    """A page of text in the series that it is about: no position, another size."""
    data = slice_of(np.zeros((4, 4), np.int16), (0, 0, 0), np.eye(3)[:2], **changes)
    del data.ImagePositionPatient
    return save(data, paths[0].with_name("page"))


def with_icon(path: Path) -> Path:
    icon = slice_of(np.zeros((2, 2), np.int16), (0, 0, 0), np.eye(3)[:2])
    del icon.file_meta
    return edit(path, IconImageSequence=Items([icon]), DataSetTrailingPadding=bytes(64))


GOOD: dict[str, Spoil] = {
    "an acquisition each": lambda paths: [
        edit(path, AcquisitionNumber=number) for number, path in enumerate(paths)
    ],
    "one without an acquisition": lambda paths: [
        edit(path, AcquisitionNumber=None if path == paths[3] else 1) for path in paths
    ],
    "one without a kernel": lambda paths: [
        edit(path, ConvolutionKernel=["B30f", "3"]) for path in paths[1:]
    ],
    "kernels of chest and abdomen": lambda paths: [
        edit(path, ConvolutionKernel="B30" if path in paths[:9] else "B50") for path in paths
    ],
    "icons and padding": lambda paths: [with_icon(path) for path in paths],
    "a page of text": page,
    "a note that is a dead link": lambda paths: paths[0].with_name("a.txt").symlink_to("gone"),
    "a mark of completeness": lambda paths: paths[0].with_name("COMPLETE").touch(),
    "a file of numbers": lambda paths: paths[0].with_name("n").write_bytes(b"\x08\0\0\0" * 9),
    "a slice that says nothing of its kind": lambda paths: edit(paths[4], Modality=""),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_usual_series_is_not_refused(tmp_path: Path, kind: str) -> None:
    GOOD[kind](put(tmp_path))
    (case,) = find_cases(tmp_path, tmp_path.parent / "out")
    assert case.problem is None
    scan = case.read()
    expected = sitk.GetArrayFromImage(make_ct())
    assert np.array_equal(sitk.GetArrayFromImage(scan.image), expected) and scan.warnings == ()


def test_roughly_rounded_axes_are_taken_with_a_warning(tmp_path: Path) -> None:
    for path in put(tmp_path):
        edit(path, ImageOrientationPatient=[0.97, 0.26, 0, -0.25, 0.97, 0])
    scan = read_series(slices_in(tmp_path))
    direction = np.reshape(scan.image.GetDirection(), (3, 3))
    assert np.allclose(direction @ direction.T, np.eye(3))
    assert any("not perpendicular" in warning for warning in scan.warnings)


def test_slices_that_are_a_little_uneven_are_taken_with_a_warning(tmp_path: Path) -> None:
    paths = put(tmp_path)
    moved(paths[3], 0, 0, 0.2 * make_ct().GetSpacing()[2])
    scan = read_series(slices_in(tmp_path))
    assert len(scan.warnings) == 1 and "mm apart; taken as" in scan.warnings[0]
    assert scan.image.GetSpacing() == pytest.approx(make_ct().GetSpacing())


def test_more_slices_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    needed = 2 * make_ct().GetNumberOfPixels()
    monkeypatch.setattr("inference.checks.free_memory", lambda: needed)
    read_series(slices_in(tmp_path))
    monkeypatch.setattr("inference.checks.free_memory", lambda: needed - 1)
    with pytest.raises(CaseError, match="too large"):
        read_series(slices_in(tmp_path))


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


def test_a_link_that_cannot_be_followed_costs_no_other_case(tmp_path: Path) -> None:
    put(tmp_path / "in" / "good")
    (tmp_path / "in" / "x").symlink_to("y" * 300)
    lost, good = find_cases(tmp_path / "in", tmp_path / "out")
    assert good.target.name == "good.nii.gz" and good.problem is None
    assert lost.problem and "x cannot be read (File name too long)" in lost.problem


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


def test_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    """As old archives have them; neither they nor their names say that they are DICOM."""
    for path in put(tmp_path):
        data = pydicom.dcmread(path)
        del data.file_meta
        data.preamble = None
        pydicom.dcmwrite(path, data, implicit_vr=True, little_endian=True)
    (case,) = find_cases(tmp_path, tmp_path.parent / "out")
    expected = sitk.GetArrayFromImage(make_ct())
    assert np.array_equal(sitk.GetArrayFromImage(case.read().image), expected)


def test_padding_is_air(tmp_path: Path) -> None:
    """Stored as the highest number, it would be metal all around the patient."""
    plane = np.array([[63536, 1024], [1100, 63536]], np.uint16)
    for index in range(3):
        data = slice_of(plane, (0, 0, index), np.eye(3)[:2])
        data.add_new("PixelPaddingValue", "US", 63536)
        save(data, tmp_path / str(index))
    voxels = sitk.GetArrayFromImage(read_series(slices_in(tmp_path)).image)
    assert (voxels == [[-1024, 0], [76, -1024]]).all()
    for path in tmp_path.iterdir():
        edit(path, RescaleIntercept=0)
    voxels = sitk.GetArrayFromImage(read_series(slices_in(tmp_path)).image)
    assert (voxels == [[-1024, 1024], [1100, -1024]]).all()


@pytest.mark.parametrize("content", [b"", bytes(3000)])
def test_an_empty_slice_is_seen_among_files_named_by_uids(tmp_path: Path, content: bytes) -> None:
    for index, path in enumerate(put(tmp_path)):
        path.rename(tmp_path / f"1.2.840.{index}")
    (tmp_path / "1.2.840.0").write_bytes(content)
    (case,) = find_cases(tmp_path, tmp_path.parent / "out")
    assert case.problem == "may lack a slice: 1.2.840.0 is empty"


def test_a_single_slice_is_refused(tmp_path: Path) -> None:
    put(tmp_path)
    with pytest.raises(CaseError, match="single slice"):
        read_series(slices_in(tmp_path)[:1])


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


def test_labels_are_those_of_the_same_ct_in_one_file(tmp_path: Path, tiny_folder: Path) -> None:
    ct = make_ct()
    put(tmp_path / "series", ct)
    sitk.WriteImage(ct, tmp_path / "file.nii.gz")
    options = ["-o", str(tmp_path / "out"), "--model", str(tiny_folder), "--quiet", "--preview"]
    for name in ("series", "file.nii.gz"):
        assert main(["-i", str(tmp_path / name), *options]) == 0
    theirs, ours = (sitk.ReadImage(tmp_path / "out" / f"{n}.nii.gz") for n in ("file", "series"))
    assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    assert (sitk.GetArrayFromImage(ours) > 0).any()
    assert ours.GetSpacing() == pytest.approx(ct.GetSpacing())
    assert ours.GetOrigin() == pytest.approx(ct.GetOrigin(), abs=1e-4)
    assert ours.GetDirection() == pytest.approx(ct.GetDirection(), abs=1e-6)
    assert (tmp_path / "out" / "series_preview.png").is_file()


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


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    paths = put(tmp_path / "in")
    paths[2].rename(paths[2].with_name("\udcff"))
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")
    assert isinstance(case, Case) and case.problem and "not UTF-8" in case.problem
