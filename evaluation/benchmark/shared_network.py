"""The network that the systems in the benchmark share, as PyTorch weights and as a model folder.

nnU-Net's plain convolutional U-Net (Isensee et al. 2021) as published entries of the challenge
use it: six stages of 32 to 320 features, 30 713 158 parameters, 14 outputs, patches of
40 x 224 x 192 voxels at 2.5 mm. With ``--checkpoint`` it has an nnU-Net checkpoint's weights.
Without, it is trained for some steps on another phantom, so that its label map has an organ's
regions and not noise: what a decoder of labels costs, and how far two tilings agree, depends on
that; what the network costs does not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from tqdm import tqdm

from inference.errors import UsageError, first_line
from inference.grid import Shape
from inference.network.int8 import adapt_to_openvino
from inference.network.pass_memory import with_pass_memory
from inference.network.precision import bf16_pays
from inference.network.windows import box_at, pad
from inference.organs import LABEL_OF
from inference.phantom import make_phantom
from inference.plan import NETWORK_FILES, Plan
from inference.preprocess.preprocess import preprocess
from inference.preprocess.resample import resize_labels

NAME = "plain_unet_30m"
SEED = 2024
STEPS = 80
"""Of training."""

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


def make_model(
    folder: Path, checkpoint: Path | None, int8: bool, small: bool = False, quiet: bool = True
) -> Plan:
    """Write the network into a model folder that `inference` and the other systems read.

    Args:
        folder: where to; its last part is the model's name.
        checkpoint: an nnU-Net checkpoint of exactly this network, if there is one.
        int8: quantise it too (needs NNCF).
        small: a small patch, for trying; the same network.
        quiet: whether no progress bar is shown.

    Returns:
        Its plan.

    Raises:
        UsageError: the checkpoint cannot be read or is of another network.
        ModelError: a first pass failed, mostly for want of memory.
    """
    import openvino as ov
    import torch

    patch = (16, 64, 64) if small else PATCH
    torch.manual_seed(SEED)
    network = make_network()
    patches = _phantom_patches((16, 64, 64) if small else (24, 96, 96))
    if checkpoint is None:
        _train(network, patches, 5 if small else STEPS, quiet)
    else:
        _load(network, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / WEIGHTS)
    model = ov.convert_model(network, example_input=torch.zeros(1, 1, 16, 64, 64))
    model.reshape([1, 1, -1, -1, -1])
    # Full precision on disk as well: all systems have the same weights to the last bit.
    floating = folder / NETWORK_FILES["f32"]
    ov.save_model(model, floating, compress_to_fp16=False)
    networks = {precision: NETWORK_FILES[precision] for precision in ("f32", "bf16")}
    if int8:
        import nncf

        nncf.set_log_level(logging.ERROR)
        quantised = nncf.quantize(
            model,
            nncf.Dataset([next(patches)[0] for _ in range(4)]),
            subset_size=4,
            preset=nncf.QuantizationPreset.MIXED,
        )
        adapt_to_openvino(quantised)
        networks = NETWORK_FILES
        ov.save_model(quantised, folder / networks["int8"], compress_to_fp16=False)
    plan = with_pass_memory(_plan(patch, networks), folder)
    plan.save(folder)
    return plan


def _plan(patch: Shape, networks: dict[str, str]) -> Plan:
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
        bytes_per_voxel={},  # measured later
    )


def _phantom_patches(
    size: Shape,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Parts of a phantom as the network sees it, and their channels, without end.

    Each is (1, 1, z, y, x) and (1, z, y, x), around a voxel of an organ in three of four.
    """
    spacing = (SPACING, SPACING, SPACING)
    ct, truth = make_phantom((160, 176, 176), spacing, seed=SEED)
    plan = _plan(size, NETWORK_FILES)
    prepared = preprocess(sitk.GetArrayViewFromImage(ct), spacing, plan)
    box = sitk.GetArrayViewFromImage(truth)[prepared.box]
    labels = resize_labels(box, prepared.values.shape).astype(np.int64)
    image, inside = pad(prepared.values, size, plan.air)
    wanted = np.zeros(image.shape, np.int64)
    wanted[inside] = labels
    rng = np.random.default_rng(SEED)
    organs = [np.argwhere(wanted == value) for value in np.unique(wanted) if value]
    while True:
        voxels = organs[rng.integers(len(organs))]
        centre = voxels[rng.integers(len(voxels))]
        if rng.random() < 0.25:
            centre = rng.integers(image.shape)
        start = np.clip(centre - np.array(size) // 2, 0, np.array(image.shape) - size)
        part = box_at(start, size)
        yield image[part][None, None], wanted[part][None]


def _train(
    network: Any,
    patches: Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]],
    steps: int,
    quiet: bool,
) -> None:
    """Some steps of Adam on cross entropy, organs weighted up: it need not be good."""
    import torch

    network.train().requires_grad_(True)
    weights = torch.ones(1 + len(LABEL_OF))
    weights[1:] = 5.0
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    half = bf16_pays()  # emulated, a step takes over thirty times as long as in fp32
    for step in tqdm(range(steps), "training it", unit="step", disable=quiet or None):
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        image, wanted = next(patches)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(torch.from_numpy(np.ascontiguousarray(image)))
        loss = torch.nn.functional.cross_entropy(
            logits.float(), torch.from_numpy(np.ascontiguousarray(wanted)), weights
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
    network.eval().requires_grad_(False)


def _load(network: Any, checkpoint: Path) -> None:
    import torch

    try:
        # nnU-Net keeps numpy numbers beside the weights; nothing else that is pickled is run.
        # NumPy 1 and 2 call the function that makes them by different names.
        scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
        harmless: list[Any] = [
            *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
            *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType),
        ]
        with torch.serialization.safe_globals(harmless):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights = content.get("network_weights", content)
        # The network has the heads of deep supervision too, which no pass uses: every name fits.
        network.load_state_dict(weights)
    except Exception as error:  # torch raises many kinds for a file that is not what it wants
        raise UsageError(
            f"{checkpoint}: not a checkpoint of this network ({first_line(error)})"
        ) from None
