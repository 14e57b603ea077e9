"""When a case is prepared anew, and when it is not."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import SimpleITK as sitk
from small_dataset import add, configuration, dataset, liver_and_spleen, stored, write

from training.config import Config
from training.data.cases import find_cases
from training.data.tissues import UNKNOWN
from training.preparation.prepare import prepare

pytestmark = pytest.mark.usefixtures("one_thread")


def test_changed_labels_are_prepared_anew(prepared_once: tuple[Path, Path, Config]) -> None:
    data, out, config = prepared_once
    hu, labels = liver_and_spleen()
    first = (out / "images" / "P1.npz").stat().st_mtime_ns
    prepare(find_cases(data), out, config, 1)
    assert (out / "images" / "P1.npz").stat().st_mtime_ns == first
    add(data, "P1", hu, np.where(labels == 3, 0, labels).astype(np.uint8))
    later = time.time() + 5
    os.utime(data / "labelsTr" / "P1.nii.gz", (later, later))
    prepare(find_cases(data), out, config, 1)
    with np.load(out / "images" / "P1.npz") as content:
        assert set(np.unique(content["labels"])) == {0, 1}


def test_what_an_older_version_prepared_is_prepared_anew(
    prepared_once: tuple[Path, Path, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, config = prepared_once
    path = out / "images" / "P1.npz"
    first = path.stat().st_mtime_ns
    monkeypatch.setattr("training.preparation.fingerprint._FORM", 99)
    prepare(find_cases(data), out, config, 1)
    later = path.stat().st_mtime_ns
    assert later > first
    prepare(find_cases(data), out, config, 1)
    assert path.stat().st_mtime_ns == later


def test_edited_descriptions_are_prepared_anew(tmp_path: Path) -> None:
    """Only what they concern: other names for the labels, organs that are not annotated."""
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    add(data, "P1", *liver_and_spleen())
    add(data, "P2", *liver_and_spleen())
    config = Config.load(configuration(tmp_path))
    prepare(find_cases(data), out, config, 1)
    p1, p2 = (out / "images" / f"{name}.npz" for name in ("P1", "P2"))
    before = p2.stat().st_mtime_ns
    dataset(data, annotated={"P1": ["liver"]})
    prepare(find_cases(data), out, config, 1)
    assert stored(p1, "annotated") == [1] and stored(p1, "labels") == [0, 1, UNKNOWN]
    assert p2.stat().st_mtime_ns == before
    names = {"labels": {"background": 0, "liver": 1, "pancreas": 3}}
    (data / "dataset.json").write_text(json.dumps(names))
    prepare(find_cases(data), out, config, 1)
    assert stored(p2, "annotated") == stored(p2, "labels")[1:] == [1, 4]


def test_a_file_that_is_replaced_by_an_older_one_is_prepared_anew(
    prepared_once: tuple[Path, Path, Config],
) -> None:
    data, out, config = prepared_once
    _, labels = liver_and_spleen()
    replaced = data / "labelsTr" / "P1.nii.gz"
    write(replaced, np.where(labels == 3, 0, labels).astype(np.uint8))
    os.utime(replaced, (1e9, 1e9))
    prepare(find_cases(data), out, config, 1)
    assert stored(out / "images" / "P1.npz", "labels") == [0, 1]


@pytest.mark.parametrize("name", ["P1_0000.mhd", "P1_0000.nrrd"])
def test_voxels_that_lie_beside_their_header_are_looked_at(tmp_path: Path, name: str) -> None:
    """Of the same size, under a header that stays."""
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    hu, labels = liver_and_spleen()
    write(data / "labelsTr" / "P1.nii.gz", labels)
    config = Config.load(configuration(tmp_path))

    def prepared(hu: np.ndarray) -> int:
        image = sitk.GetImageFromArray(hu)
        image.SetSpacing((12.0, 12.0, 12.0))
        (data / "imagesTr").mkdir(exist_ok=True)
        path = data / "imagesTr" / name
        sitk.WriteImage(image, str(path))
        if path.suffix == ".nrrd":  # ITK writes one file; put its voxels apart
            header, voxels = path.read_bytes().split(b"\n\n", 1)
            path.write_bytes(header + b"\ndata file: P1.raw\n\n")
            (path.parent / "P1.raw").write_bytes(voxels)
        assert prepare(find_cases(data), out, config, 1) == []
        return max(stored(out / "images" / "P1.npz", "hu"))

    assert prepared(hu) == 400
    hu[hu == 400] = 300
    assert prepared(hu) == 300


def test_copied_data_is_the_same_data_and_other_data_is_refused(
    prepared_once: tuple[Path, Path, Config], tmp_path: Path
) -> None:
    data, out, config = prepared_once
    path = out / "images" / "P1.npz"
    before = path.stat().st_mtime_ns
    copy = shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copy)  # times are now
    for file in copy.rglob("*.nii.gz"):
        os.utime(file, (2e9, 2e9))
    prepare(find_cases(copy), out, config, 1)
    assert path.stat().st_mtime_ns == before

    other = dataset(tmp_path / "other")
    add(other, "Q1", *liver_and_spleen())
    with pytest.raises(ValueError, match="prepared from other data"):
        prepare(find_cases(other), out, config, 1)
    assert path.stat().st_mtime_ns == before
