"""What is wrong with a file is said in one line, and nothing is computed."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ct_files import Spoil, meta, nifti, nrrd, volume
from tiny_model import make_ct

from inference.errors import CaseError
from inference.read.file import read


def pixdim(axis: int, value: float) -> dict[int, bytes]:
    return {76 + 4 * axis: struct.pack("<f", value)}


def cut(share: float) -> Spoil:
    def spoil(path: Path) -> None:
        sitk.WriteImage(volume(), path)
        raw = path.read_bytes()
        path.write_bytes(raw[: int(len(raw) * share)])

    return spoil


def flip(path: Path) -> None:
    """Damage some bytes in the middle."""
    sitk.WriteImage(volume(), path, True)
    raw = bytearray(path.read_bytes())
    for i in range(len(raw) // 2, len(raw) // 2 + 8):
        raw[i] ^= 0x5A
    path.write_bytes(raw)


def wrong_checksum(path: Path) -> None:
    """Of a file so small that ITK looks at all of it before it says what it is."""
    sitk.WriteImage(volume()[:4, :4, :2], path, True)
    raw = path.read_bytes()
    path.write_bytes(raw[:-8] + bytes(4) + raw[-4:])


def made(spoil: Spoil, path: Path) -> bytes:
    spoil(path)
    return path.read_bytes()


BAD: dict[str, tuple[str, Spoil, str]] = {
    "text": ("a.nii.gz", lambda p: p.write_text("hello\n" * 99), "is not a NIfTI file"),
    "empty": ("a.nii.gz", lambda p: p.write_bytes(b""), "is not a NIfTI file"),
    "gzipped text": (
        "a.nii.gz",
        lambda p: p.write_bytes(gzip.compress(b"x" * 999)),
        "is not a NIfTI file",
    ),
    "text nrrd": ("a.nrrd", lambda p: p.write_text("hello\n" * 99), "is not an image"),
    "text mha": ("a.mha", lambda p: p.write_text("hello\n" * 99), "is not an image"),
    "truncated": ("a.nii.gz", cut(0.5), "is damaged or truncated"),
    "almost whole": ("a.nii.gz", cut(0.999), "is damaged or truncated"),
    "only a header": ("a.nii.gz", cut(0.005), "is damaged or truncated"),
    "wrong checksum": ("a.nii.gz", wrong_checksum, "is damaged or truncated"),
    "bits": ("a.nii.gz", nifti({70: struct.pack("<h", 1)}), "of NIfTI data type 1, not numbers"),
    "no type": ("a.nii", nifti({70: struct.pack("<h", 9999)}, compress=False), "data type 9999"),
    "truncated nii": ("a.nii", cut(0.5), "is truncated"),
    "truncated mha": ("a.mha", cut(0.5), "cannot be read, perhaps damaged"),
    "truncated nrrd": ("a.nrrd", cut(0.5), "cannot be read, perhaps damaged"),
    "damaged": ("a.nii.gz", flip, "is damaged or truncated"),
    "damaged mha": ("a.mha", flip, "is damaged"),
    "damaged nrrd": ("a.nrrd", flip, "damaged"),
    "gzipped nii": ("a.nii", nifti({}), "is compressed; rename it so that it ends in .nii.gz"),
    "mixed case": ("a.Nii.Gz", nifti({}), "ends in .Nii.Gz; rename it so that it ends in .nii.gz"),
    "no slices": ("a.nii.gz", nifti({46: struct.pack("<h", 0)}), "impossible size (22 x 20 x 0 vo"),
    "no slices mhd": ("a.mhd", meta("1 1 1", slices=0), "impossible size (22 x 20 x 0 voxels)"),
    "NaN in sform": (
        "a.nii.gz",
        nifti({280: struct.pack("<f", float("nan"))}),
        "has impossible axis directions",
    ),
    "truncated, wrong bits": (
        "a.nii",
        lambda p: p.write_bytes(made(nifti({72: bytes(2)}, compress=False), p)[:-99]),
        "is truncated",
    ),
    "not UTF-8": ("\udcff.nii.gz", nifti({}), "has a name that is not UTF-8"),
    "2D": ("a.nii.gz", lambda p: sitk.WriteImage(volume()[:, :, 5], p), "is a 2D image (22 x 20)"),
    "4D": (
        "a.nii.gz",
        lambda p: sitk.WriteImage(sitk.JoinSeries([volume()] * 3), p),
        "is a series of volumes (22 x 20 x 12 x 3)",
    ),
    "vector": (
        "a.nii.gz",
        lambda p: sitk.WriteImage(sitk.Compose([volume()] * 3), p),
        "has 3 values per voxel",
    ),
    "colour": (
        "a.mha",
        lambda p: sitk.WriteImage(sitk.Compose([volume(sitk.sitkUInt8)] * 3), p),
        "has 3 values per voxel",
    ),
    "complex": (
        "a.nii.gz",
        lambda p: sitk.WriteImage(sitk.Cast(volume(), sitk.sitkComplexFloat32), p),
        "per voxel",
    ),
    "zero spacing": ("a.nii.gz", nifti(pixdim(3, 0.0)), "impossible spacing: 1.5 x 1.4 x 0 mm"),
    "negative spacing": ("a.nii", nifti(pixdim(1, -1.5), False), "impossible spacing: -1.5 x"),
    "NaN spacing": ("a.nii.gz", nifti(pixdim(2, float("nan"))), "spacing: 1.5 x nan x 2.5 mm"),
    "infinite spacing": ("a.nii.gz", nifti(pixdim(2, float("inf"))), "impossible spacing"),
    "NIfTI-2": (
        "a.nii.gz",
        lambda p: p.write_bytes(struct.pack("<i", 540) + b"n+2\0" + bytes(999)),
        "is a NIfTI-2 file",
    ),
    "far too small": (
        "a.nii.gz",
        nifti({42: struct.pack("<3h", 30000, 30000, 30000)}),
        "cannot hold the 54000000000352 that its header announces",
    ),
    "header of nonsense": (
        "a.nii.gz",
        nifti({108: struct.pack("<f", 1e30)}),
        "impossible NIfTI header",
    ),
    "zero spacing mhd": ("a.mhd", meta("1 1 0"), "impossible spacing: 1 x 1 x 0 mm"),
    "negative spacing mhd": ("a.mhd", meta("1 1 -2"), "impossible spacing: 1 x 1 x -2 mm"),
    "NaN spacing mhd": ("a.mhd", meta("1 nan 1"), "impossible spacing: 1 x nan x 1 mm"),
    "negative spacing nrrd": ("a.nrrd", nrrd("spacings: 1 -1 1"), "spacing: 1 x -1 x 1 mm"),
    "zero direction nrrd": (
        "a.nrrd",
        nrrd("space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,0)"),
        "has a spacing of 0 mm",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    name, spoil, reason = BAD[kind]
    spoil(tmp_path / name)
    with pytest.raises(CaseError) as caught:
        read(tmp_path / name)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    out, err = capfd.readouterr()
    assert out == err == ""  # nothing of ITK's own


def test_missing_voxel_file_is_refused(tmp_path: Path) -> None:
    meta("1 1 1")(tmp_path / "a.mhd")
    (tmp_path / "a.raw").unlink()
    with pytest.raises(CaseError, match=r"lacks its voxels: a.raw is not there"):
        read(tmp_path / "a.mhd")


def test_damage_is_found_wherever_it_is(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), tmp_path / "a.nii.gz", True)
    raw = (tmp_path / "a.nii.gz").read_bytes()
    for at in np.linspace(20, len(raw) - 1, 40).astype(int):
        spoilt = bytearray(raw)
        spoilt[at] ^= 0x10
        (tmp_path / "a.nii.gz").write_bytes(spoilt)
        with pytest.raises(CaseError):
            read(tmp_path / "a.nii.gz")


def test_a_file_that_goes_away_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    sitk.WriteImage(volume(), tmp_path / "a.nii")
    monkeypatch.setattr("inference.read.file.check_complete", fails)
    with pytest.raises(CaseError, match=r"^cannot be read \(Input/output error\)$"):
        read(tmp_path / "a.nii")


def test_voxels_of_a_file_beside_it_are_not_taken(tmp_path: Path) -> None:
    """ITK looks for X.nii first, whatever it was given: plain files are not its to read."""
    scaled, plain = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    nifti({112: struct.pack("<ff", 2.0, -24.0)})(scaled)
    nifti({})(plain)
    voxels = sitk.GetArrayFromImage(volume())
    for other in ("a.nii", "b.nii"):
        sitk.WriteImage(volume() + 500, tmp_path / other)
    assert np.array_equal(sitk.GetArrayFromImage(read(plain).image), voxels)
    with pytest.raises(CaseError, match=r"while a\.nii lies beside it"):
        read(scaled)
    (tmp_path / "a.nii").rename(tmp_path / "c.nii")
    assert np.array_equal(sitk.GetArrayFromImage(read(scaled).image), voxels * 2.0 - 24)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    link = tmp_path / "a.nii.gz"
    link.symlink_to(tmp_path / "unmounted" / "a.nii.gz")
    with pytest.raises(CaseError, match=r"is a link to .*unmounted/a.nii.gz, which is not there"):
        read(link)


def test_more_voxels_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mha"
    sitk.WriteImage(make_ct(), path)
    need = sitk.GetArrayViewFromImage(make_ct()).nbytes
    monkeypatch.setattr("inference.read.checks.free_memory", lambda: need)
    read(path)
    monkeypatch.setattr("inference.read.checks.free_memory", lambda: need - 1)
    with pytest.raises(CaseError, match="too large for the memory"):
        read(path)
