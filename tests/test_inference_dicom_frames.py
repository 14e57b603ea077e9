"""Enhanced CT, many slices in a file, written with pydicom: what is read, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import RESCALING, groups_of, many_slices, put, put_together, save
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)
from tiny_model import make_ct

from inference.cases import find_cases
from inference.cli import main
from inference.dicom.header import read_slices
from inference.dicom.read import bytes_needed, read_series
from inference.dicom.series import find_series
from inference.errors import CaseError, UsageError

GROUPS = list(groups_of((0, 0, 0), np.eye(3)[:2]))


def voxels_of(path: Path) -> Any:
    (series,) = find_series(path)
    assert series.problem is None
    return sitk.GetArrayFromImage(read_series(series.slices).image)


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    step=st.sampled_from([0.6, 1.0, 2.5]),
    signed=st.booleans(),
    rescalings=st.sampled_from(
        [
            [(1, -1024)],
            [(2, -8192)],
            [(0.5, -100)],
            [(1, -1024), (2, 7), (1, 0)],
            [(1, 0), (0.25, 9)],
        ]
    ),
    shared=st.sets(st.sampled_from([name for name in GROUPS if "Position" not in name])),
    syntax=st.sampled_from(
        [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]
    ),
    order=st.permutations(range(5)),
    files=st.sampled_from([1, 2]),
)
def test_any_stack_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, float, float],
    step: float,
    signed: bool,
    rescalings: list[tuple[float, float]],
    shared: set[str],
    syntax: UID,
    order: list[int],
    files: int,
) -> None:
    """Voxels in HU, and each voxel's place, wherever in the header they are said."""
    rng = np.random.default_rng(order)
    stored = rng.integers(0, 4096, (5, 6, 7)).repeat(6, 1).repeat(6, 2)
    stored = stored.astype(np.int16 if signed else np.uint16)
    turn = sitk.Euler3DTransform((0, 0, 0), *angles)
    direction = np.reshape(turn.GetMatrix(), (3, 3))
    origin = rng.uniform(-300, 300, 3)
    if len(rescalings) > 1:
        shared = shared - {RESCALING}
    of_frame = [rescalings[index % len(rescalings)] for index in range(5)]
    groups = [groups_of(origin + direction[:, 2] * step * i, direction[:, :2].T) for i in range(5)]
    for each, (slope, intercept) in zip(groups, of_frame, strict=True):
        each[RESCALING] = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    folder = tmp_path_factory.mktemp("series")
    for number in range(files):
        own = order[number::files]
        data = many_slices(stored[own], [groups[index] for index in own], shared)
        save(data, folder / f"{number}.dcm", syntax)
    (series,) = find_series(folder)
    scan = read_series(series.slices)
    image = scan.image
    assert scan.warnings == () and image.GetSize() == (42, 36, 5)
    assert image.GetSpacing() == pytest.approx((1.5, 0.75, step), abs=1e-4)
    assert np.allclose(image.GetOrigin(), origin, atol=1e-4)
    assert np.allclose(np.reshape(image.GetDirection(), (3, 3)), direction, atol=1e-5)
    slopes, intercepts = np.array(of_frame, float).T[:, :, None, None]
    expected = stored * slopes + intercepts
    assert np.allclose(sitk.GetArrayFromImage(image), expected, rtol=0, atol=1e-3)
    whole = all(isinstance(value, int) for pair in of_frame for value in pair)
    assert image.GetPixelID() == (sitk.sitkInt16 if whole else sitk.sitkFloat32)


