"""The network that the systems in the benchmark share, as PyTorch weights and as a model folder.

nnU-Net's plain convolutional U-Net (Isensee et al. 2021) as published entries of the challenge
use it: six stages of 32 to 320 features, 30 713 158 parameters, 14 outputs, patches of
40 x 224 x 192 voxels at 2.5 mm. With ``--checkpoint`` it has an nnU-Net checkpoint's weights.
Without, they are drawn from a fixed seed, and only the last layer (1 x 1 x 1) is fitted, to the
organs of the phantom by least squares, so that its label map has regions and not noise: what a
decoder of labels costs depends on that, what the network costs does not.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from evaluation.usage import run_command
from inference.errors import UsageError
from inference.organs import LABEL_OF
from inference.phantom import make_phantom
from inference.plan import Plan
from inference.preprocess import preprocess
from inference.resample import resize_labels

NAME = "plain_unet_30m"
PARAMETERS = 30_713_158
SEED = 2024
PATCH = (40, 224, 192)
MULTIPLE = (8, 32, 32)
SPACING = 2.5
CLIP, SUBTRACT, DIVIDE = (-958.0, 270.0), -97.3, 137.8
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
FEATURES = (32, 64, 128, 256, 320, 320)
WEIGHTS = "network.pt"
"""The file with the PyTorch weights, beside the IR."""


def missing() -> str | None:
    """Which package is not there to build the network with, ``None`` if all are."""
    from importlib.util import find_spec

    for module, package in (
        ("torch", "torch"),
        ("dynamic_network_architectures", "dynamic-network-architectures"),
    ):
        if find_spec(module) is None:
            return package
    return None


def make_network(classes: int = 14) -> Any:
    """The network with PyTorch's own initial weights (whatever its seed gives)."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    network = PlainConvUNet(
        input_channels=1,
        n_stages=len(FEATURES),
        features_per_stage=FEATURES,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=[(1, 3, 3)] + [(3, 3, 3)] * (len(FEATURES) - 1),
        strides=STRIDES,
        n_conv_per_stage=2,
        num_classes=classes,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )
    return network.eval()


def make_model(folder: Path, checkpoint: Path | None, int8: bool, quick: bool = False) -> Plan:
    """Write the network into a model folder that `inference` and the other systems read.

    Args:
        folder: where to; its last part is the model's name.
        checkpoint: an nnU-Net checkpoint of exactly this network, if there is one.
        int8: quantise it too (needs NNCF).
        quick: a small patch, for trying; the same network.

    Returns:
        Its plan.

    Raises:
        UsageError: the checkpoint cannot be read or is of another network.
    """
    import openvino as ov
    import torch

    patch = (16, 64, 64) if quick else PATCH
    torch.manual_seed(SEED)
    network = make_network()
    # Smaller than a patch: ranges and features hardly depend on the size, the time does.
    image, truth = _phantom_patch((16, 64, 64) if quick else (24, 128, 128))
    with torch.inference_mode():
        if checkpoint is None:
            _fit_head(network, image, truth)
        else:
            _load(network, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / WEIGHTS)
    model = ov.convert_model(network, example_input=torch.zeros(1, 1, 16, 64, 64))
    model.reshape([1, 1, -1, -1, -1])
    # Full precision on disk as well: all systems have the same weights to the last bit.
    ov.save_model(model, folder / "network.xml", compress_to_fp16=False)
    networks = {"f32": "network.xml", "bf16": "network.xml"}
    if int8:
        import nncf

        nncf.set_log_level(logging.ERROR)
        quantised = nncf.quantize(
            model, nncf.Dataset([image]), subset_size=1, preset=nncf.QuantizationPreset.MIXED
        )
        ov.save_model(quantised, folder / "network_int8.xml", compress_to_fp16=False)
        networks["int8"] = "network_int8.xml"
    plan = _plan(patch, networks, _bytes_per_voxel(folder / "network.xml", patch))
    plan.save(folder)
    return plan


