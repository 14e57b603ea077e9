"""From prepared cases to patches."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import SimpleITK as sitk
import torch

from inference.organs import LABEL_OF, ORGANS
from inference.phantom import make_phantom
from training.config import Config
from training.data.cases import find_cases
from training.data.tissues import (
    UNKNOWN,
)
from training.patches.samples import Samples
from training.patches.volume import VOLUMES
from training.preparation.jobs import what_is_not_drawn
from training.preparation.prepare import prepare
from training.preparation.prepared_file import mapped
from training.sampling.chance import Chance


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: two phantoms with all organs, one of them an atlas, and one mirrored."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("good", "whole", "mirrored")):
        ct, labels = make_phantom(shape=(40, 48, 64), spacing=(7.0, 7.0, 7.0), seed=number)
        if name == "mirrored":
            flipped = sitk.GetArrayFromImage(labels)[:, :, ::-1]
            wrong = sitk.GetImageFromArray(np.ascontiguousarray(flipped))
            wrong.CopyInformation(labels)
            labels = wrong
        folder = root / "cases" / name
        folder.mkdir(parents=True)
        sitk.WriteImage(ct, str(folder / "ct.nii.gz"))
        sitk.WriteImage(labels, str(folder / "labels.nii.gz"))
        if name == "whole":
            sitk.WriteImage(labels, str(folder / "full_labels.nii.gz"))
            names = {str(v): n for v, n in ORGANS.items()}
            (folder / "full_labels_names.json").write_text(json.dumps(names))
        (folder / "meta.json").write_text(json.dumps({"annotated_labels": [1, 3, 5]}))
    return root


def _config(**changes: Any) -> Config:
    base = Config.load(Path(__file__).parents[1] / "training" / "configs" / "abdoseg.yaml")
    small = {
        "patch": (32, 32, 48),
        "spacing": (6.0, 6.0, 6.0),
        "synthesis_spacing": 6.0,
        "drawn_at_once": 1,
        "coarse_first": {},
        "shares": {"synthetic": 0.6, "transferred": 0.2, "labelled": 0.2},
        "holdout": (),
        "empty": (),
    }
    return replace(base, **{**small, **changes})


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    refused = prepare(find_cases(data), out, _config())
    assert any(line.startswith("mirrored: the liver lies left") for line in refused)
    assert (out / "refused.txt").read_text().splitlines() == refused
    return out


@pytest.fixture
def config() -> Config:
    return _config()


def test_preparation_writes_bodies_and_images_and_goes_on(data: Path, prepared: Path) -> None:
    assert {p.stem for p in (prepared / "images").iterdir()} == {"good", "whole"}
    assert {p.stem for p in (prepared / "bodies").iterdir()} == {"whole", "good__whole"}
    with np.load(prepared / "images" / "good.npz") as case:
        assert case["hu"].shape == case["labels"].shape
        assert case["annotated"].tolist() == [1, 3, 5]
        assert np.abs(case["spacing"] - 6).max() < 0.1
    before = {p: p.stat().st_mtime_ns for p in prepared.rglob("*.npz")}
    prepare(find_cases(data), prepared, _config())
    assert before == {p: p.stat().st_mtime_ns for p in prepared.rglob("*.npz")}


def test_every_process_that_prepares_has_memory_for_a_ct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Pool(ProcessPoolExecutor):
        def __init__(self, workers: int, **rest: Any) -> None:
            asked.append(workers)
            super().__init__(1, **rest)

    monkeypatch.setattr("training.preparation.prepare.ProcessPoolExecutor", Pool)
    monkeypatch.setattr("training.preparation.prepare.usable_threads", lambda: 64)
    for number, free in enumerate((1e9, 9e9, 1e12)):
        monkeypatch.setattr("training.preparation.prepare.free_memory", lambda free=free: int(free))
        prepare([], tmp_path / str(number), _config())
    prepare([], tmp_path / "as told", _config(), workers=3)
    assert asked == [1, 2, 64, 3]


def test_a_real_ct_is_bent_to_every_other_patient(prepared: Path, config: Config) -> None:
    """The atlas has a CT: it is bent to the other case; the labels are the atlas's own."""
    assert [p.stem for p in (prepared / "transferred").iterdir()] == ["good__whole"]
    with np.load(prepared / "transferred" / "good__whole.npz") as case:
        assert case["hu"].shape == case["labels"].shape
        assert case["annotated"].tolist() == [1, 3, 5]
        assert case["spacing"].tolist() == [2.0, 2.0, 2.0]
        liver, air = case["labels"] == 1, case["hu"] < -500
        assert liver.any() and air.any()
        # Its other organs have labels too, which nobody vouches for.
        assert set(np.unique(case["labels"])) == {0, 1, 3, 5, UNKNOWN}
        # Only at an edge to air can interpolated values be nearer to air's.
        assert (liver & air).sum() < 0.02 * liver.sum()
    samples = Samples(prepared, replace(config, shares={"transferred": 1.0}))
    assert samples[0].image.shape == (1, 32, 32, 48)
    with pytest.raises(FileNotFoundError, match="nothing to train on"):
        Samples(prepared, replace(config, shares={"transferred": 1.0}), ("whole",))


