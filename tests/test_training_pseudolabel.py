"""Pseudo-labels: which organs of them are believed, and where they lie."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import SimpleITK as sitk
import torch
from scipy import ndimage
from small_dataset import add, configuration, dataset, liver_and_spleen
from small_training import CONFIG, ORGANS_SHOWN, SMALL, SPACING, a_patient

from inference.organs import LABEL_OF, ORGANS
from training.__main__ import main
from training.config import Config
from training.data.case import Case
from training.data.cases import find_cases
from training.data.tissues import (
    UNKNOWN,
)
from training.networks.torch_runner import TorchRunner
from training.pseudolabels import pseudolabel as module
from training.pseudolabels.corrections import Edit
from training.pseudolabels.judge import judge
from training.pseudolabels.looks import look_at
from training.pseudolabels.pseudolabel import pseudolabel

pytestmark = pytest.mark.usefixtures("one_thread")


def _looks() -> list[np.ndarray]:
    labels = np.zeros((30, 40, 60), np.uint8)
    labels[5:25, 10:30, 5:25] = LABEL_OF["liver"]
    labels[10:20, 10:25, 40:50] = LABEL_OF["spleen"]
    return [labels.copy() for _ in range(3)]


def test_agreeing_looks_are_kept() -> None:
    found = judge(_looks(), (5.0, 5.0, 5.0), 0.85)
    assert found.kept == (LABEL_OF["liver"], LABEL_OF["spleen"])
    assert (found.labels == _looks()[0]).all()


def test_the_airways_gas_is_not_the_esophagus_in_any_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The network takes a fifth of a wide pocket of gas with it, and all of a small one."""
    config = Config.load(Path(__file__).parents[1] / "training" / "configs" / "abdoseg.yaml")
    config = replace(config, patch=(32, 32, 48), spacing=(6.0, 6.0, 6.0), coarse_first={})
    esophagus = LABEL_OF["esophagus"]
    hu = np.full((40, 40, 40), 40, np.int16)
    hu[:, 4:20, 10:26] = -1000  # the trachea
    hu[10:14, 26:29, 16:19] = -1000  # swallowed
    seen = np.zeros((1 + len(ORGANS), *hu.shape), np.float32)
    seen[esophagus, :, 17:32, 12:24] = 1.0

    def as_seen(network: Any, values: np.ndarray, config: Config) -> np.ndarray:
        grown = [ndimage.zoom(part, np.divide(values.shape, hu.shape), order=0) for part in seen]
        return np.stack(grown)

    monkeypatch.setattr("training.pseudolabels.looks.logits_of", as_seen)
    looks = look_at([torch.nn.Identity()], hu, (2.0, 2.0, 2.0), config)
    assert len(looks) == 3
    for look in looks:
        assert set(np.unique(look)) == {0, esophagus}
        assert not (look[:, 4:20, 10:26] == esophagus).any()
        assert (look[10:14, 26:29, 16:19] == esophagus).all()
        assert (look[2:-2, 23:30, 14:22] == esophagus).all()


def test_looks_that_differ_leave_the_organ_unknown() -> None:
    looks = _looks()
    looks[1][looks[1] == LABEL_OF["spleen"]] = 0
    found = judge(looks, (5.0, 5.0, 5.0), 0.85)
    assert found.kept == (LABEL_OF["liver"],)
    assert (found.labels[_looks()[0] == LABEL_OF["spleen"]] == UNKNOWN).all()


def test_mirrored_and_tiny_organs_are_not_believed() -> None:
    assert judge([look[:, :, ::-1] for look in _looks()], (5.0, 5.0, 5.0), 0.85).kept == ()
    assert judge(_looks(), (1.0, 1.0, 1.0), 0.85).kept == ()


def test_pseudo_labels_lie_where_the_organs_do(trained: Path, tmp_path: Path) -> None:
    """In a CT that is stored turned around; the network has seen this patient, upright."""
    hu, labels = a_patient()
    folder = tmp_path / "data" / "unlabelled" / "P1"
    folder.mkdir(parents=True)
    # Stored as HU + 1024, as some scanners' software does.
    image = sitk.GetImageFromArray(np.ascontiguousarray(hu[:, ::-1, ::-1]) + 1024)
    image.SetSpacing((SPACING,) * 3)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(folder / "ct.nii.gz"))
    config = replace(Config.load(CONFIG), **SMALL)
    out = tmp_path / "made"
    networks = [trained / "checkpoint.pt"] * 2
    judged, refused = pseudolabel(find_cases(tmp_path / "data"), networks, config, out, 0.7)
    assert refused == [] and set(judged) == {"P1"}
    assert judged["P1"].labels.size == 0  # nobody holds the labels of thousands of CTs
    assert set(ORGANS_SHOWN) <= set(judged["P1"].kept)

    made = sitk.ReadImage(str(out / "P1.nii.gz"))
    assert made.GetDirection() == image.GetDirection() and made.GetSize() == image.GetSize()
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "P1_preview.png")))
    assert (picture == 255).all(axis=-1).mean() < 0.1  # soft tissue is grey
    found = sitk.GetArrayFromImage(made)[:, ::-1, ::-1]
    known = found != 255
    assert (found[known] == labels[known]).mean() > 0.97
    for organ in ORGANS_SHOWN:
        assert (found == organ).sum() > 0.5 * (labels == organ).sum()
    (case,) = find_cases(tmp_path / "data", out)
    assert case.kind == "pseudo" and case.annotated == judged["P1"].kept

    def again(corrections: dict[str, list[Edit]] | None = None) -> set[str]:
        cases = find_cases(tmp_path / "data")
        return set(pseudolabel(cases, networks, config, out, 0.7, corrections)[0])

    organ = next(iter(ORGANS_SHOWN))
    edits = {"P1": [Edit("erase", (organ,))]}
    assert again() == again({}) == set()
    assert again(edits) == {"P1"}  # they say something new of it
    assert not (sitk.GetArrayFromImage(sitk.ReadImage(str(out / "P1.nii.gz"))) == organ).any()
    assert again(edits) == again() == set()
    assert again({}) == {"P1"}
    # A correction that cannot be made leaves nothing of what it was to replace.
    beside = {"P1": [Edit("erase", (organ,), (slice(500, 501), slice(None), slice(None)))]}
    assert again(beside) == set() and not find_cases(tmp_path / "data", out)[0].annotated
    assert again() == {"P1"}
    (out / "P1.nii.gz").unlink()
    assert again() == {"P1"} and (out / "P1.nii.gz").is_file()


