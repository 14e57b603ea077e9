"""Muon against PyTorch's own for matrices, AdamW, and singular value decomposition."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.loop.muon import Muon, orthogonalise

pytestmark = pytest.mark.usefixtures("one_thread")

_SIDES = st.integers(1, 40)


@given(_SIDES, _SIDES, st.floats(-6, 6), st.integers(0, 99))
def test_singular_values_come_near_one_and_directions_stay(
    rows: int, columns: int, size: float, seed: int
) -> None:
    torch.manual_seed(seed)
    matrix = torch.randn(rows, columns) * 10**size
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.mT @ orthogonalise(matrix) @ v.mT
    kept = values > 0.01 * matrix.norm()
    diagonal = inside.diagonal()[kept]
    assert diagonal.min() > 0.65
    assert diagonal.max() < 1.25
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-3


@pytest.mark.parametrize("rank", [1, 3])
def test_rounding_errors_of_a_gradient_of_few_directions_do_not_grow(rank: int) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(64, rank) @ torch.randn(rank, 1728)))
    assert values[:rank].min() > 0.65
    assert values[0] < 1.25
    assert values[rank] < 1e-3


def test_a_kernel_without_gradient_stays() -> None:
    assert not orthogonalise(torch.zeros(3, 5)).any()


@pytest.mark.parametrize("kind", [nn.Conv3d, nn.ConvTranspose3d])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last_3d])
def test_kernels_follow_pytorchs_muon_and_the_rest_adamw(
    kind: type[nn.Conv3d | nn.ConvTranspose3d], memory: torch.memory_format
) -> None:
    """PyTorch's takes matrices only, and multiplies in bf16."""
    torch.manual_seed(0)
    layer = kind(24, 32, 3)
    layer.to(memory_format=memory)  # type: ignore[call-overload]
    shape = layer.weight.shape
    matrix = nn.Parameter(layer.weight.detach().flatten(1).clone())
    assert layer.bias is not None
    bias = nn.Parameter(layer.bias.detach().clone())
    ours = Muon(layer, lr=0.01, weight_decay=0.1)
    kernels = torch.optim.Muon(
        [matrix], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    biases = torch.optim.AdamW([bias], lr=0.01, weight_decay=0.1)
    before = matrix.detach().clone()
    for _ in range(4):
        gradient = torch.randn(shape)
        layer.weight.grad, layer.bias.grad = gradient.clone(), torch.randn(32)
        matrix.grad, bias.grad = gradient.flatten(1), layer.bias.grad.clone()
        ours.step()
        kernels.step()
        biases.step()
    assert torch.equal(layer.bias, bias)
    there = matrix.detach()
    moved = there - before
    difference = layer.weight.detach().flatten(1) - there
    assert float(difference.norm() / moved.norm()) < 0.02


def test_first_and_last_and_depthwise_convolutions_are_adamws() -> None:
    network = nn.Sequential(
        nn.Conv3d(1, 32, 3), nn.Conv3d(32, 32, 3, groups=32), nn.Conv3d(32, 14, 1)
    )
    adamw = copy.deepcopy(network)
    ours = Muon(network, lr=0.01, weight_decay=0.1)
    theirs = torch.optim.AdamW(adamw.parameters(), lr=0.01, weight_decay=0.1)
    for mine, other in zip(network.parameters(), adamw.parameters(), strict=True):
        mine.grad = torch.randn_like(mine)
        other.grad = mine.grad.clone()
    ours.step()
    theirs.step()
    for mine, other in zip(network.parameters(), adamw.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_saved_state_goes_on_to_the_last_bit() -> None:
    def steps(network: nn.Conv3d, optimiser: Muon, first: int, last: int) -> None:
        for number in range(first, last):
            torch.manual_seed(number)
            for weight in network.parameters():
                weight.grad = torch.randn_like(weight)
            optimiser.step()

    torch.manual_seed(0)
    whole = nn.Conv3d(16, 16, 3, bias=False)
    halves = copy.deepcopy(whole)
    steps(whole, Muon(whole, 0.01, 0.1), 0, 6)
    first = Muon(halves, 0.01, 0.1)
    steps(halves, first, 0, 3)
    second = Muon(halves, 0.01, 0.1)
    second.load_state_dict(first.state_dict())
    steps(halves, second, 3, 6)
    assert torch.equal(whole.weight, halves.weight)


def test_it_takes_no_closure() -> None:
    with pytest.raises(TypeError, match="no closure"):
        Muon(nn.Conv3d(16, 16, 1), 0.01, 0.1).step(lambda: 0.0)
