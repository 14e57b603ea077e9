"""The networks that are trained here, in plain PyTorch: two kinds of U-Net and their parts.

Each has an attribute ``multiple``: the voxels (z, y, x) of which input sizes must be multiples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from inference.grid import Shape
from training.networks.depthwise import DepthwiseConv3d

_NORMS: dict[str, Any] = {
    "instance": lambda channels: InstanceNorm(channels, affine=True),
    "batch": lambda channels: nn.BatchNorm3d(channels, momentum=0.02),  # batches are small
    "group": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),
}
_ACTIVATIONS: dict[str, Any] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
}


class InstanceNorm(nn.InstanceNorm3d):
    """Instance norm that trains faster on a CPU; the same numbers.

    PyTorch's goes through the batch norm of one patch with all channels of all patches, for which
    it copies what lies in channels-last order, forward and backward: a fifth of a training step
    of nnU-Net's network. The batch norm of each patch needs no copy.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (n, channels, z, y, x)."""
        if not self.training or input.is_cuda:
            return super().forward(input)
        patches = [
            batch_norm(patch, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for patch in input.split(1)
        ]
        return torch.cat(patches) if len(patches) > 1 else patches[0]


class UNet(nn.Module):
    """nnU-Net's plain convolutional U-Net (Isensee et al. 2021), of any width and stride.

    Two convolutions a stage, the first of which is strided; transposed convolutions up; skip
    connections; a 1 x 1 x 1 convolution to the classes.

    Args:
        features: channels per stage, finest first.
        kernels: kernel size (z, y, x) per stage.
        strides: stride (z, y, x) with which each stage begins; the first stage's is (1, 1, 1).
        norm: "instance", "batch" or "group" (8 groups, or what divides the channels).
        activation: "leaky_relu" or "relu".
        bias: whether the stages' convolutions have one (before a norm it changes nothing, but
            nnU-Net's have one).
        deep_supervision: whether each decoder stage has an output of its own, for training.
        classes: output channels, background included.
        light_finest: whether the finest stage, half of all the work, has one convolution a side
            instead of two, and adds its skip connection instead of concatenating it.

    Shape:
        (n, 1, z, y, x) to (n, classes, z, y, x); z, y, x are multiples of `multiple`. While
        training with deep supervision: a list of such logits, the finest first.
    """

    def __init__(
        self,
        features: Sequence[int],
        kernels: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        norm: str,
        activation: str,
        bias: bool,
        deep_supervision: bool,
        classes: int,
        light_finest: bool = False,
    ) -> None:
        super().__init__()
        if not len(features) == len(kernels) == len(strides) or any(s != 1 for s in strides[0]):
            raise ValueError("network: features, kernels and strides (first 1) are per stage")
        self.multiple = _total(strides)
        self.light_finest = light_finest
        unstrided = (1, 1, 1)

        def stage(level: int, before: int, stride: Sequence[int]) -> nn.Sequential:
            layers: list[nn.Module] = []
            kernel, after = kernels[level], features[level]
            convolutions = ((before, stride), (after, unstrided))
            for channels, step in convolutions[: 1 if light_finest and level == 0 else 2]:
                z, y, x = kernel
                padding = (z // 2, y // 2, x // 2)
                layers += [
                    nn.Conv3d(channels, after, (z, y, x), _triple(step), padding, bias=bias),
                    _NORMS[norm](after),
                    _ACTIVATIONS[activation](),
                ]
            return nn.Sequential(*layers)

        self.encoder = nn.ModuleList(
            stage(level, before, stride)
            for level, (before, stride) in enumerate(zip([1, *features[:-1]], strides, strict=True))
        )
        self.upsample = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, _triple(stride), _triple(stride))
            for (fine, coarse), stride in zip(pairwise(features), strides[1:], strict=True)
        )
        self.decoder = nn.ModuleList(
            stage(level, fine if light_finest and level == 0 else 2 * fine, unstrided)
            for level, fine in enumerate(features[:-1])
        )
        self.head = nn.Conv3d(features[0], classes, kernel_size=1)
        self.deep_heads = nn.ModuleList(
            nn.Conv3d(n, classes, kernel_size=1) for n in features[1:-1] if deep_supervision
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits for normalised intensities."""
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        deep = []
        for level in reversed(range(len(self.decoder))):
            x, skip = self.upsample[level](x), skips[level]
            added = self.light_finest and level == 0
            x = self.decoder[level](x + skip if added else torch.cat([x, skip], dim=1))
            if self.training and len(self.deep_heads) and level > 0:
                deep.append(self.deep_heads[level - 1](x))
        logits: Tensor = self.head(x)
        return [logits, *reversed(deep)] if deep else logits


class LightUNet(nn.Module):
    """A U-Net of few parameters: depthwise separable convolutions, attention over channels.

    Two convolutions a stage, max pooling down, transposed convolutions up, skip connections.
    With ``separable`` each convolution is a depthwise one and a pointwise one (Chollet 2017),
    with ``attention`` each encoder stage ends with Efficient Channel Attention (Wang et al.
    2020). Without either and with batch norm it is the plain U-Net that it is compared with.

    Args:
        features: channels per stage, finest first.
        pooling: (z, y, x) by which each stage is coarser than the one before.
        norm: as of `UNet`.
        separable: whether convolutions are depthwise separable.
        attention: whether there is channel attention in the encoder.
        classes: output channels, background included.

    Shape:
        (n, 1, z, y, x) to (n, classes, z, y, x); z, y, x are multiples of `multiple`.
    """

    def __init__(
        self,
        features: Sequence[int],
        pooling: Sequence[int],
        norm: str,
        separable: bool,
        attention: bool,
        classes: int,
    ) -> None:
        super().__init__()
        step = _triple(pooling)
        self.multiple = _total([step] * (len(features) - 1))

        def stage(before: int, after: int, attended: bool) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels in (before, after):
                if separable:
                    layers += [
                        DepthwiseConv3d(channels),
                        nn.Conv3d(channels, after, 1, bias=False),
                    ]
                else:
                    layers.append(nn.Conv3d(channels, after, 3, padding=1, bias=False))
                layers += [_NORMS[norm](after), nn.ReLU(inplace=True)]
            if attended:
                layers.append(ChannelAttention(after))
            return nn.Sequential(*layers)

        self.encoder = nn.ModuleList(stage(a, b, attention) for a, b in pairwise([1, *features]))
        self.pool = nn.MaxPool3d(step, step)
        self.upsample = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, step, step) for fine, coarse in pairwise(features)
        )
        self.decoder = nn.ModuleList(stage(2 * n, n, False) for n in features[:-1])
        self.head = nn.Conv3d(features[0], classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for normalised intensities."""
        skips = []
        for level, stage in enumerate(self.encoder):
            x = stage(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](torch.cat([self.upsample[level](x), skips[level]], dim=1))
        logits: Tensor = self.head(x)
        return logits


class ChannelAttention(nn.Module):
    """Efficient Channel Attention (Wang et al. 2020): channels weighted by their means.

    A 1D convolution runs over the channels' means; its kernel grows with their number C: the
    odd number next to (log2 C + 1) / 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = int(abs((math.log2(channels) + 1) / 2))
        size += 1 - size % 2
        self.convolution = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, (n, channels, z, y, x)."""
        means = x.mean(dim=(2, 3, 4))
        weights = torch.sigmoid(self.convolution(means[:, None])[:, 0])
        return x * weights[:, :, None, None, None]


def _triple(values: Sequence[int]) -> Shape:
    z, y, x = values
    return z, y, x


def _total(strides: Sequence[Sequence[int]]) -> Shape:
    z, y, x = (math.prod(axis) for axis in zip(*strides, strict=True))
    return z, y, x
