"""nnU-Net's networks, built from the plans with dynamic-network-architectures."""

from __future__ import annotations

import importlib
import math
import pkgutil
import pydoc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from inference.errors import ModelError, first_line
from training.nnunet.checkpoint import Checkpoint
from training.nnunet.results import required, written_by_nnunet

_MAY_BE_NAMED = ("torch.nn.", "dynamic_network_architectures.")


def architecture_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """How a configuration's network is built: class name, arguments, which of them are classes.

    Plans written before nnU-Net 2.4 are translated, as nnU-Net does itself.

    Raises:
        ModelError: the plans do not say.
    """
    if "architecture" in configuration:
        architecture = dict(configuration["architecture"])
        for key in ("network_class_name", "arch_kwargs", "_kw_requires_import"):
            required(architecture, key)
        return architecture
    kinds = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
    kind = configuration.get("UNet_class_name")
    if kind not in kinds:
        raise ModelError(f"plans: an unknown network {kind!r}")
    dimensions = len(required(configuration, "patch_size"))
    blocks = required(configuration, "n_conv_per_stage_encoder")
    first = required(configuration, "UNet_base_num_features")
    most = required(configuration, "unet_max_num_features")
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": {
            "n_stages": len(blocks),
            "features_per_stage": [min(first * 2**i, most) for i in range(len(blocks))],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": required(configuration, "conv_kernel_sizes"),
            "strides": required(configuration, "pool_op_kernel_sizes"),
            kinds[kind]: blocks,
            "n_conv_per_stage_decoder": required(configuration, "n_conv_per_stage_decoder"),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def strides_of(architecture: Mapping[str, Any], dimensions: int) -> tuple[int, ...] | None:
    """The network's total stride per axis; ``None`` for one that takes its patch size alone.

    Args:
        architecture: what `architecture_of` gives.
        dimensions: 2 or 3; a stride may be one number for all axes.
    """
    strides = architecture["arch_kwargs"].get("strides")
    if not strides:
        return None
    full = [step if isinstance(step, list) else [step] * dimensions for step in strides]
    return tuple(math.prod(axis) for axis in zip(*full, strict=True))


def build(
    architecture: Mapping[str, Any], checkpoint: Checkpoint, inputs: int, outputs: int
) -> nn.Module:
    """A network with the weights of a checkpoint.

    Args:
        architecture: what `architecture_of` gives.
        checkpoint: the weights, and the trainer, of whom one changes the network.
        inputs: number of input channels.
        outputs: number of classes or regions.

    Raises:
        ModelError: the class is none of dynamic-network-architectures, or the weights are not
            those of the network in the plans.
    """
    arguments = dict(architecture["arch_kwargs"])
    if checkpoint.trainer.startswith("nnUNetTrainerBN"):
        arguments["norm_op"] = str(required(arguments, "conv_op")).replace(
            "conv.Conv", "batchnorm.BatchNorm"
        )
        arguments["norm_op_kwargs"] = {"eps": 1e-5, "affine": True}
    for key in architecture["_kw_requires_import"]:
        if isinstance(arguments.get(key), str):
            arguments[key] = _named(arguments[key])
    kind = _network_class(architecture["network_class_name"])
    with written_by_nnunet(f"plans: architecture of {kind.__name__}"):
        try:
            network: nn.Module = kind(
                input_channels=inputs, num_classes=outputs, deep_supervision=False, **arguments
            )
        except RuntimeError as error:  # PyTorch's word for a bad value, and for too little memory
            if "memory" in str(error):
                raise
            raise ValueError(first_line(error)) from None
    try:
        network.load_state_dict(checkpoint.weights)
    except RuntimeError:
        raise ModelError(
            f"trainer {checkpoint.trainer!r}: its weights are not those of the network in the "
            f"plans ({kind.__name__}); a network of a trainer's own cannot be imported"
        ) from None
    return network.eval()


def _network_class(name: str) -> Any:
    """The class of that name; where it moved within its package, it is found by its last part."""
    package, last = "dynamic_network_architectures.architectures", name.rsplit(".", 1)[-1]
    try:
        folder = importlib.import_module(package)
    except ImportError:
        raise ModelError(
            "dynamic-network-architectures is not installed: pip install '.[nnunet]'"
        ) from None
    if name.startswith(_MAY_BE_NAMED[1]) and (found := pydoc.locate(name)) is not None:
        return found
    for module in pkgutil.iter_modules(folder.__path__):
        try:
            found = getattr(importlib.import_module(f"{package}.{module.name}"), last, None)
        except ImportError:  # it needs a package that is not installed
            continue
        if found is not None:
            return found
    raise ModelError(f"plans: network {name} is none that dynamic-network-architectures can build")


def _named(name: str) -> Any:
    """A class that the plans name, out of PyTorch's layers and nnU-Net's blocks alone."""
    found = pydoc.locate(name) if name.startswith(_MAY_BE_NAMED) else None
    if found is None:
        raise ModelError(f"plans: {name} is none of the classes that a network is made of")
    return found


def keep_outputs(network: nn.Module, kept: Sequence[int]) -> nn.Module:
    """Leave out the output channels that are not wanted, in the last layer where that is known."""
    layers = getattr(getattr(network, "decoder", None), "seg_layers", None)
    if not layers:
        return _Chosen(network, kept)
    last = layers[-1]
    last.weight = nn.Parameter(last.weight[list(kept)].detach())
    if last.bias is not None:
        last.bias = nn.Parameter(last.bias[list(kept)].detach())
    last.out_channels = len(kept)
    return network


class Together(nn.Module):
    """The mean of several networks' logits; of a 2D network, slice by slice.

    Args:
        networks: one per fold.
        flat: whether they are 2D: slices then are a batch.

    Shape:
        (1, inputs, z, y, x) to (1, outputs, z, y, x).
    """

    def __init__(self, networks: Sequence[nn.Module], flat: bool) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        """Logits for a normalised patch."""
        if self.flat:
            x = x[0].transpose(0, 1)
        total: Tensor = self.networks[0](x)
        for network in self.networks[1:]:
            total = total + network(x)
        if len(self.networks) > 1:
            total = total / len(self.networks)
        return total.transpose(0, 1)[None] if self.flat else total


class _Chosen(nn.Module):
    """A network of whose output channels only some are given."""

    def __init__(self, network: nn.Module, kept: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.kept = list(kept)

    def forward(self, x: Tensor) -> Tensor:
        """The chosen channels."""
        logits: Tensor = self.network(x)
        return logits[:, self.kept]
