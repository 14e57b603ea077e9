"""What labels and reports may replace, and what never: a CT."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from desk import REPOSITORY, Desk
from dicom_files import put
from tiny_model import make_ct

from inference.cases import find_cases
from inference.errors import UsageError


def test_labels_never_replace_a_ct(desk: Desk) -> None:
    desk.put("a.nii.gz")
    before = (desk.inputs / "a.nii.gz").read_bytes()
    desk.outputs = desk.inputs
    assert desk.run() == 2
    assert (desk.inputs / "a.nii.gz").read_bytes() == before
    desk.inputs /= "a.nii.gz"
    assert desk.run() == 2
    with pytest.raises(UsageError, match="would replace a CT"):
        find_cases(desk.inputs, desk.outputs)


def test_labels_never_lie_among_the_cts_of_a_folder(desk: Desk) -> None:
    desk.put("a_0000.nii.gz")
    desk.outputs = desk.inputs
    assert desk.run() == 2
    assert desk.there() == ["a_0000.nii.gz"]
    desk.inputs /= "a_0000.nii.gz"  # beside a single CT they may lie
    assert desk.run() == 0
    assert desk.there() == ["a.nii.gz", "a_0000.nii.gz"]


@pytest.mark.parametrize(("given", "other"), [("X_0000.nii.gz", "X.nii.gz"), ("Y.mhd", "Y.mha")])
def test_labels_of_one_file_do_not_replace_the_ct_beside_it(
    desk: Desk, given: str, other: str
) -> None:
    desk.put(given, other)
    before = (desk.inputs / other).read_bytes()
    desk.outputs = desk.inputs
    desk.inputs /= given
    assert desk.run() == 2
    assert (desk.outputs / other).read_bytes() == before


def test_a_report_replaces_no_ct_and_no_device(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    desk.put("a.nii.gz")
    before = (desk.inputs / "a.nii.gz").read_bytes()
    pipe = desk.inputs.parent / "pipe"
    os.mkfifo(pipe)
    for report in (desk.inputs / "a.nii.gz", desk.outputs / "a.nii.gz", pipe):
        desk.report = report
        assert desk.run("--report", report) == 2
        assert len(capfd.readouterr().err.splitlines()) == 1
    assert (desk.inputs / "a.nii.gz").read_bytes() == before
    assert pipe.is_fifo()
    link = desk.inputs.parent / "link.json"
    link.symlink_to(desk.inputs.parent / "report.json")
    assert desk.run("--report", link) == 0
    desk.report = link.resolve()
    assert link.is_symlink() and len(desk.cases()) == 1


def test_existing_labels_are_replaced(desk: Desk) -> None:
    desk.put("a.nii.gz")
    desk.outputs.mkdir()
    (desk.outputs / "a.nii.gz").write_text("old")
    assert desk.run() == 0
    assert sitk.ReadImage(desk.outputs / "a.nii.gz").GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
def test_a_ct_elsewhere_is_never_replaced(
    desk: Desk, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """Another patient's of the same name, say, or the same CT converted from DICOM."""
    desk.put(name, "b.nii.gz")
    desk.outputs.mkdir()
    there = desk.outputs / name
    sitk.WriteImage(make_ct(), there)
    before = there.read_bytes()
    assert desk.run() == 1
    assert there.read_bytes() == before and "b.nii.gz" in desk.there()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert f"{desk.inputs / name}: its labels would replace {there}, which holds no labels" in line


def _save_nifti_2(voxels: np.ndarray, path: Path) -> None:
    nib.save(nib.Nifti2Image(voxels, np.eye(4)), path)  # type: ignore[no-untyped-call]


def _as_nifti_2(path: Path) -> None:
    _save_nifti_2(np.zeros((4, 4, 4), np.int16), path)


def _without_axes(path: Path) -> None:
    """A header that ITK refuses: an sform of zeros."""
    sitk.WriteImage(make_ct(), path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[252:256], raw[280:328] = b"\0\0\1\0", bytes(48)
    path.write_bytes(gzip.compress(bytes(raw)))


def _with_a_broken_header(path: Path) -> None:
    path.write_bytes(b"NRRD0004\ntype: short\nnonsense\n")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.nii.gz", _as_nifti_2),
        ("a.nii.gz", _without_axes),
        ("a.nrrd", _with_a_broken_header),
    ],
)
def test_a_ct_that_itk_does_not_read_is_not_replaced(
    desk: Desk, capfd: pytest.CaptureFixture[str], name: str, make: Callable[[Path], None]
) -> None:
    desk.put(name)
    desk.outputs.mkdir()
    there = desk.outputs / name
    make(there)
    before = there.read_bytes()
    assert desk.run() == 1
    assert there.read_bytes() == before
    assert "which holds no labels" in capfd.readouterr().err


def test_what_cannot_be_looked_into_is_not_replaced(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("inference.write.files.data_type", refuse)
    desk.put("a.nii.gz")
    desk.outputs.mkdir()
    (desk.outputs / "a.nii.gz").write_text("whatever")
    assert desk.run() == 1
    assert "(cannot be read: Permission denied)" in capfd.readouterr().err
    assert (desk.outputs / "a.nii.gz").read_text() == "whatever"


def test_labels_in_nifti_2_are_labels(desk: Desk) -> None:
    desk.put("a.nii.gz")
    desk.outputs.mkdir()
    _save_nifti_2(np.zeros((4, 4, 4), np.uint8), desk.outputs / "a.nii.gz")
    assert desk.run() == 0
    assert sitk.ReadImage(desk.outputs / "a.nii.gz").GetSize() == make_ct().GetSize()


def test_one_folder_under_two_names_is_one_folder(desk: Desk) -> None:
    desk.put("a.nii.gz")
    desk.outputs.mkdir()
    os.link(desk.inputs / "a.nii.gz", desk.outputs / "a.nii.gz")
    with pytest.raises(UsageError, match="would replace a CT"):
        find_cases(desk.inputs, desk.outputs)


def test_one_folder_mounted_twice_is_one_folder(desk: Desk, tmp_path: Path) -> None:
    """As both of a container's folders."""
    desk.put("a.nii.gz")
    before = (desk.inputs / "a.nii.gz").read_bytes()
    (tmp_path / "again").mkdir()
    mounted = ["unshare", "--mount", "sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"']
    mounted += ["sh", str(desk.inputs), str(tmp_path / "again")]
    try:
        subprocess.run([*mounted, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nobody may mount here; the test above compares a hard link instead")
    arguments = ["-i", str(desk.inputs), "-o", str(tmp_path / "again"), "--model", str(desk.model)]
    ran = subprocess.run(
        [*mounted, sys.executable, "-m", "inference", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2 and "labels would lie among CTs" in ran.stderr
    assert (desk.inputs / "a.nii.gz").read_bytes() == before


def test_a_report_replaces_no_slice(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    paths = put(desk.inputs)
    before = paths[0].read_bytes()
    assert desk.run("--report", paths[0]) == 2
    assert "is a DICOM file, which --report would replace" in capfd.readouterr().err
    assert paths[0].read_bytes() == before and not desk.outputs.exists()


def test_existing_labels_stay_where_a_case_fails(desk: Desk) -> None:
    desk.outputs.mkdir()
    (desk.inputs / "a.nii.gz").write_text("hello")
    (desk.outputs / "a.nii.gz").write_text("old")
    assert desk.run() == 1
    assert (desk.outputs / "a.nii.gz").read_text() == "old"
