"""What was not annotated is unknown, from the data to the loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from small_dataset import add, configuration, dataset, liver_and_spleen, write

from inference.organs import ORGANS
from training.config import Config
from training.data.cases import find_cases
from training.data.tissues import UNKNOWN
from training.loop.losses import partial_dice_cross_entropy
from training.patches.samples import Samples
from training.preparation.prepare import prepare

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_was_not_annotated_is_unknown_all_the_way(tmp_path: Path) -> None:
    """From dataset.json to the patch: other structures, missing organs, single cases."""
    hu, labels = liver_and_spleen()
    labels[9:11, 6:9, 6:9] = 20  # a colon: none of the organs
    labels[9, 6, 6] = 255  # somebody was not sure
    data = dataset(tmp_path / "data", annotated={"P2": ["liver"]})
    add(data, "P1", hu, labels)
    add(data, "P2", hu, np.where(labels == 1, 1, 0).astype(np.uint8))
    config = Config.load(configuration(tmp_path))
    assert prepare(find_cases(data), tmp_path / "out", config, 1) == []

    told = {}
    for name in ("P1", "P2"):
        other = {"P1": "P2", "P2": "P1"}[name]
        patches = Samples(tmp_path / "out", config, (other,))
        told[name] = patches[0].annotated.nonzero().flatten().tolist()
    assert told == {"P1": [0, 1, 3], "P2": [0, 1]}
    with np.load(tmp_path / "out" / "images" / "P1.npz") as content:
        assert (content["labels"] == UNKNOWN).sum() == 18


def test_what_is_labelled_but_not_annotated_is_unknown(tmp_path: Path) -> None:
    """A spleen that somebody drew roughly and did not vouch for: by hand and by a network."""
    hu, labels = liver_and_spleen()
    data = dataset(tmp_path / "data", annotated={"P1": ["liver"], "P2": ["liver"]})
    add(data, "P1", hu, labels)
    write(data / "imagesTr" / "P2_0000.nii.gz", hu)
    write(data / "pseudolabelsTr" / "P2.nii.gz", labels)
    shares = {"labelled": 0.5, "pseudo": 0.5}
    config = Config.load(configuration(tmp_path, shares=shares))
    assert prepare(find_cases(data), tmp_path / "out", config, 1) == []
    for path in ("images/P1.npz", "pseudo/P2.npz"):
        with np.load(tmp_path / "out" / path) as content:
            assert (content["labels"] == 1).any()
            assert set(np.unique(content["labels"])) == {0, 1, UNKNOWN}
    samples = Samples(tmp_path / "out", config)
    for number in range(8):
        _, drawn_labels, annotated, weight = samples[number]
        logits = torch.zeros(1, 1 + len(ORGANS), *drawn_labels.shape)
        loss = partial_dice_cross_entropy(logits, drawn_labels[None], annotated[None], weight[None])
        assert loss < 10
