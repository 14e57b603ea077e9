"""What is wrong with a file is said in one line, and nothing is computed."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_model import make_ct

from inference.checks import Intensities, check_intensities
from inference.errors import CaseError
from inference.nifti import Header
from inference.reading import read

Spoil = Callable[[Path], object]


def volume(pixel: int = sitk.sitkInt16) -> sitk.Image:
    return sitk.Cast(make_ct((12, 20, 22)), pixel)


def nifti(changes: dict[int, bytes], compress: bool = True) -> Spoil:
    """Write a NIfTI file with some of its header's bytes replaced."""

    def spoil(path: Path) -> None:
        plain = path.with_name("plain.nii")
        sitk.WriteImage(volume(), plain)
        raw = bytearray(plain.read_bytes())
        plain.unlink()
        for offset, value in changes.items():
            raw[offset : offset + len(value)] = value
        path.write_bytes(gzip.compress(raw, 1) if compress else raw)

    return spoil


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


def meta(spacing: str, matrix: str = "1 0 0 0 1 0 0 0 1", slices: int = 12) -> Spoil:
    def spoil(path: Path) -> None:
        image = volume()
        x, y, _ = image.GetSize()
        z = slices
        path.with_suffix(".raw").write_bytes(sitk.GetArrayFromImage(image).tobytes())
        path.write_text(
            f"ObjectType = Image\nNDims = 3\nDimSize = {x} {y} {z}\nElementSpacing = {spacing}\n"
            f"TransformMatrix = {matrix}\nElementType = MET_SHORT\n"
            f"ElementDataFile = {path.with_suffix('.raw').name}\n"
        )

    return spoil


def nrrd(line: str) -> Spoil:
    def spoil(path: Path) -> None:
        image = volume()
        x, y, z = image.GetSize()
        header = (
            f"NRRD0004\ntype: short\ndimension: 3\nsizes: {x} {y} {z}\n{line}\n"
            "endian: little\nencoding: raw\n\n"
        )
        path.write_bytes(header.encode() + sitk.GetArrayFromImage(image).tobytes())

    return spoil


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


# Where the header has the codes of qform and sform, and sform's first row.
CODES, ROW_X = 252, 280


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, None),
        ({CODES: struct.pack("<2h", 0, 0)}, "does not say where right and left are"),
        ({ROW_X: struct.pack("<f", 1.5)}, "its qform does not say"),  # was -1.5: mirrored
        ({ROW_X: struct.pack("<f", -0.75)}, "its sform does not say"),  # half of pixdim
        ({ROW_X: struct.pack("<f", 1.5), CODES + 2: struct.pack("<h", 0)}, None),  # not used
        ({ROW_X + 12: struct.pack("<f", 30.9)}, None),  # less than a voxel from 30.5
    ],
)
def test_what_the_header_leaves_open_is_said(
    tmp_path: Path, compress: bool, changes: dict[int, bytes], warning: str | None
) -> None:
    path = tmp_path / ("a.nii.gz" if compress else "a.nii")
    nifti(changes, compress)(path)
    warnings = read(path).warnings
    assert len(warnings) == (warning is not None)
    if warning is not None:
        assert warning in warnings[0]


@given(
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5)] * 3),
    mirrored=st.booleans(),
)
@example(turn=(0.0, 180.0, 2.5), spacing=(1.0, 1.0, 1.0), mirrored=False)
@settings(max_examples=25, deadline=None)
def test_the_qform_is_nibabels(
    turn: tuple[float, ...], spacing: tuple[float, ...], mirrored: bool
) -> None:
    """Whatever the orientation; nibabel reads the same bytes."""
    nibabel = pytest.importorskip("nibabel", reason="the evaluation extra is not installed")
    rotation = sitk.Euler3DTransform((0, 0, 0), *np.deg2rad(turn).tolist(), (0, 0, 0))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(rotation.GetMatrix(), (3, 3)) * spacing
    affine[:3, 2] *= -1 if mirrored else 1
    affine[:3, 3] = 7, -8, 9
    header = nibabel.Nifti1Header()
    header.set_data_shape((3, 4, 5))
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    forms = Header(header.binaryblock, "<", compressed=False).forms
    # Near half turns float32 tells quaternions apart to 1e-3 at best.
    np.testing.assert_allclose(forms["qform"], header.get_qform(), atol=1e-2)
    np.testing.assert_allclose(forms["sform"], affine, atol=1e-4)
    assert Header(header.binaryblock, "<", compressed=False).doubt(affine) is None


@pytest.mark.parametrize("suffix", [".mhd", ".nii"])
def test_axes_that_are_not_perpendicular_are_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".mhd":
        meta("1 1 1", "1 0 0 0.3 1 0 0 0 1")(path)
    else:
        nifti({284: struct.pack("<f", 0.3), CODES: struct.pack("<h", 0)}, compress=False)(path)
    assert "not perpendicular" in read(path).warnings[0]


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
@pytest.mark.parametrize("compress", [True, False])
def test_an_intercept_without_a_slope_is_none(tmp_path: Path, compress: bool, slope: float) -> None:
    """A slope of 0 means that values are not scaled (NIfTI-1), whatever the intercept."""
    path = tmp_path / ("a.nii.gz" if compress else "a.nii")
    nifti({112: struct.pack("<ff", slope, -1024)}, compress)(path)
    assert (sitk.GetArrayFromImage(read(path).image) == sitk.GetArrayFromImage(volume())).all()


