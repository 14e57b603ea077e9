"""What is read in the background is what would be read now, and is left when it must be."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import dicom_files
import numpy as np
import pytest
import SimpleITK as sitk
from tiny_model import make_ct

import inference.read.file
from inference import ahead
from inference.ahead import Reader
from inference.cases import Case, find_cases
from inference.errors import CaseError


def put(path: Path, seed: int = 0) -> Case:
    sitk.WriteImage(make_ct(seed=seed), path)
    return Case(path, path.with_name("labels.nii.gz"))


def test_ahead_or_not_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = put(tmp_path / "a.nii.gz", 1), put(tmp_path / "b.nii.gz", 2)
    where: dict[str, str] = {}
    real = inference.read.file.read

    def told(path: Path, *rest: Any) -> Any:
        where[path.name] = threading.current_thread().name
        return real(path, *rest)

    monkeypatch.setattr("inference.cases.read", told)
    with Reader() as reader:
        reader.begin(first)
        for case in (first, second):
            image = reader.take(case).image
            now = sitk.ReadImage(case.source)
            assert np.array_equal(sitk.GetArrayViewFromImage(image), sitk.GetArrayFromImage(now))
    assert where["a.nii.gz"].startswith("read")
    assert where["b.nii.gz"] == "MainThread"


def test_errors_come_when_it_is_taken(tmp_path: Path) -> None:
    case = put(tmp_path / "a.nii.gz")
    case.source.write_bytes(case.source.read_bytes()[:-3000])
    nothing = Case(tmp_path / "nothing.nii.gz", case.target)
    with Reader() as reader:
        reader.begin(case)
        with pytest.raises(CaseError, match="damaged or truncated"):
            reader.take(case)
        reader.begin(nothing)
        with pytest.raises(CaseError, match="cannot be read"):
            reader.take(nothing)


def test_one_that_is_never_taken_makes_room_for_the_next(tmp_path: Path) -> None:
    """A case may be refused for its outputs when it has been read already."""
    cases = [put(tmp_path / f"{number}.nii.gz", number) for number in range(3)]
    with Reader() as reader:
        for case in cases:
            reader.begin(case)
        assert reader._reading is not None
        assert reader._reading.case == cases[2]
        image = reader.take(cases[2]).image
    now = sitk.ReadImage(cases[2].source)
    assert np.array_equal(sitk.GetArrayViewFromImage(image), sitk.GetArrayFromImage(now))


def test_large_cts_wait_for_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = put(tmp_path / "a.nii.gz")
    nbytes = sitk.GetArrayViewFromImage(make_ct()).nbytes + 352
    with Reader() as reader:
        monkeypatch.setattr(ahead, "free_memory", lambda: 8 * nbytes)
        reader.begin(case)
        assert reader._reading is None
        monkeypatch.setattr(ahead, "free_memory", lambda: 8 * nbytes + 1)
        reader.begin(case)
        assert reader._reading is not None


def test_a_series_is_read_ahead(tmp_path: Path) -> None:
    dicom_files.put(tmp_path / "in")
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")
    with Reader() as reader:
        reader.begin(case)
        assert reader._reading is not None
        voxels = sitk.GetArrayFromImage(reader.take(case).image)
    assert np.array_equal(voxels, sitk.GetArrayFromImage(make_ct()))


@pytest.mark.parametrize("kind", ["file", "series"])
def test_leaving_breaks_a_reading_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is stopped after the bytes or the slice that it is at, not at the end."""
    if kind == "file":
        case = put(tmp_path / "a.nii.gz")
        monkeypatch.setattr("inference.read.deflate._AT_ONCE", 1 << 10)
    else:
        dicom_files.put(tmp_path)
        (case,) = find_cases(tmp_path, tmp_path / "out")
    begun, go = threading.Event(), threading.Event()
    bytes_read: list[int] = []
    real = ahead._Reading._watch

    def slowly(self: ahead._Reading, image: sitk.Image, ready: int) -> None:
        bytes_read.append(ready)
        begun.set()
        assert go.wait(30)
        real(self, image, ready)

    monkeypatch.setattr(ahead._Reading, "_watch", slowly)
    with Reader() as reader:
        reader.begin(case)
        assert begun.wait(30)
        threading.Timer(0.2, go.set).start()
    assert len(bytes_read) == 1
