"""Depthwise convolution with gradients that are fast on a CPU.

oneDNN has no fast 3D depthwise gradient (torch 2.13: some twenty times the forward pass). But the
input's gradient is itself a depthwise convolution, and the kernel's is that of three 2D ones,
slices against slices, for which there are fast routines.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


class DepthwiseConv3d(nn.Conv3d):
    """A 3 x 3 x 3 convolution of each channel by itself, zero-padded, without bias.

    Parameters and results are those of ``nn.Conv3d(..., groups=channels)``. Training on a CPU is
    in fp32, under autocast too: oneDNN's depthwise gradients in bf16 are slower.

    Shape:
        (n, channels, z, y, x) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The convolved channels."""
        if x.device.type == "cpu" and torch.is_grad_enabled():
            convolved: Tensor = _Convolve.apply(x, self.weight)  # type: ignore[no-untyped-call]
            return convolved
        return super().forward(x)


class _Convolve(torch.autograd.Function):
    """The convolution and its gradients, channels innermost in memory."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        ctx.save_for_backward(x, kernel)
        return F.conv3d(x, kernel, padding=1, groups=len(kernel))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        x, kernel = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last_3d)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = F.conv3d(gradient, kernel.flip(2, 3, 4), padding=1, groups=len(kernel))
        of_kernel = torch.zeros_like(kernel)
        depth = x.shape[2]
        for above in (-1, 0, 1):  # the slice that is read lies so far above the one written
            read = slice(max(0, above), depth + min(0, above))
            written = slice(max(0, -above), depth + min(0, -above))
            for image, answer in zip(x, gradient, strict=True):
                of_kernel[:, :, 1 + above] += conv2d_weight(
                    image[:, read].transpose(0, 1),
                    kernel.shape[:2] + kernel.shape[3:],
                    answer[:, written].transpose(0, 1),
                    padding=1,
                    groups=len(kernel),
                )
        return of_x, of_kernel