def test_shares_of_nothing_that_is_there(prepared: Path, config: Config, tmp_path: Path) -> None:
    only = replace(config, shares={"pseudo": 0.5, "empty": 0.5})
    with pytest.raises(
        FileNotFoundError, match=r"it has .*labelled.*, and the shares are of pseudo, e"
    ):
        Samples(prepared, only)
    (tmp_path / "refused.txt").write_text("a: is no CT\n")
    with pytest.raises(
        FileNotFoundError, match=r"every case was refused \(.*refused\.txt says why"
    ):
        Samples(tmp_path, only)


def test_held_out_cases_never_become_patches(data: Path, tmp_path: Path, config: Config) -> None:
    prepare(find_cases(data), tmp_path, _config(holdout=("whole",)))
    # The only atlas is held out, and of organs without a body nothing is drawn.
    assert not list((tmp_path / "bodies").glob("*.npz"))
    samples = Samples(tmp_path, replace(config, holdout=("whole",)))
    assert [p.stem for p in samples.sources["labelled"]] == ["good"]


def test_organs_are_drawn_without_a_body_only_where_there_is_no_ct(
    data: Path, tmp_path: Path
) -> None:
    cases = [case for case in find_cases(data) if not case.tissue_file]
    said = what_is_not_drawn(cases, _config())
    assert said is not None and "no CT is drawn" in said
    prepare(cases, tmp_path / "cts", _config())
    assert not list((tmp_path / "cts" / "bodies").glob("*.npz"))
    maps = [replace(case, kind="labelmap", image=None) for case in cases if case.name == "good"]
    said = what_is_not_drawn(maps, _config())
    assert said is not None and "organs are drawn alone" in said
    said = what_is_not_drawn([], _config())
    assert said is not None and "no CT is drawn" in said
    prepare(maps, tmp_path / "maps", _config())
    assert [p.name for p in (tmp_path / "maps" / "bodies").glob("*.npz")] == ["good.npz"]
    assert what_is_not_drawn(find_cases(data), _config()) is None
    assert what_is_not_drawn(cases, _config(shares={"labelled": 1.0})) is None


def test_patches_depend_on_their_index_alone(prepared: Path, config: Config) -> None:
    first, second = Samples(prepared, config), Samples(prepared, config)
    second[3]
    for a, b in zip(first[7], second[7], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[7][0], first[8][0])


def test_bodies_whose_organs_are_all_of_one_patient_are_drawn_more_often(
    prepared: Path, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "bodies").mkdir()
    for name, annotated in (("all", list(ORGANS)), ("some", [1, 3, 5])):
        with np.load(prepared / "bodies" / "whole.npz") as content:
            assert content["annotated"].tolist() == [1, 3, 5]
            arrays = {key: content[key] for key in content.files}
        arrays["annotated"] = np.array(annotated, np.uint8)
        np.savez(tmp_path / "bodies" / f"{name}.npz", **arrays)
    samples = Samples(tmp_path, replace(config, shares={"synthetic": 1.0}))
    drawn = []
    load = samples._load
    samples._load = lambda path: (drawn.append(path.stem), load(path))[1]  # type: ignore[method-assign, func-returns-value]
    for index in range(60):
        samples[index]
    assert 2 < drawn.count("some") < 24  # 12 are expected, of equals 30


def test_patches_say_what_was_annotated(prepared: Path, config: Config) -> None:
    real = Samples(prepared, replace(config, shares={"labelled": 1.0}))
    image, labels, annotated, weight = real[0]
    assert image.shape == (1, 32, 32, 48) and labels.shape == (32, 32, 48)
    assert weight == 1
    assert annotated.nonzero().flatten().tolist() == [0, 1, 3, 5]
    low = (config.clip[0] - config.subtract) / config.divide
    high = (config.clip[1] - config.subtract) / config.divide
    assert image.min() >= low - 1e-5 and image.max() <= high + 1e-5
    drawn = Samples(prepared, replace(config, shares={"synthetic": 1.0}))
    assert drawn[0].annotated.all()


