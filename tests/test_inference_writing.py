"""Label files: what any gzip reads, whole, and no larger than others make them."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pytest
import SimpleITK as sitk

from inference.phantom import make_phantom
from inference.read.nifti_header import Header
from inference.read.nifti_voxels import write_labels


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    path = tmp_path_factory.mktemp("header") / "a.nii"
    sitk.WriteImage(sitk.Image((64, 64, 40), sitk.sitkInt16), path)
    return Header.read(path)


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_are_one_gzip_stream(
    header: Header, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.read.deflate._PART", 1 << 14)
    labels = np.random.default_rng(0).integers(0, 14, (40, 64, 64)).astype(np.uint8)
    file = io.BytesIO()
    write_labels(file, header, labels, True, threads)
    plain = io.BytesIO()
    write_labels(plain, header, labels, False, threads)
    assert gzip.decompress(file.getvalue()) == plain.getvalue()
    assert plain.getvalue().endswith(labels.tobytes())
    again = io.BytesIO()
    write_labels(again, header, labels, True, 4 - threads)
    # Perhaps by another deflate stream: in a busy process ISA-L once made one.
    assert gzip.decompress(again.getvalue()) == plain.getvalue()


def test_real_shapes_are_packed_well(header: Header) -> None:
    _, image = make_phantom((12, 512, 512), (30.0, 0.8, 0.8))
    labels = sitk.GetArrayFromImage(image)
    file = io.BytesIO()
    write_labels(file, header, labels, True)
    usual = gzip.compress(labels.tobytes(), 6)  # nibabel's and ITK's level
    assert len(file.getvalue()) < 1.5 * len(usual)
