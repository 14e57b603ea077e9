"""The network that a configuration describes: made, checked, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from inference.errors import first_line
from inference.grid import Shape
from inference.organs import ORGANS
from training.networks.unets import LightUNet, UNet


def make_network(options: dict[str, Any], classes: int = 1 + len(ORGANS)) -> nn.Module:
    """Build the network that a configuration describes.

    Args:
        options: the configuration's ``network``: its ``kind`` and that class's arguments.
        classes: output channels, background included.

    Raises:
        ValueError: no such kind, or arguments that it does not have.
    """
    options = dict(options)
    kind = options.pop("kind", None)
    try:
        made: nn.Module = {"unet": UNet, "light_unet": LightUNet}[kind](classes=classes, **options)
    except KeyError as error:
        raise ValueError(f"network: there is no {error}") from None
    except TypeError as error:
        raise ValueError(f"network: {str(error).split('__init__() ')[-1]}") from None
    return made


def check_network(options: dict[str, Any], patches: Sequence[Sequence[int]]) -> None:
    """See that there is such a network, and that it takes these patches; costs milliseconds.

    Args:
        options: the configuration's ``network``.
        patches: voxels (z, y, x) of each.

    Raises:
        ValueError: something is wrong.
    """
    with torch.device("meta"):
        try:
            network = make_network(options).eval()
        except (LookupError, RuntimeError, TypeError) as error:
            raise ValueError(f"network: {first_line(error)}") from None
        multiple = multiple_of(network)
        for patch in patches:
            if any(n % step for n, step in zip(patch, multiple, strict=True)):
                raise ValueError(f"patch {list(patch)} is no multiple of the network's {multiple}")
            try:
                network(torch.empty(1, 1, *patch))
            except (LookupError, RuntimeError, TypeError) as error:
                what = f"takes no patch of {list(patch)} voxels"
                raise ValueError(f"network: {what} ({first_line(error)})") from None


def parameter_count(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters())


def multiply_adds(network: nn.Module, patch: Sequence[int]) -> int:
    """Multiply-adds of the convolutions for one patch (z, y, x), as inference runs it.

    The network is left as it is: shapes alone pass through a copy without memory.
    """
    from copy import deepcopy

    from torch.utils.flop_counter import FlopCounterMode

    shapes = deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(torch.empty(1, 1, *patch, device="meta"))
    return int(counter.get_total_flops()) // 2


def multiple_of(network: nn.Module) -> Shape:
    """Voxels (z, y, x) of which the network's input sizes must be multiples."""
    z, y, x = network.multiple  # type: ignore[misc]
    return int(z), int(y), int(x)
