"""Good files, usual and odd ones, are read to the last voxel."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import nifti, volume
from tiny_model import make_ct

from inference.read.file import read


@pytest.mark.parametrize("suffix", [".NII.GZ", ".NII", ".MHA", ".Mha", ".NRRD"])
def test_endings_in_capitals_are_read(tmp_path: Path, suffix: str) -> None:
    sitk.WriteImage(volume(), tmp_path / f"a{suffix.lower()}")
    path = (tmp_path / f"a{suffix.lower()}").rename(tmp_path / f"b{suffix}")
    assert (sitk.GetArrayFromImage(read(path).image) == sitk.GetArrayFromImage(volume())).all()


@pytest.mark.parametrize(
    "pixel",
    [sitk.sitkInt16, sitk.sitkInt32, sitk.sitkFloat32, sitk.sitkFloat64, sitk.sitkInt8],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd", ".mhd"])
def test_good_files_are_read(tmp_path: Path, suffix: str, pixel: int) -> None:
    image = volume(pixel)
    sitk.WriteImage(image, tmp_path / f"a{suffix}")
    scan = read(tmp_path / f"a{suffix}")
    assert scan.warnings == ()
    assert np.array_equal(sitk.GetArrayFromImage(scan.image), sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("pixel", [sitk.sitkInt16, sitk.sitkUInt8, sitk.sitkFloat64])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_plain_files_are_inflated_and_equal_what_itk_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixel: int, level: int
) -> None:
    sitk.WriteImage(sitk.Cast(make_ct((9, 70, 90)), pixel), tmp_path / "a.nii")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes(), level))
    theirs = sitk.ReadImage(tmp_path / "a.nii.gz")
    seen: list[int] = []

    def watch(image: sitk.Image, ready: int) -> None:
        seen.append(ready)
        there = sitk.GetArrayViewFromImage(image)[:ready]
        assert np.array_equal(there, sitk.GetArrayViewFromImage(theirs)[:ready])

    monkeypatch.setattr("inference.read.deflate._AT_ONCE", 1 << 12)
    monkeypatch.setattr("inference.read.file.check_complete", None)  # ITK's way ends with it
    ours = read(tmp_path / "a.nii.gz", watch).image
    assert seen == sorted(seen)
    assert seen[-1] == 9
    assert len(set(seen)) == 10
    assert ours.GetPixelID() == theirs.GetPixelID()
    assert np.array_equal(sitk.GetArrayViewFromImage(ours), sitk.GetArrayViewFromImage(theirs))
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(ours, name)() == getattr(theirs, name)(), name


def test_odd_but_whole_gzip_files_are_read(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), tmp_path / "a.nii")
    raw = (tmp_path / "a.nii").read_bytes()
    odd = {
        "members": gzip.compress(raw[:700]) + gzip.compress(raw[700:]),
        "trailing": gzip.compress(raw + bytes(100)),
        "plain": raw,  # not compressed at all, whatever its name says
    }
    for name, content in odd.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(content)
        scan = read(tmp_path / f"{name}.nii.gz")
        assert np.array_equal(
            sitk.GetArrayFromImage(scan.image), sitk.GetArrayFromImage(volume())
        ), name


def test_scaled_and_big_endian_nifti_is_read(tmp_path: Path) -> None:
    nifti({112: struct.pack("<ff", 2.0, -24.0)})(tmp_path / "a.nii.gz")
    scaled = sitk.GetArrayFromImage(read(tmp_path / "a.nii.gz").image)
    assert np.array_equal(scaled, sitk.GetArrayFromImage(volume()) * 2.0 - 24)
    nibabel = pytest.importorskip("nibabel")
    data = sitk.GetArrayFromImage(volume()).T
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4), header), tmp_path / "b.nii.gz")
    scan = read(tmp_path / "b.nii.gz")
    assert scan.header is not None
    assert scan.header.order == ">"
    assert np.array_equal(sitk.GetArrayFromImage(scan.image).T, data)


def test_one_volume_in_4d_is_a_volume(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.JoinSeries([volume()]), tmp_path / "a.nii.gz")
    assert read(tmp_path / "a.nii.gz").image.GetSize() == volume().GetSize()