def test_no_organ_is_labelled_beyond_a_synthetic_field_of_view(
    prepared: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left_half(shape: torch.Size, chance: Chance) -> torch.Tensor:
        return (torch.arange(shape[2]) < shape[2] // 2).expand(shape[1:])

    monkeypatch.setattr("training.synthetic.intensities.field_of_view", left_half)
    samples = Samples(prepared, replace(config, shares={"synthetic": 1.0}))
    labels = torch.stack([samples[index].labels for index in range(8)])
    middle = labels.shape[-1] // 2
    assert (labels[..., : middle - 1] > 0).any()
    assert not labels[..., middle + 1 :].any()


def test_patches_drawn_at_once_are_one_larger_patch(prepared: Path, config: Config) -> None:
    """In any order, and whichever kind of data they come from."""
    whole = replace(config, patch=(32, 32, 48), shares={"labelled": 0.5, "synthetic": 0.5})
    large = Samples(prepared, whole)
    parts = Samples(prepared, replace(whole, patch=(8, 32, 48), drawn_at_once=4, batch=4))
    for number, order in ((2, (0, 1, 2, 3)), (0, (3, 0, 2, 1)), (1, (2, 3, 0, 1))):
        found = {part: parts[4 * number + part] for part in order}
        pieces = [found[part] for part in (0, 1, 2, 3)]
        assert torch.equal(torch.cat([p.image for p in pieces], dim=1), large[number].image)
        assert torch.equal(torch.cat([p.labels for p in pieces]), large[number].labels)
        assert all(torch.equal(p.annotated, large[number].annotated) for p in pieces)
    later = Samples(prepared, parts.config)  # as a training that goes on within a group
    assert torch.equal(later[6].image, parts[6].image)


def test_synthetic_scans_have_the_spacing_of_some_scanner(prepared: Path, config: Config) -> None:
    def liver(slice_: float, pixel: float) -> float:
        scan = {"slice": [slice_, slice_], "pixel": [pixel, pixel]}
        samples = Samples(
            prepared,
            replace(
                config,
                spacing=(None, None, None),
                augmentation={"scan": scan},
                placement={"rule": "labelled_slices"},
                shares={"synthetic": 1.0},
            ),
        )
        counts = [int((samples[i].labels == LABEL_OF["liver"]).sum()) for i in range(6)]
        return float(np.mean(counts))

    usual = liver(8.0, 8.0)
    assert usual > 200
    assert liver(16.0, 8.0) == pytest.approx(usual / 2, rel=0.3)
    assert liver(8.0, 16.0) == pytest.approx(usual / 4, rel=0.3)


@pytest.mark.parametrize("kind", ["synthetic", "labelled"])
def test_a_cropped_field_of_view_ends_about_where_the_body_does(
    prepared: Path, config: Config, kind: str
) -> None:
    def shares(pixel: float) -> list[float]:
        scan = {"slice": [8.0, 8.0], "pixel": [pixel, pixel]}
        samples = Samples(
            prepared,
            replace(
                config,
                spacing=(8.0, None, None),
                augmentation={"scan": scan, "cropped": {"probability": 1.0}},
                placement={"rule": "anywhere", "foreground": 1.0},
                shares={kind: 1.0},
            ),
        )
        found = []
        for number in range(4):
            body = (samples[number].image[0] > samples[number].image.min()).any(dim=0)
            for axis in (0, 1):
                found.append(float(body.any(dim=axis).float().mean()))
        return found

    cropped = shares(2.0)
    # 1 / 1.25 where the body is widest; bodies are not the same on every processor.
    assert np.mean(cropped) > 0.8 and min(cropped) > 0.6
    assert len(set(cropped)) > 1 or min(cropped) == 1
    if kind == "synthetic":
        assert shares(30.0) == cropped  # whatever the scanner's pixels


def test_volumes_stay_in_memory_as_far_as_there_is_room(prepared: Path, config: Config) -> None:
    none_stays = Samples(prepared, config)
    files = [path for paths in none_stays.sources.values() for path in paths]
    assert none_stays.load_all() == len(files)
    size = sum(array.nbytes for path in files for array in mapped(path, VOLUMES).values())
    for room, fewest, most in ((size, 0, 0), (size - 1, 1, len(files) - 1)):
        samples = Samples(prepared, config, room=room)
        assert fewest <= samples.load_all() <= most
        held = [v.nbytes for each in samples._known.values() for v in each.arrays.values()]
        assert 0 < sum(held) <= room
        for number in range(4):
            for one, other in zip(samples[number], none_stays[number], strict=True):
                assert torch.equal(one, other)


def test_a_file_that_is_prepared_anew_meanwhile_is_said(
    prepared: Path, config: Config, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path / "prepared")
    samples = Samples(tmp_path / "prepared", config)
    samples.load_all()
    for path in (tmp_path / "prepared").rglob("*.npz"):
        os.utime(path, (0, 0))
    with pytest.raises(ValueError, match=r"\.npz: was prepared anew while a training draws"):
        samples[0]


def test_nothing_to_train_on_is_said(tmp_path: Path, config: Config) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to train on"):
        Samples(tmp_path, config)
    with pytest.raises(FileNotFoundError, match="no imagesTr/, cases/"):
        find_cases(tmp_path)
