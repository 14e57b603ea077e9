"""The weights of a model folder, back in PyTorch: what has been exported can be trained further."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inference.errors import ModelError, last_line
from inference.organs import LABEL_OF
from inference.plan import Plan

_CONVOLUTIONS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm3d)
_LAYERS = _CONVOLUTIONS + _NORMS
"""What has weights in `training.networks.unets`."""

_KERNEL_RMS = 0.2
"""About what kernels before a batch norm have in a long training, to judge by how far its last 500
steps, at a rate of 0.0012, moved those of `abdoseg` (2 to 12 %)."""


@torch.no_grad()
def fill_from_ir(network: nn.Module, folder: Path) -> Plan:
    """Give a network the floating-point weights of a model folder.

    The export has folded each batch norm into the convolution before it. Such a norm has statistics
    of 0 and 1 here; `measure_norms` gives it others. A folded kernel may be a hundred times smaller
    than the one that was trained, and Muon's and AdamW's steps are as large for a small kernel as
    for a large one. So each of its channels is scaled to the size that kernels have in training,
    and its norm scales back.
    Outputs of deep supervision are not exported and stay as they are. Weights are stored in
    half precision: that is how exactly they come back.

    Args:
        network: of the same kind; left in evaluation mode.
        folder: a model folder that `training.export.export.export` wrote.

    Returns:
        The folder's plan.

    Raises:
        ModelError: it is no model folder.
        ValueError: it has no floating-point network, that of another architecture, or one of
            other classes.
    """
    plan = Plan.load(folder)
    if plan.channels or plan.outputs or dict(plan.labels) != LABEL_OF:
        raise ValueError(f"{folder}: its classes are not the 13 organs in their order")
    file = plan.networks.get("f32") or plan.networks.get("bf16")
    if file is None:
        raise ValueError(f"{folder}: has no network in floating point")
    layers = _in_order(network.eval())
    stored: list[Tensor] = []
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        weight, bias = layer.weight, layer.bias
        if isinstance(layer, nn.BatchNorm3d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.zero_()
            layer.running_var.fill_(1 - layer.eps)
            weight.fill_(1)
            stored.append(bias)
        elif bias is not None and isinstance(after, nn.BatchNorm3d):
            bias.zero_()
            stored.append(weight)
        else:
            stored += [weight] if bias is None else [weight, bias]
    constants = _constants(folder / file)
    if [_size(values) for values in constants] != [_size(parameter) for parameter in stored]:
        raise ValueError(f"{folder}: its network is another one")
    for parameter, values in zip(stored, constants, strict=True):
        parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
    for layer, after in pairwise(layers):
        if isinstance(layer, _CONVOLUTIONS) and isinstance(after, nn.BatchNorm3d):
            _scale_to_training(layer, after)
    return plan


def _scale_to_training(convolution: Any, norm: nn.BatchNorm3d) -> None:
    """Give each of a kernel's output channels the usual size, and let the norm scale back."""
    kernel = convolution.weight
    outputs = 1 if isinstance(convolution, nn.ConvTranspose3d) else 0
    size = kernel.square().mean([n for n in range(kernel.ndim) if n != outputs]).sqrt()
    factor = torch.where(size > 0, _KERNEL_RMS / size, 1.0)
    kernel.mul_(factor.reshape([-1 if n == outputs else 1 for n in range(kernel.ndim)]))
    norm.weight.div_(factor)


@torch.no_grad()
def measure_norms(network: nn.Module, images: Iterable[Tensor]) -> None:
    """Give batch norms the statistics of what they see, and leave what the network computes.

    Scale and shift are changed as much the other way, so that in evaluation mode the function
    stays the same; in training mode a norm then does roughly the same to a patch.

    Args:
        network: any; nothing happens where there are no batch norms. Left in evaluation mode.
        images: inputs (n, 1, z, y, x), normalised; on the network's device or another.
    """
    seen: dict[nn.BatchNorm3d, list[tuple[Tensor, Tensor]]] = {}

    def look(norm: nn.BatchNorm3d, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        axes = (0, 2, 3, 4)
        seen.setdefault(norm, []).append((x.float().mean(axes), x.float().square().mean(axes)))

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    network.eval()
    for image in images if norms else ():
        network(image.to(norms[0].weight.device))
    for hook in hooks:
        hook.remove()
    for norm, moments in seen.items():
        mean, square = (torch.stack(values).mean(0) for values in zip(*moments, strict=True))
        variance = (square - mean.square()).clamp_min(0)
        old_mean, old_variance = norm.running_mean, norm.running_var
        assert old_mean is not None and old_variance is not None
        scale = norm.weight / (old_variance + norm.eps).sqrt()
        norm.bias.add_(scale * (mean - old_mean))
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        old_mean.copy_(mean)
        old_variance.copy_(variance)


def _size(weights: np.ndarray | Tensor) -> tuple[int, ...]:
    """What must be the same: how many numbers there are, and a convolution's kernel (z, y, x).

    IR has axes of length 1 where PyTorch has none, before a kernel or after a bias.
    """
    kernel = weights.shape[-3:] if len(weights.shape) > 4 else (1, 1, 1)
    return int(np.prod(weights.shape)), *kernel


def _constants(ir: Path) -> list[np.ndarray]:
    """The weights in the order in which they are used.

    Single numbers are passed over: they are settings of layers, a slope below zero say.

    Raises:
        ModelError: the file, or that of its weights, is missing or damaged.
    """
    # Only to read: what is compiled beside torch may crash (`training.__main__`).
    import openvino as ov

    try:
        operations = ov.Core().read_model(ir).get_ordered_ops()
    except RuntimeError as error:
        raise ModelError(f"{ir}: OpenVINO cannot read it ({last_line(error)})") from None
    return [
        np.array(operation.data, np.float32)
        for operation in operations
        if operation.get_type_name() == "Constant"
        and operation.get_output_element_type(0) in (ov.Type.f16, ov.Type.f32)
        and np.prod(operation.get_output_shape(0)) > 1
    ]


def _in_order(network: nn.Module) -> list[Any]:
    """The layers that have weights, in the order in which they run."""
    called: list[str] = []
    shapes = copy.deepcopy(network).to("meta")  # nothing is computed
    for name, layer in shapes.named_modules():
        if isinstance(layer, _LAYERS):
            layer.register_forward_hook(lambda *_, name=name: called.append(name))
    multiple: Sequence[int] = network.multiple  # type: ignore[assignment]
    shapes(torch.empty(1, 1, *(2 * n for n in multiple), device="meta"))
    layers = dict(network.named_modules())
    return [layers[name] for name in called]