@pytest.mark.parametrize("name", ["a.nrrd", "a.mhd", "a.mha"])
def test_without_directions_right_and_left_are_in_doubt(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sitk.WriteImage(volume(), path)
    assert read(path).warnings == ()
    if name == "a.nrrd":
        nrrd("spacings: 1 1 1")(path)
    else:
        spoilt, times = re.subn(rb"TransformMatrix = [^\n]*\n", b"", path.read_bytes())
        assert times == 1
        path.write_bytes(spoilt)
    (warning,) = read(path).warnings
    assert "right and left" in warning


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

    monkeypatch.setattr("inference.deflate._AT_ONCE", 1 << 12)
    monkeypatch.setattr("inference.reading.check_complete", None)  # ITK's way ends with it
    ours = read(tmp_path / "a.nii.gz", watch).image
    assert seen == sorted(seen)
    assert seen[-1] == 9
    assert len(set(seen)) == 10
    assert ours.GetPixelID() == theirs.GetPixelID()
    assert np.array_equal(sitk.GetArrayViewFromImage(ours), sitk.GetArrayViewFromImage(theirs))
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(ours, name)() == getattr(theirs, name)(), name


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
    monkeypatch.setattr("inference.reading.check_complete", fails)
    with pytest.raises(CaseError, match=r"^cannot be read \(Input/output error\)$"):
        read(tmp_path / "a.nii")


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


def test_one_volume_in_4d_is_a_volume(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.JoinSeries([volume()]), tmp_path / "a.nii.gz")
    assert read(tmp_path / "a.nii.gz").image.GetSize() == volume().GetSize()


def test_sheared_axes_are_taken_with_a_warning(tmp_path: Path) -> None:
    rows = struct.pack("<12f", 1.5, 0.4, 0, 0, 0, 1.4, 0, 0, 0, 0, 2.5, 0)
    nifti({252: struct.pack("<h", 0), 280: rows})(tmp_path / "a.nii.gz")
    assert "not perpendicular" in read(tmp_path / "a.nii.gz").warnings[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused(bad: float) -> None:
    values = np.zeros((4, 5, 6), np.float32)
    values[0] = -1000
    values[2, 3, 4] = bad
    with pytest.raises(CaseError, match="NaN or infinite"):
        check_intensities(values)


def test_constant_volumes_are_refused() -> None:
    with pytest.raises(CaseError, match="constant: every voxel is -1000"):
        check_intensities(np.full((4, 5, 6), -1000, np.int16))


def test_hu_are_taken_as_they_are() -> None:
    found = check_intensities(sitk.GetArrayFromImage(volume()))
    assert found.offset == 0
    assert found.warnings == ()


def test_hu_plus_1024_are_shifted() -> None:
    stored = (sitk.GetArrayFromImage(make_ct()) + 1030).astype(np.uint16)
    stored[0, 0, 0] = 4095
    found = check_intensities(stored)
    assert found.offset == -1024
    assert "look like HU + 1024" in found.warnings[0]


@pytest.mark.parametrize("outlier", [-1, -1024, -2000, 32767])
def test_one_voxel_does_not_hide_that_hu_are_shifted(outlier: int) -> None:
    stored = sitk.GetArrayFromImage(make_ct()).astype(np.int32) + 1024
    stored[0, 0, 0] = outlier  # padding, overshoot of a spline, metal
    assert check_intensities(stored).offset == -1024


def test_dense_bone_does_not_make_hu_shifted() -> None:
    hu = sitk.GetArrayFromImage(make_ct()).astype(np.int16)
    rng = np.random.default_rng(0)
    hu[...] = rng.choice([-1000, -100, 40, 1000], hu.shape, p=[0.5, 0.1, 0.33, 0.07])
    assert check_intensities(hu) == Intensities()


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    link = tmp_path / "a.nii.gz"
    link.symlink_to(tmp_path / "unmounted" / "a.nii.gz")
    with pytest.raises(CaseError, match=r"is a link to .*unmounted/a.nii.gz, which is not there"):
        read(link)


def test_more_voxels_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mha"
    sitk.WriteImage(make_ct(), path)
    need = sitk.GetArrayViewFromImage(make_ct()).nbytes
    monkeypatch.setattr("inference.checks.free_memory", lambda: need)
    read(path)
    monkeypatch.setattr("inference.checks.free_memory", lambda: need - 1)
    with pytest.raises(CaseError, match="too large for the memory"):
        read(path)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 1), (-3, 8), (0, 1500)])
def test_values_that_are_not_hu_get_a_warning(low: float, high: float) -> None:
    hu = sitk.GetArrayFromImage(make_ct()).astype(np.float32)
    values = np.clip(hu, low, high) if high > 1000 else (hu + 1000) / 1400 * (high - low) + low
    values[0, 0, :2] = low, high
    found = check_intensities(values)
    assert found.offset == 0
    assert "do not look like HU" in found.warnings[0]
