"""Which organs of a pseudo-label are believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from scipy import ndimage

from inference.organs import LABEL_OF, ORGANS
from training.config import Config
from training.judge import judge
from training.looks import look_at
from training.tissues import (
    UNKNOWN,
)


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

    monkeypatch.setattr("training.looks.logits_of", as_seen)
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
