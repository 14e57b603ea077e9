"""Batches that a thread makes ahead."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch

from training.config import Config
from training.patches.batches import batches
from training.patches.samples import Patch, Samples

pytestmark = pytest.mark.usefixtures("one_thread")


def test_batches_come_in_order_from_a_thread_that_ends(prepared: Path, config: Config) -> None:
    samples = Samples(prepared, config)
    numbers = [[2, 5], [1, 0], [3, 4], [7, 6], [9, 8], [11, 10]]
    threads = torch.get_num_threads()
    with batches(samples, numbers) as stream:
        assert any(thread.name == "batches" for thread in threading.enumerate())
        for expected, batch in zip(numbers[:2], stream, strict=False):
            wanted = [samples[number] for number in expected]
            for part, tensor in enumerate(batch):
                assert torch.equal(tensor, torch.stack([patch[part] for patch in wanted]))
    # Four of the batches were not asked for.
    assert not any(thread.name == "batches" for thread in threading.enumerate())
    assert torch.get_num_threads() == threads


def test_what_goes_wrong_in_the_thread_is_raised_in_the_loop(
    prepared: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = Samples(prepared, config)
    made = samples[0]

    def fail_at_3(self: Samples, index: int) -> Patch:
        if index == 3:
            raise MemoryError("full")
        return made

    monkeypatch.setattr(Samples, "__getitem__", fail_at_3)
    with batches(samples, [[0], [1], [2], [3], [4]]) as stream:
        assert [len(next(stream).image) for _ in range(3)] == [1, 1, 1]
        with pytest.raises(MemoryError, match="full"):
            next(stream)
    assert not any(thread.name == "batches" for thread in threading.enumerate())