def _plan(patch: tuple[int, int, int], networks: dict[str, str], per_voxel: float) -> Plan:
    return Plan(
        name=NAME,
        version="benchmark",
        spacing=(SPACING, SPACING, SPACING),
        clip=CLIP,
        subtract=SUBTRACT,
        divide=DIVIDE,
        patch=patch,
        multiple=MULTIPLE,
        networks=networks,
        precision="f32",
        labels=LABEL_OF,
        bytes_per_voxel=per_voxel,
    )


def _phantom_patch(
    patch: tuple[int, int, int],
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A phantom's middle as the network sees it, and its labels: (1, 1, z, y, x) and (z, y, x)."""
    spacing = (SPACING, SPACING, SPACING)
    ct, labels = make_phantom(patch, spacing, seed=SEED)
    plan = _plan(patch, {"f32": "network.xml"}, 1.0)
    prepared = preprocess(sitk.GetArrayViewFromImage(ct), spacing, plan)
    box = sitk.GetArrayViewFromImage(labels)[prepared.box]
    image = np.full(patch, (CLIP[0] - SUBTRACT) / DIVIDE, np.float32)
    truth = np.zeros(patch, np.uint8)
    image[tuple(slice(n) for n in prepared.values.shape)] = prepared.values
    truth[tuple(slice(n) for n in box.shape)] = resize_labels(box, prepared.values.shape)
    return image[None, None], truth


def _fit_head(network: Any, image: NDArray[np.float32], truth: NDArray[np.uint8]) -> None:
    """Ridge regression of the classes on what the last layer gets: closed form, no training."""
    import torch

    head = network.decoder.seg_layers[-1]
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.from_numpy(image))
    hook.remove()
    features = seen[0][0].flatten(1).double()
    features = torch.cat([features, torch.ones(1, features.shape[1], dtype=torch.float64)])
    wanted = torch.nn.functional.one_hot(torch.from_numpy(truth.astype(np.int64)).flatten(), 14)
    # Organs are few voxels: each class counts the same.
    weight = (1 / wanted.sum(0).clamp(min=1).double())[truth.astype(np.int64).ravel()]
    gram = (features * weight) @ features.T
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram, (features * weight) @ wanted.double()).float()
    head.weight.copy_(10 * solution[:-1].T[:, :, None, None, None])
    head.bias.copy_(10 * solution[-1])


def _load(network: Any, checkpoint: Path) -> None:
    import torch

    try:
        # nnU-Net keeps numpy numbers beside the weights; nothing else that is pickled is run.
        harmless: list[Any] = [np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]
        harmless.append((getattr(np, "_core", None) or np.core).multiarray.scalar)
        with torch.serialization.safe_globals(harmless):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights = content.get("network_weights", content)
        own = network.state_dict()
        # Heads of deep supervision are in the checkpoint, and not part of what is run.
        network.load_state_dict({k: v for k, v in weights.items() if k in own})
    except Exception as error:  # torch raises many kinds for a file that is not what it wants
        reason = str(error).strip().splitlines()
        raise UsageError(
            f"{checkpoint}: not a checkpoint of this network "
            f"({reason[0] if reason else type(error).__name__})"
        ) from None


_ONE_PASS = """
import sys
import numpy as np, openvino as ov
shape = [1, 1, *map(int, sys.argv[2:])]
core = ov.Core()
model = core.read_model(sys.argv[1])
model.reshape(shape)
core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(np.zeros(shape, np.float32))
"""


def _bytes_per_voxel(ir: Path, patch: tuple[int, int, int]) -> float:
    """Peak memory of a process that makes one fp32 pass, per voxel of the patch."""
    command = [sys.executable, "-c", _ONE_PASS, str(ir), *map(str, patch)]
    log = ir.with_name("one_pass.log")
    usage = run_command(command, log)
    if usage.exit_code or not usage.peak_memory:
        raise subprocess.CalledProcessError(usage.exit_code, command, log.read_bytes())
    return round(usage.peak_memory / float(np.prod(patch)), 1)
