"""What is read of text headers must be what ITK understands by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from inference.errors import CaseError
from inference.read.file import read
from inference.read.text_header import TextHeader

META = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nencoding: raw\nendian: little\n"
VOXELS = np.arange(24, dtype="<i2").tobytes()


def written(path: Path, header: str, beside: str = "", within: bool = False) -> Path:
    path.write_bytes(header.encode() + (VOXELS if within else b""))
    if beside:
        (path.parent / beside).write_bytes(VOXELS)
    return path


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("ElementDataFile = x.raw\n", "x.raw"),
        ("ElementDataFile=x.raw\n", "x.raw"),
        ("ElementDataFile\t=\tx.raw\n", "x.raw"),
        ("  ElementDataFile = x.raw\r\n", "x.raw"),
        ("ElementDataFile = a name.raw\n", "a name.raw"),
    ],
)
def test_voxels_beside_a_meta_image(tmp_path: Path, line: str, name: str) -> None:
    path = written(tmp_path / "ct.mhd", META + line, name)
    assert TextHeader.read(path).voxel_file == name
    assert sitk.ReadImage(str(path)).GetSize() == (2, 3, 4)  # ITK finds them there too
    (tmp_path / name).unlink()
    with pytest.raises(CaseError, match=f"lacks its voxels: {name} is not there"):
        read(path)


@pytest.mark.parametrize("word", ["LOCAL", "Local", "local"])
def test_voxels_within_a_meta_image(tmp_path: Path, word: str) -> None:
    header = META + f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementDataFile = {word}\n"
    path = written(tmp_path / "ct.mha", header, within=True)
    assert TextHeader.read(path) == TextHeader("", (), True, False)
    assert read(path).image.GetSize() == (2, 3, 4)


@pytest.mark.parametrize("value", ["LIST", "LIST 2", "slice%03d.raw 1 4 1"])
def test_voxels_in_several_files(tmp_path: Path, value: str) -> None:
    path = written(tmp_path / "ct.mhd", META + f"ElementDataFile = {value}\n")
    assert TextHeader.read(path).voxel_file == ""


def test_a_long_header(tmp_path: Path) -> None:
    """As SimpleITK writes one with an image's metadata: the voxels' file comes last."""
    image = sitk.GetImageFromArray(np.zeros((2, 2, 2), np.int16))
    for number in range(500):
        image.SetMetaData(f"Tag{number}", "what a scanner tells " * 3)
    path = tmp_path / "ct.mhd"
    sitk.WriteImage(image, str(path))
    assert path.stat().st_size > 20_000
    assert TextHeader.read(path).voxel_file == "ct.raw"


@pytest.mark.parametrize("key", ["data file", "datafile", "Data File", "DATA FILE"])
def test_voxels_beside_a_nrrd(tmp_path: Path, key: str) -> None:
    path = written(tmp_path / "ct.nrrd", NRRD + f"{key}: ./x.raw\n", "x.raw")
    assert TextHeader.read(path).voxel_file == "./x.raw"
    assert sitk.ReadImage(str(path)).GetSize() == (2, 3, 4)
    (tmp_path / "x.raw").unlink()
    with pytest.raises(CaseError, match=r"lacks its voxels: \./x\.raw is not there"):
        read(path)


def test_fields_end_where_the_header_does(tmp_path: Path) -> None:
    """What stands among the voxels is no field."""
    path = tmp_path / "ct.nrrd"
    path.write_bytes(NRRD.encode() + b"\n" + b"spacings: -1 1 1\ndata file: y\n")
    assert TextHeader.read(path) == TextHeader("", (), False, False)
    path = tmp_path / "ct.mha"
    path.write_bytes(META.encode() + b"ElementDataFile = LOCAL\nElementSpacing = -1 1 1\n")
    assert TextHeader.read(path) == TextHeader("", (), False, False)


@pytest.mark.parametrize("between", [" = ", "=", "\t= "])
def test_a_negative_spacing_is_seen(tmp_path: Path, between: str) -> None:
    header = META + f"ElementSpacing{between}-1 1 1\nElementDataFile = LOCAL\n"
    path = written(tmp_path / "ct.mha", header, within=True)
    assert TextHeader.read(path).spacing == (-1, 1, 1)
    assert sitk.ReadImage(str(path)).GetSpacing() == (1, 1, 1)  # why it is looked at
    with pytest.raises(CaseError, match="spacing"):
        read(path)


def test_directions(tmp_path: Path) -> None:
    directed = NRRD + "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
    assert TextHeader.read(written(tmp_path / "a.nrrd", directed + "\n")).has_directions
    undirected = NRRD + "space dimension: 3\nspace directions: none none none\n"
    assert not TextHeader.read(written(tmp_path / "b.nrrd", undirected + "\n")).has_directions


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a.mha", "ElementSpacing = 1 1 2\n"),
        ("a.mha", "ElementSize = 1 1 2\n"),
        ("a.mha", ""),
        ("a.nrrd", "spacings: 1 1 2\n"),
        ("a.nrrd", "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,2)\n"),
        ("a.nrrd", ""),
    ],
)
def test_that_no_spacing_is_written_is_said(tmp_path: Path, name: str, line: str) -> None:
    meta = name.endswith(".mha")
    header = META + line + "ElementDataFile = LOCAL\n" if meta else NRRD + line + "\n"
    path = written(tmp_path / name, header, within=True)
    scan = read(path)
    assert scan.image.GetSpacing() == ((1, 1, 2) if line else (1, 1, 1))
    said = any("how large its voxels are" in warning for warning in scan.warnings)
    assert said == (not line) == (not TextHeader.read(path).has_spacing)


def test_what_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "empty.mha").touch()
    assert TextHeader.read(tmp_path / "empty.mha") == TextHeader("", (), False, False)
    (tmp_path / "zeros.mhd").write_bytes(bytes(3 << 20))
    assert TextHeader.read(tmp_path / "zeros.mhd") == TextHeader("", (), False, False)
    odd = written(tmp_path / "odd.mhd", META + "ElementDataFile = x\0.raw\n")
    with pytest.raises(CaseError, match="lacks its voxels"):
        read(odd)


@pytest.mark.parametrize("name", ["ct.mha", "ct.mhd", "ct.nrrd"])
def test_a_flipped_bit_of_compressed_voxels_is_found(tmp_path: Path, name: str) -> None:
    """ITK stops inflating where it has enough, before the checksum."""
    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.integers(-1000, 1000, (20, 30, 40)).astype(np.int16) // 50)
    sitk.WriteImage(image, tmp_path / name, useCompression=True)
    assert np.array_equal(
        sitk.GetArrayFromImage(read(tmp_path / name).image), sitk.GetArrayFromImage(image)
    )
    packed = tmp_path / ("ct.zraw" if name == "ct.mhd" else name)
    whole = packed.read_bytes()
    for place in rng.integers(len(whole) // 2, len(whole) - 12, 20):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        packed.write_bytes(damaged)
        with pytest.raises(CaseError, match="damaged"):
            read(tmp_path / name)
    packed.write_bytes(whole[:-3])
    with pytest.raises(CaseError, match="damaged or truncated"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["ct.mha", "ct.nrrd"])
def test_voxels_that_compress_to_nearly_nothing_are_whole(tmp_path: Path, name: str) -> None:
    """Their last kilobytes come out after the last byte went in."""
    for more in range(-6, 7):
        blank = sitk.GetImageFromArray(np.zeros((2, 4, (1 << 17) + more), np.int16))
        sitk.WriteImage(blank, tmp_path / name, useCompression=True)
        assert read(tmp_path / name).image.GetSize() == blank.GetSize()


@pytest.mark.parametrize(
    ("space", "directed"),
    [
        ("left-posterior-superior", True),
        ("RAS", True),
        ("left-anterior-superior-time", True),
        ("3D-left-handed", False),
        ("3D-right-handed", False),
        ("scanner-xyz", False),
    ],
)
def test_spaces_that_tell_right_from_left(tmp_path: Path, space: str, directed: bool) -> None:
    """Of the others ITK knows no more than that there are three axes."""
    directions = "space directions: (1,0,0) (0,1,0) (0,0,1)\n"
    path = written(tmp_path / "ct.nrrd", NRRD + f"space: {space}\n{directions}\n", within=True)
    assert TextHeader.read(path).has_directions is directed
    if not space.endswith("time"):  # that one has a fourth axis
        assert bool(read(path).warnings) is not directed
