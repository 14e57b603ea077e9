"""Where a forward pass is in bf16: where it pays, and where it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_TRUSTED_SLICES = 16
_TRUSTED_COARSEST = 3


def autocast(image: Tensor, multiple: Sequence[int]) -> torch.autocast:
    """Mixed precision in bf16, where it pays and can be trusted: the context of a forward pass.

    Elsewhere the pass is in fp32:

    - on a CPU that has no instructions for bf16: emulated, a step took over thirty times fp32's
      time (with AVX2 alone, torch 2.13);
    - on a GPU that has none, before NVIDIA's Ampere: PyTorch would emulate it there too;
    - on any CPU for patches of few slices, and where little is left of them at the coarsest stage:
      there the gradients of oneDNN's bf16 convolutions write beyond their memory (torch 2.13; with
      AMX, less than 8 slices of some 100 x 100 voxels: the process crashes; with AVX512_BF16, one
      or two voxels at the coarsest stage: infinite gradients, now and then).

    Args:
        image: the network's input (n, 1, z, y, x).
        multiple: the network's: how much coarser its coarsest stage is (z, y, x).
    """
    size = image.shape[2:]
    coarsest = min(n // step for n, step in zip(size, multiple, strict=True))
    large = size[0] >= _TRUSTED_SLICES and coarsest >= _TRUSTED_COARSEST
    if image.device.type == "cuda":
        pays = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        pays = large and _cpu_computes_in_bf16()
    return torch.autocast(image.device.type, torch.bfloat16, enabled=pays)


def _cpu_computes_in_bf16() -> bool:
    """Whether the CPU has instructions for it (PyTorch's cpuinfo; "bf16" is Arm's name)."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
