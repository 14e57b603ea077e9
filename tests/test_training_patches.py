"""Which file a patch is drawn from, which part of it, and on which grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from small_dataset import configuration

from inference.organs import LABEL_OF, ORGANS
from training.config import Config
from training.patches.samples import Samples
from training.preparation.prepared_file import opened

pytestmark = pytest.mark.usefixtures("one_thread")

IN_THE_CHEST = (LABEL_OF["aorta"], LABEL_OF["esophagus"])


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """A prepared folder in which every file is of one brightness, by which patches tell it."""
    shape = (12, 16, 16)
    files = {
        "images/atlas": 10,
        "images/P1": 20,
        "images/P1__b": 30,
        "images/bare": 40,
        "transferred/P1__atlas": 50,
        "transferred/P2__other": 60,
        "empty/head": 70,
        "pseudo/P3": 80,
    }
    for name, hu in files.items():
        labels = np.zeros(shape, np.uint8)
        if "empty" not in name:
            labels[3:9, 4:12, 4:12] = 1
        told = {"images/bare": [], "empty/head": [v for v in ORGANS if v not in IN_THE_CHEST]}
        path = tmp_path / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(
            path,
            hu=np.full(shape, hu, np.int16),
            labels=labels,
            annotated=np.array(told.get(name, [1]), np.uint8),
            spacing=[12.0] * 3,
        )
    return tmp_path


def drawn(folder: Path, aside: tuple[str, ...] = (), **changes: Any) -> list[tuple[int, Any]]:
    """Brightness and patch of many samples."""
    shares = {"labelled": 0.3, "transferred": 0.3, "empty": 0.2, "pseudo": 0.2}
    placement = {"rule": "anywhere", "foreground": 0.5}
    options = {"shares": shares, "pseudo_weight": 0.25, "placement": placement, **changes}
    config = Config.load(configuration(folder, **options))
    samples = Samples(folder, config, aside)
    patches = [samples[i] for i in range(120)]
    hu = [p.image * config.divide + config.subtract for p in patches]
    return [(round(float(h.max())), p) for h, p in zip(hu, patches, strict=True)]


def test_patches_come_from_every_kind_by_its_share(kinds: Path) -> None:
    counts: dict[int, int] = {}
    for hu, patch in drawn(kinds):
        counts[hu] = counts.get(hu, 0) + 1
        assert float(patch.weight) == (0.25 if hu == 80 else 1.0)
    assert set(counts) == {10, 20, 30, 50, 60, 70, 80}  # "bare" has no labels
    assert 20 < counts[50] + counts[60] < 52  # 36 are expected
    assert 10 < counts[70] < 40


def test_patches_around_an_organ_show_nothing_beside_the_body(tmp_path: Path) -> None:
    hu = np.full((24, 40, 40), -1000, np.int16)
    hu[:, 8:30, 5:33] = 40
    labels = np.zeros(hu.shape, np.uint8)
    labels[0, 29, 5] = 1  # at the edge of the body
    labels[12, 15, 20] = 2
    path = tmp_path / "images" / "P1.npz"
    path.parent.mkdir()
    np.savez(path, hu=hu, labels=labels, annotated=np.array([1, 2], np.uint8), spacing=[12.0] * 3)
    placement = {"rule": "anywhere", "foreground": 1.0}
    options = {"shares": {"labelled": 1.0}, "placement": placement, "augmentation": {}}
    config = Config.load(configuration(tmp_path, patch=[8, 16, 32], clip=[-1000, 200], **options))
    samples = Samples(tmp_path, config)
    seen = set()
    for i in range(30):
        patch = samples[i]
        shown = (patch.image[0] * config.divide + config.subtract).round()
        assert (shown[..., 2:30] == 40).all()  # 28 wide, in the middle of 32
        assert (shown[..., :2] == -1000).all() and (shown[..., 30:] == -1000).all()
        seen |= set(patch.labels.unique().tolist()) - {0}
    assert seen == {1, 2}


@pytest.mark.parametrize("spacing", [12.0, 11.95])
@pytest.mark.parametrize("placement", ["labelled_slices", "anywhere"])
def test_a_patch_that_is_not_varied_is_a_part_of_the_ct(
    tmp_path: Path, placement: str, spacing: float
) -> None:
    """Voxel by voxel, so the labels are still those of the image."""
    hu = np.random.default_rng(5).integers(-250, 200, (25, 41, 40)).astype(np.int16)
    labels = (hu > 50).astype(np.uint8)
    path = tmp_path / "images" / "P1.npz"
    path.parent.mkdir()
    np.savez(path, hu=hu, labels=labels, annotated=np.array([1], np.uint8), spacing=[spacing] * 3)
    rule = {"rule": placement, **({"foreground": 0.5} if placement == "anywhere" else {})}
    options = {"shares": {"labelled": 1.0}, "placement": rule, "augmentation": {}}
    config = Config.load(configuration(tmp_path, patch=[8, 16, 32], clip=[-1000, 200], **options))
    samples = Samples(tmp_path, config)
    parts = np.lib.stride_tricks.sliding_window_view(hu, (8, 16, 32))
    for i in range(12):
        image = samples[i].image[0].numpy() * config.divide + config.subtract
        near = np.abs(parts[..., 0, 0, 0] - image[0, 0, 0]) < 0.5
        assert any(np.abs(part - image).max() < 0.5 for part in parts[near])
        assert np.array_equal(samples[i].labels.numpy() == 1, image > 50.5)


def test_a_ct_without_organs_tells_that_all_but_those_of_the_chest_are_absent(kinds: Path) -> None:
    patches = [patch for hu, patch in drawn(kinds, shares={"empty": 1.0}) if hu == 70]
    assert len(patches) == 120
    for patch in patches:
        assert not patch.labels.any()
        assert patch.annotated.tolist() == [v not in IN_THE_CHEST for v in range(1 + len(ORGANS))]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("atlas", {20, 30, 60, 70, 80}),  # what was bent from it goes too
        ("P1", {10, 60, 70, 80}),  # "P1__b" cannot be told from P1 with an atlas b
        ("P1__b", {10, 20, 50, 60, 70, 80}),
        ("other", {10, 20, 30, 50, 70, 80}),
        ("head", {10, 20, 30, 50, 60, 80}),
    ],
)
def test_nothing_of_a_held_out_case_is_drawn(kinds: Path, name: str, left: set[int]) -> None:
    assert {hu for hu, _ in drawn(kinds, (name,))} == left
    assert {hu for hu, _ in drawn(kinds, (), holdout=[name])} == left


def test_the_first_steps_are_coarser_in_whole_batches(kinds: Path) -> None:
    coarse = {"share": 0.4, "spacing": [24.0] * 3, "patch": [4, 8, 8]}
    config = Config.load(configuration(kinds, coarse_first=coarse, iterations=6, batch=4))
    samples = Samples(kinds, config)
    shapes = [tuple(samples[i].labels.shape) for i in range(24)]
    assert shapes == [(4, 8, 8)] * 12 + [(8, 12, 12)] * 12  # 2.4 steps: three


def test_a_prepared_file_is_opened_once_to_see_what_it_tells(
    kinds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[Path] = []

    def counted(path: Path) -> Any:
        looked_at.append(path)
        return opened(path)

    monkeypatch.setattr("training.patches.sources.opened", counted)
    shares = {"labelled": 0.4, "transferred": 0.3, "empty": 0.3}
    samples = Samples(kinds, Config.load(configuration(kinds, shares=shares)))
    assert samples.untold == IN_THE_CHEST
    assert len(looked_at) == len(set(looked_at)) == 7  # with "bare", which has no labels
