"""Where a pass is in bf16: where there are instructions for it, and where it can be trusted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch

from training.networks.mixed_precision import autocast


@pytest.mark.parametrize(
    ("slices", "coarsest", "dtype"),
    [(3, 96, torch.float32), (16, 2, torch.float32), (16, 4, torch.bfloat16)],
)
def test_patches_of_few_voxels_are_in_full_precision_on_a_cpu(
    slices: int, coarsest: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bf16 the process crashed, or gradients were infinite: oneDNN wrote beyond its memory.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    network = torch.nn.Conv3d(1, 16, 3, padding=1)
    image = torch.rand(2, 1, slices, 96, 96)
    with autocast(image, (1, 96 // coarsest, 96 // coarsest)):
        answer = network(image)
    assert answer.dtype == dtype
    answer.float().pow(2).mean().backward()
    assert network.weight.grad is not None
    true = torch.autograd.grad(network(image).pow(2).mean(), network.weight)[0]
    assert torch.allclose(network.weight.grad, true, rtol=0.05, atol=0.01 * float(true.abs().max()))


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_f": True, "avx512_vnni": True}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
    ],
)
def test_a_cpu_without_bf16_does_not_emulate_it(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with autocast(torch.rand(1, 1, 64, 64, 64), (16, 16, 16)):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == dtype


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_without_bf16_computes_in_fp32(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr("torch.cuda.is_bf16_supported", supported)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    image: Any = SimpleNamespace(device=torch.device("cuda"), shape=(1, 1, 32, 64, 64))
    with autocast(image, (16, 16, 16)):
        assert torch.is_autocast_enabled("cuda") == native
