"""What makes a DICOM series no CT is said in one line; what is merely usual is not refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import edit, moved, page, put, save, slice_of, slices_in
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    RLELossless,
)
from tiny_model import make_ct

from inference.cases import Case, find_cases
from inference.cli import main
from inference.dicom.read import read_series
from inference.errors import CaseError

Spoil = Callable[[list[Path]], Any]


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


def test_more_slices_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    needed = 2 * make_ct().GetNumberOfPixels()
    monkeypatch.setattr("inference.read.checks.free_memory", lambda: needed)
    read_series(slices_in(tmp_path))
    monkeypatch.setattr("inference.read.checks.free_memory", lambda: needed - 1)
    with pytest.raises(CaseError, match="too large"):
        read_series(slices_in(tmp_path))


def test_a_link_that_cannot_be_followed_costs_no_other_case(tmp_path: Path) -> None:
    put(tmp_path / "in" / "good")
    (tmp_path / "in" / "x").symlink_to("y" * 300)
    lost, good = find_cases(tmp_path / "in", tmp_path / "out")
    assert good.target.name == "good.nii.gz" and good.problem is None
    assert lost.problem and "x cannot be read (File name too long)" in lost.problem


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


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    paths = put(tmp_path / "in")
    paths[2].rename(paths[2].with_name("\udcff"))
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")
    assert isinstance(case, Case) and case.problem and "not UTF-8" in case.problem
