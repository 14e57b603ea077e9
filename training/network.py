"""The networks that are trained here, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """A plain 3D U-Net: two 3x3x3 convolutions a stage, halved five-fold box, skip connections.

    The layout of nnU-Net's PlainConvUNet (instance norm, LeakyReLU, strided convolutions down,
    transposed ones up), kept isotropic and narrow for a CPU.

    Args:
        features: channels per stage, finest first; every later stage halves each axis.
        classes: output channels, background included.

    Shape:
        (n, 1, z, y, x) to (n, classes, z, y, x); z, y, x are multiples of `multiple`.
    """

    def __init__(self, features: Sequence[int], classes: int) -> None:
        super().__init__()
        self.multiple = 2 ** (len(features) - 1)
        self.encoder = nn.ModuleList(
            _stage(before, after, stride=1 if i == 0 else 2)
            for i, (before, after) in enumerate(pairwise([1, *features]))
        )
        self.upsample = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2)
            for fine, coarse in pairwise(features)
        )
        self.decoder = nn.ModuleList(_stage(2 * fine, fine, stride=1) for fine in features[:-1])
        self.head = nn.Conv3d(features[0], classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for normalised intensities."""
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for up, stage in zip(reversed(self.upsample), reversed(self.decoder), strict=True):
            x = stage(torch.cat([up(x), skips.pop()], dim=1))
        return self.head(x)


def _stage(before: int, after: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, channels in enumerate((before, after)):
        layers += [
            nn.Conv3d(channels, after, 3, stride if i == 0 else 1, padding=1, bias=False),
            nn.InstanceNorm3d(after, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)
