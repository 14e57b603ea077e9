"""What a configuration costs: size, multiply-adds, seconds on this machine.

Networks are measured with their first, random weights: speed does not depend on them.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from torch import nn

from inference.machine import usable_threads
from inference.network.network import Network
from inference.network.precision import bf16_pays
from inference.organs import ORGANS
from training.config import Config
from training.export.openvino_model import quantise, to_openvino
from training.loop.losses import loss_at_all_depths, partial_dice_cross_entropy
from training.loop.train import make_optimiser
from training.networks.mixed_precision import autocast
from training.networks.network import (
    check_network,
    make_network,
    multiple_of,
    multiply_adds,
    parameter_count,
)
from training.patches.samples import Patch
from training.records.machine import cpu_in_words

HEADER = (
    "| configuration | parameters | per million voxels: G multiply-adds | int8, s | bf16, s "
    "| fp32, s | training: s per iteration, CPU | GPU |\n|---|---|---|---|---|---|---|---|"
)
_PATIENCE = 20.0
"""Seconds after which nothing is repeated: what takes longer is measured once."""


def measure(configs: Sequence[Config], repeats: int = 3) -> Iterator[str]:
    """Rows of the table.

    Seconds of inference are per million voxels, one patch of the configuration at a time, on the
    CPU; training is measured with the configuration's batch, on the CPU and, where there is one,
    on the GPU. Configurations that differ in neither are measured once.

    Args:
        configs: what to measure.
        repeats: passes and steps of which the median counts, after one that does not.

    Yields:
        A row for each configuration, as Markdown.

    Raises:
        ValueError: there is no such network, or it does not take such a patch.
    """
    known: list[tuple[Config, list[str]]] = []
    for config in configs:
        cells = next((cells for other, cells in known if _cost_the_same(config, other)), None)
        if cells is None:
            check_network(dict(config.network), [config.patch])
            network = make_network(dict(config.network))
            work = multiply_adds(network, config.patch) / math.prod(config.patch) / 1e3
            cells = [f"{parameter_count(network):,}", f"{work:.1f}"]
            cells += _inference(network, config, repeats)
            cells += _training(config, repeats)
            known.append((config, cells))
        yield "| " + " | ".join([config.name, *cells]) + " |"


def _cost_the_same(a: Config, b: Config) -> bool:
    names = ("network", "patch", "batch", "optimiser")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def _inference(network: nn.Module, config: Config, repeats: int) -> list[str]:
    """Seconds per million voxels in int8, bf16 and fp32."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=config.patch).astype(np.float32)
    sizes = zip(config.patch, multiple_of(network), strict=True)
    few = rng.normal(size=(1, 1, *(min(n, 2 * m) for n, m in sizes))).astype(np.float32)
    cells = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = to_openvino(network, few.shape[2:])
        ov.save_model(model, folder / "f.xml", compress_to_fp16=True)
        ov.save_model(quantise(model, [few]), folder / "i.xml")
        for file, precision in (("i.xml", "int8"), ("f.xml", "bf16"), ("f.xml", "f32")):
            runner = Network(folder / file, precision, usable_threads(), 1 + len(ORGANS))
            seconds = _median(partial(runner.run, image), repeats)
            cells.append(f"{seconds / image.size * 1e6:.3f}")
            del runner
    return cells


def _training(config: Config, repeats: int) -> list[str]:
    """Seconds of a training step on the CPU and on the GPU ("-" where there is none)."""
    cells = []
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            cells.append("-")
            continue
        # In a process of its own: PyTorch and OpenVINO must not share a CPU's matrix unit.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            cells.append(f"{pool.submit(_step, config, repeats, device).result():.3f}")
    return cells


def describe() -> str:
    """On which machine, in how many threads."""
    bf16 = "" if bf16_pays() else ", f32 in the place of bf16, which is not faster here"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return (
        f"Inference: OpenVINO {ov.__version__.split('-')[0]} on the CPU, {usable_threads()} "
        f"threads{bf16}. Training: torch {torch.__version__}, bf16 (fp32 where the "
        "machine has none, and on a CPU for patches of few slices), without the data. "
        f"CPU: {cpu_in_words()}. GPU: {gpu}."
    )


def _step(config: Config, repeats: int, device: str) -> float:
    """Seconds of a training step as the loop makes it, without the data."""
    network = make_network(dict(config.network)).to(device).train()
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = make_optimiser(network, config)
    image = torch.randn(config.batch, 1, *config.patch, device=device)
    image = image.contiguous(memory_format=torch.channels_last_3d)
    labels = torch.zeros(config.batch, *config.patch, dtype=torch.uint8, device=device)
    told = torch.ones(config.batch, 1 + len(ORGANS), dtype=torch.bool, device=device)
    batch = Patch(image, labels, told, torch.ones(config.batch, device=device))
    model = torch.compile(network, dynamic=False) if device == "cuda" else network

    def step() -> None:
        with autocast(image, multiple_of(network)):
            outputs = model(image)
        loss = loss_at_all_depths(outputs, batch, partial_dice_cross_entropy)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss.item()

    if device == "cuda":
        step()  # compiles, which may take longer than any patience
    return _median(step, repeats)


def _median(act: Callable[[], object], repeats: int) -> float:
    first = _seconds(act)
    if first > _PATIENCE:
        return first
    return float(np.median([_seconds(act) for _ in range(repeats)]))


def _seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun
