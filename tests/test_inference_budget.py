"""Memory for one case after the other, with a network that holds some."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inference.model import Model
from inference.network.budget import Budget


class Holding:
    """A network that holds memory from when it is compiled until it is let go."""

    held = 0

    def release(self) -> None:
        self.held = 0


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Any:
    network = Holding()
    monkeypatch.setattr("inference.network.budget.free_memory", lambda: 1000 - network.held)
    return network


def test_what_a_case_gets_does_not_depend_on_the_one_before(tiny: Model, network: Any) -> None:
    budget, plan = Budget(), replace(tiny.plan, multiple=(16, 16, 16))
    first = budget.grant((60, 64, 64), plan, network, held=0, reserved=100)
    assert 0 < first <= 900
    for shape in ((64, 64, 64), (32, 32, 32), (64, 64, 64)):  # the same, smaller, larger
        network.held = 700
        assert budget.grant(shape, plan, network, held=0, reserved=100) == first
    network.held = 700
    budget.grant((64, 64, 64), plan, network, held=0, reserved=100)
    assert network.held == 700  # it is used again


def test_a_finer_ct_on_the_same_grid_leaves_less(tiny: Model, network: Any) -> None:
    """Its own voxels and labels take more, and the network stays compiled."""
    budget = Budget()
    usual = budget.grant((64, 64, 64), tiny.plan, network, held=0, reserved=100)
    network.held = 700
    assert budget.grant((64, 64, 64), tiny.plan, network, held=40, reserved=350) == usual - 290
    assert budget.grant((64, 64, 64), tiny.plan, network, held=0, reserved=100) == usual
    assert network.held == 700


def test_windows_stay_compiled(tiny: Model, network: Any) -> None:
    budget, plan = Budget(), replace(tiny.plan, tiling="window")
    network.held = 300
    assert 0 < budget.grant((60, 64, 64), plan, network, held=0, reserved=0) <= 700
    assert network.held == 300


def test_nothing_is_granted_where_nothing_is_left(tiny: Model, network: Any) -> None:
    assert Budget().grant((60, 64, 64), tiny.plan, network, held=0, reserved=2000) == 0


def test_what_a_caller_keeps_is_not_granted_again(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more than the network can hold it is known that it is not the network's."""
    free = [1000]
    monkeypatch.setattr("inference.network.budget.free_memory", lambda: free[0])
    budget = Budget()
    network: Any = Holding()
    first = budget.grant((64, 64, 64), tiny.plan, network, held=0, reserved=0)
    free[0] = 120
    network.held = 1
    assert budget.grant((64, 64, 64), tiny.plan, network, held=0, reserved=0) <= 120 < first
    assert network.held == 0