def test_labels_are_those_of_the_same_ct_slice_by_slice(tmp_path: Path, tiny_folder: Path) -> None:
    put(tmp_path / "in" / "slices")
    put_together(tmp_path / "in" / "together" / "1.2.840.5")
    legacy = tmp_path / "in" / "legacy" / "IM1"
    put_together(legacy, SOPClassUID=LegacyConvertedEnhancedCTImageStorage, PatientID="2")
    arguments = ["-o", str(tmp_path / "out"), "--model", str(tiny_folder), "--quiet"]
    assert main(["-i", str(tmp_path / "in"), *arguments]) == 0
    assert main(["-i", str(tmp_path / "in" / "together" / "1.2.840.5"), *arguments]) == 0
    names = ["1.2.840.5.nii.gz", "legacy.nii.gz", "slices.nii.gz", "together.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    labels = [sitk.ReadImage(tmp_path / "out" / name) for name in names]
    assert sitk.GetArrayFromImage(labels[0]).any()
    for other in labels[1:]:
        assert np.array_equal(sitk.GetArrayFromImage(labels[0]), sitk.GetArrayFromImage(other))
        assert np.allclose(labels[0].GetOrigin(), other.GetOrigin())
        assert labels[0].GetDirection() == other.GetDirection()


def test_localizers_are_left_alone(tmp_path: Path) -> None:
    """As whole files, and as frames among others."""
    path = put_together(tmp_path / "ct.dcm")
    data = pydicom.dcmread(path)
    kind = Dataset()
    kind.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    lost = data.PerFrameFunctionalGroupsSequence[0]
    lost.CTImageFrameTypeSequence = Items([kind])
    del lost.PlanePositionSequence
    data.save_as(path)
    put_together(
        tmp_path / "scout.dcm",
        SeriesInstanceUID="1.9",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    assert np.array_equal(voxels_of(tmp_path), sitk.GetArrayFromImage(make_ct())[:-1])


def test_padding_is_air(tmp_path: Path) -> None:
    voxels = sitk.GetArrayFromImage(make_ct())
    stored = (voxels + 1024).astype(np.int16)[::-1].copy()
    stored[:, 0] = 32767
    path = put_together(tmp_path / "a", PixelPaddingValue=32767, PixelData=stored.tobytes())
    voxels[:, 0] = -1024
    assert np.array_equal(voxels_of(tmp_path), voxels)
    data = pydicom.dcmread(path)
    delattr(data.SharedFunctionalGroupsSequence[0], RESCALING)
    for number, groups in enumerate(data.PerFrameFunctionalGroupsSequence):
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept = f"{0.7 + 0.013 * number:.3f}", "-100.3"
        setattr(groups, RESCALING, Items([item]))
    data.save_as(path)
    assert (voxels_of(tmp_path)[:, 0] == -1024).all()


def frame(path: Path, number: int) -> tuple[Dataset, Dataset]:
    """A file's header, and one of its frames' groups."""
    data = pydicom.dcmread(path)
    return data, data.PerFrameFunctionalGroupsSequence[number]


def moved(path: Path, number: int, height: float) -> Path:
    data, groups = frame(path, number)
    groups.PlanePositionSequence[0].ImagePositionPatient[2] = height
    data.save_as(path)
    return path


def without(path: Path, number: int, keyword: str) -> None:
    data, groups = frame(path, number)
    delattr(groups, keyword)
    data.save_as(path)


def shared(path: Path, group: str, **values: Any) -> None:
    data = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(data.SharedFunctionalGroupsSequence[0][group][0], keyword, value)
    data.save_as(path)


def changed(path: Path, **changes: Any) -> None:
    data = pydicom.dcmread(path)
    for keyword, value in changes.items():
        setattr(data, keyword, value)
    data.save_as(path)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def rescaled_again(path: Path, number: int) -> None:
    data, groups = frame(path, number)
    setattr(groups, RESCALING, data.SharedFunctionalGroupsSequence[0][RESCALING].value)
    data.save_as(path)


def plain(path: Path) -> FileMetaDataset:
    meta = pydicom.dcmread(path).file_meta
    meta.MediaStorageSOPClassUID = CTImageStorage
    return meta


UNCLEAR = "does not say clearly what its values are in HU: ct.dcm"

BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "two in one place": (lambda p: moved(p, 4, 700.0), "in one place, of several phases perhaps"),
    "one missing": (
        lambda p: [moved(p, number, 750 - 2.5 * number) for number in (0, 1)],
        "some are missing perhaps (ct.dcm, frame 3, ct.dcm, frame 2)",
    ),
    "without a position": (
        lambda p: without(p, 6, "PlanePositionSequence"),
        "that do not say where they lie: ct.dcm, frame 7",
    ),
    "without any header of frames": (
        lambda p: changed(p, PerFrameFunctionalGroupsSequence=None),
        "does not say where its slices lie: ct.dcm tells it of 0 of 20",
    ),
    "more frames than told of": (
        lambda p: changed(
            p, PerFrameFunctionalGroupsSequence=frame(p, 0)[0].PerFrameFunctionalGroupsSequence[:9]
        ),
        "tells it of 9 of 20",
    ),
    "no number": (
        lambda p: shared(p, "PixelMeasuresSequence", PixelSpacing=[np.inf, 1.4]),
        "do not say where they lie",
    ),
    "rescaled by nothing": (lambda p: shared(p, RESCALING, RescaleSlope=0), UNCLEAR),
    "half a rescaling": (lambda p: shared(p, RESCALING, RescaleSlope=None), UNCLEAR),
    "two rescalings": (lambda p: rescaled_again(p, 3), UNCLEAR),
    "no enhanced CT": (
        lambda p: changed(p, SOPClassUID=CTImageStorage, file_meta=plain(p)),
        "no enhanced CT: ct.dcm",
    ),
    "a part": (lambda p: changed(p, InConcatenationTotalNumber=3), "3 files, of which there are 1"),
    "fewer pixels": (lambda p: changed(p, PixelData=bytes(40 * 44 * 2 * 19)), "too few pixels"),
    "cut in its pixels": (lambda p: cut(p, 0.7), "ct.dcm"),
    "cut in its header": (lambda p: cut(p, 0.05), "ct.dcm"),
    "inverted": (lambda p: changed(p, PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_regular_stack_costs_one_line_and_no_other_case(
    tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil, reason = BAD[kind]
    put_together(tmp_path / "in" / "good" / "ct.dcm")
    spoil(put_together(tmp_path / "in" / "bad" / "ct.dcm", PatientID="2"))
    folders = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main([*folders, "--model", str(tiny_folder), "--quiet"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'in' / 'bad'}: ") and reason in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]


@pytest.mark.parametrize("kind", [kind for kind in BAD if not kind.startswith("cut")])
def test_what_is_no_regular_stack_is_no_matter_of_the_series_beside_it(
    tmp_path: Path, kind: str
) -> None:
    """But where a file does not even say to which series it belongs, nobody knows."""
    spoil, reason = BAD[kind]
    put(tmp_path, SeriesNumber=1)
    spoil(put_together(tmp_path / "ct.dcm", SeriesInstanceUID="1.9", SeriesNumber=2))
    good, bad = find_series(tmp_path)
    assert (good.uid, good.problem) == ("1.2.3", None)
    with pytest.raises(CaseError) as caught:
        if bad.problem:
            raise CaseError(bad.problem)
        read_series(bad.slices)
    assert bad.uid == "1.9" and reason in str(caught.value)


def test_a_localizer_that_says_nothing_is_left_alone(tmp_path: Path) -> None:
    put(tmp_path)
    path = put_together(
        tmp_path / "scout.dcm",
        SeriesInstanceUID="1.9",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    changed(path, PerFrameFunctionalGroupsSequence=None)
    (series,) = find_series(tmp_path)
    assert (series.uid, series.problem) == ("1.2.3", None)


def test_without_rescaling_values_are_hu(tmp_path: Path) -> None:
    path = put_together(tmp_path / "ct.dcm")
    data = pydicom.dcmread(path)
    delattr(data.SharedFunctionalGroupsSequence[0], RESCALING)
    data.save_as(path)
    assert np.array_equal(voxels_of(tmp_path), sitk.GetArrayFromImage(make_ct()) + 1024)


def test_a_part_joined_by_the_others_is_a_whole(tmp_path: Path) -> None:
    ct = make_ct()
    for number, part in enumerate((ct[:, :, :7], ct[:, :, 7:]), 1):
        put_together(
            tmp_path / f"{number}.dcm",
            part,
            InConcatenationTotalNumber=2,
            InConcatenationNumber=number,
        )
    assert np.array_equal(voxels_of(tmp_path), sitk.GetArrayFromImage(ct))
    (alone,) = find_cases(tmp_path / "1.dcm", tmp_path / "out")
    assert alone.problem and "is cut into 2 files" in alone.problem


def test_damage_is_one_line_or_harmless(tmp_path: Path) -> None:
    """A byte of the header changed: read, or refused as any other file."""
    content = put_together(tmp_path / "whole.dcm").read_bytes()
    start = len(content) - 20 * 40 * 44 * 2
    rng = np.random.default_rng(0)
    read = []
    for number in range(200):
        changed = bytearray(content)
        changed[int(rng.integers(128, start))] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(changed)
        try:
            (case,) = find_cases(path, tmp_path / "out")
            read += [] if case.problem else [case.read()]
        except (CaseError, UsageError):
            pass
    assert 30 < len(read) < 200


def test_memory_counts_the_file_beside_the_ct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = read_slices(put_together(tmp_path / "a.dcm"))
    # int16 as it is stored and as it is given, int32 as GDCM rescales it.
    needed = (2 + 2 + 4) * make_ct().GetNumberOfPixels()
    assert bytes_needed(slices) >= needed
    monkeypatch.setattr("inference.read.checks.free_memory", lambda: needed)
    read_series(slices)
    monkeypatch.setattr("inference.read.checks.free_memory", lambda: needed - 1)
    with pytest.raises(CaseError, match="too large"):
        read_series(slices)
