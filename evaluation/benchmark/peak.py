"""How many operations a second this machine can do: a plain stack of 3 x 3 x 3 convolutions.

What a 3D U-Net's pass takes is only worth something beside it: the stack has no resizing, no
normalisation, no skips, and channels and sizes that suit the instructions. It is measured in the
same run as the systems, in a process of its own, so that ``ONEDNN_MAX_CPU_ISA`` limits it alike.
int8 is what OpenVINO makes of quantised weights and activations (FakeQuantize).

    python -m evaluation.benchmark.peak --threads 2
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from inference.network.precision import cpu_settings
from inference.plan_check import PRECISIONS

CHANNELS = 64
SHAPE = (32, 48, 64)
LAYERS = 6
REPEATS = 5


def main() -> None:
    """Measure and print operations a second by precision, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--small", action="store_true", help="a small stack, for trying")
    options = parser.parse_args()
    shape = (8, 16, 16) if options.small else SHAPE
    print(json.dumps(measure(options.threads, shape=shape)))


def measure(
    threads: int, precisions: Sequence[str] = PRECISIONS, shape: Sequence[int] = SHAPE
) -> dict[str, float | None]:
    """Operations (a multiply-add is two) a second, the best of some runs.

    Args:
        threads: how many threads a run uses.
        precisions: which of `PRECISIONS`.
        shape: voxels (z, y, x) of the stack's input.

    Returns:
        By precision; ``None`` where OpenVINO cannot compile the stack so.
    """
    found: dict[str, float | None] = {}
    for precision in precisions:
        model = stack(shape, quantised=precision == "int8")
        work = 2 * multiply_adds(model)
        settings = cpu_settings("bf16" if precision == "bf16" else "f32", threads)
        try:
            request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError:
            found[precision] = None
            continue
        values = np.random.default_rng(1).normal(0, 1, (1, CHANNELS, *shape)).astype(np.float32)
        request.set_input_tensor(ov.Tensor(values))
        request.infer()
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            request.infer()
            seconds.append(time.perf_counter() - start)
        found[precision] = work / min(seconds)
    return found


def stack(shape: Sequence[int], quantised: bool) -> Any:
    """Six convolutions of 64 to 64 channels with ReLU between, as an OpenVINO model.

    Args:
        shape: voxels (z, y, x) of the input.
        quantised: whether weights (per channel) and activations are quantised to 8 bits.
    """
    rng = np.random.default_rng(0)
    image = ops.parameter([1, CHANNELS, *shape], np.float32)
    values = image
    for _ in range(LAYERS):
        kernel = rng.normal(0, 0.02, (CHANNELS, CHANNELS, 3, 3, 3)).astype(np.float32)
        weights = ops.constant(kernel)
        if quantised:
            values = _quantise(values, 0.0, 4.0, 256)
            largest = np.abs(kernel).max(axis=(1, 2, 3, 4), keepdims=True)
            weights = _quantise(weights, -largest, largest, 255)
        values = ops.relu(
            ops.convolution(values, weights, [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1])
        )
    return ov.Model([values], [image], "stack")


def _quantise(values: Any, low: Any, high: Any, levels: int) -> Any:
    ends = [ops.constant(np.asarray(end, np.float32)) for end in (low, high, low, high)]
    return ops.fake_quantize(values, *ends, levels)


def multiply_adds(model: Any) -> int:
    """Multiply-adds of a model's convolutions for its (static) input shape."""
    total = 0
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind not in (
            "Convolution",
            "GroupConvolution",
            "ConvolutionBackpropData",
            "GroupConvolutionBackpropData",
        ):
            continue
        data, kernel = node.input(0).get_shape(), node.input(1).get_shape()
        # A transposed convolution multiplies each input value with the kernel, another one
        # makes each output value of it.
        if "Backprop" in kind:
            voxels = math.prod(data[2:])
        else:
            voxels = math.prod(node.output(0).get_shape()[2:])
        total += voxels * math.prod(kernel)
    return total


def multiply_adds_of(path: Path, shape: Sequence[int]) -> int:
    """Multiply-adds of one pass of an IR.

    Args:
        path: its ``.xml``.
        shape: voxels (z, y, x) of the pass's input.
    """
    model = ov.Core().read_model(path)
    channels = model.input(0).partial_shape[1].get_length()
    model.reshape([1, channels, *shape])
    return multiply_adds(model)


if __name__ == "__main__":
    main()