def test_cts_that_are_labelled_side_by_side_have_the_same_labels(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hu, _ = a_patient()
    names = ("P1", "P2", "P3", "flat")
    for number, name in enumerate(names):
        folder = tmp_path / "data" / "unlabelled" / name
        folder.mkdir(parents=True)
        image = sitk.GetImageFromArray(hu[:, number:] if name != "flat" else hu[0])
        image.SetSpacing((SPACING,) * image.GetDimension())
        sitk.WriteImage(image, str(folder / "ct.nii.gz"))
    config = replace(Config.load(CONFIG), **SMALL)
    cases = find_cases(tmp_path / "data")
    at_once, most = 0, 0
    run = TorchRunner.run
    looking: set[int] = set()

    def looked(*arguments: Any) -> list[np.ndarray]:
        looking.add(threading.get_ident())
        return look_at(*arguments)

    def counted(self: TorchRunner, volume: np.ndarray) -> np.ndarray:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        logits = run(self, volume)
        at_once -= 1
        return logits

    monkeypatch.setattr(TorchRunner, "run", counted)
    monkeypatch.setattr(module, "look_at", looked)
    made = {}
    for workers in (1, 3):
        out = tmp_path / str(workers)
        monkeypatch.setattr(module, "_at_a_time", lambda *_, workers=workers: workers)
        judged, (refused,) = pseudolabel(cases, [trained / "checkpoint.pt"], config, out, 0.7)
        assert list(judged) == ["P1", "P2", "P3"] and refused.startswith("flat: ")
        files = [f"{name}.nii.gz" for name in judged]
        kept = (out / "annotated.json").read_text()
        made[workers] = kept, [(out / file).read_bytes() for file in files]
    assert made[1] == made[3] and all(organ in made[1][0] for organ in ("liver", "spleen"))
    assert most == 1  # a network's pass takes what memory there is
    assert len(looking - {threading.get_ident()}) > 1


def test_an_error_ends_the_labelling_of_the_others(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def fail(*arguments: Any) -> None:
        begun.append(arguments)
        time.sleep(0.1)
        raise MemoryError

    monkeypatch.setattr(module, "_label", fail)
    monkeypatch.setattr(module, "_at_a_time", lambda *_: 2)
    cases = [Case(f"P{n}", "unlabelled", tmp_path / f"{n}.nii.gz", None, ()) for n in range(50)]
    config = replace(Config.load(CONFIG), **SMALL)
    with pytest.raises(MemoryError):
        pseudolabel(cases, [trained / "checkpoint.pt"], config, tmp_path / "out")
    assert 2 <= len(begun) < 50


def test_every_ct_that_is_labelled_beside_a_gpu_has_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "usable_threads", lambda: 16)
    for gb, expected in ((200, 16), (40, 6), (1, 1)):
        monkeypatch.setattr(module, "free_memory", lambda gb=gb: gb * 10**9)
        assert module._at_a_time("cuda", None) == expected
        assert module._at_a_time("cuda", 3) == 3
        assert module._at_a_time("cpu", None) == module._at_a_time("cpu", 8) == 1


@pytest.mark.parametrize("folder", ["labelsTr", "pseudolabelsTr"])
def test_pseudolabels_lie_elsewhere_than_the_datas_labels(
    tmp_path: Path, folder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """There the numbers are those of dataset.json; ours would be read as other organs."""
    data = dataset(tmp_path / "data")
    add(data, "P1", *liver_and_spleen())
    arguments = ["--config", str(configuration(tmp_path)), "--data", str(data)]
    own = ["--pseudolabels", str(data / folder), "--work", str(tmp_path / "work")]
    assert main(["pseudolabel", *arguments, *own]) == 2
    assert f"{data / folder}: lies among the data's labels" in capfd.readouterr().err


def test_pseudo_labels_of_a_case_that_there_is_not_are_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    add(data, "P1", liver_and_spleen()[0], None)
    (tmp_path / "annotated.json").write_text('{"P_1": ["liver"]}')
    with pytest.raises(ValueError, match="has no case P_1"):
        find_cases(data, tmp_path)
