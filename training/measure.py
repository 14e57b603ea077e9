"""What a configuration costs: size, multiply-adds, seconds on this machine.

Networks are measured with their first, random weights: speed does not depend on them.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import torch

from inference.machine import usable_threads
from inference.network import Network
from inference.organs import ORGANS
from training.config import Config
from training.export import quantise, to_openvino
from training.losses import loss_at_all_depths, partial_dice_cross_entropy
from training.machine import machine_in_words
from training.network import make_network, multiply_adds, parameter_count
from training.samples import Patch
from training.train import make_optimiser

HEADER = (
    "| configuration | parameters | G multiply-adds per million voxels | int8 s | bf16 s | fp32 s "
    "| training s per iteration |\n|---|---|---|---|---|---|---|"
)


def measure(config: Config, repeats: int = 3) -> str:
    """One row of the table.

    Seconds of inference are per million voxels, one patch of the configuration at a time;
    training is measured with the configuration's batch, on the GPU where there is one.

    Args:
        config: what to measure.
        repeats: passes and steps of which the median counts, after one that does not.
    """
    network = make_network(dict(config.network))
    voxels = math.prod(config.patch) / 1e6
    work = multiply_adds(network, config.patch) / voxels / 1e9
    patch = np.random.default_rng(0).normal(size=config.patch).astype(np.float32)
    cells = [config.name, f"{parameter_count(network):,}", f"{work:.1f}"]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = to_openvino(network, config.patch)
        ov.save_model(model, folder / "f.xml", compress_to_fp16=True)
        ov.save_model(quantise(model, [patch[None, None]]), folder / "i.xml")
        for file, precision in (("i.xml", "int8"), ("f.xml", "bf16"), ("f.xml", "f32")):
            runner = Network(folder / file, precision, usable_threads(), 1 + len(ORGANS))
            seconds = _median(lambda runner=runner: runner.run(patch), repeats)  # type: ignore[misc]
            cells.append(f"{seconds / voxels:.3f}")
            del runner
    cells.append(f"{_training_step(config, repeats):.3f}")
    return "| " + " | ".join(cells) + " |"


def describe() -> str:
    """On which machine, in how many threads."""
    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    bf16 = "bf16 in hardware" if "BF16" in able else "no bf16: f32 is used in its place"
    return (
        f"Inference: OpenVINO {ov.__version__.split('-')[0]} on the CPU, {usable_threads()} "
        f"threads, {bf16}. Training: torch {torch.__version__} on {machine_in_words()}."
    )


def _training_step(config: Config, repeats: int) -> float:
    """Seconds of a training step as the loop makes it, without the data."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = make_network(dict(config.network)).to(device).train()
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = make_optimiser(network, config)
    image = torch.randn(config.batch, 1, *config.patch, device=device)
    image = image.contiguous(memory_format=torch.channels_last_3d)
    labels = torch.zeros(config.batch, *config.patch, dtype=torch.uint8, device=device)
    told = torch.ones(config.batch, 1 + len(ORGANS), dtype=torch.bool, device=device)
    batch = Patch(image, labels, told, torch.ones(config.batch, device=device))
    model = torch.compile(network) if device.type == "cuda" else network

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(image)
        loss = loss_at_all_depths(outputs, batch, partial_dice_cross_entropy)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss.item()

    return _median(step, repeats)


def _median(act: Callable[[], object], repeats: int) -> float:
    act()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))
