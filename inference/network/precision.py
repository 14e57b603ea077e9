"""Which arithmetic this processor is fast at: measured, because its flags mislead.

OpenVINO lists bf16 among the CPU's capabilities also where it has to emulate it: convolutions are
then several times slower than in f32 (with AVX-512, but neither AMX nor bf16 instructions), or
cannot be compiled at all (with AVX2 alone). So both run for a few milliseconds, once in a process,
while the first CT is read.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

_CHANNELS = 32
_SHAPE = (8, 16, 32)
_TURNS = 5


def cpu_settings(arithmetic: str, threads: int) -> dict[str, Any]:
    """How OpenVINO is told to compile for the CPU; the benchmark measures its peak so too.

    Args:
        arithmetic: what is not int8 is computed in: "f32" or "bf16".
        threads: how many threads a pass uses.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": arithmetic,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_HYPER_THREADING": True,  # `threads` already says how many there are
        "ENABLE_CPU_PINNING": False,  # other containers may be pinned to the same cores
    }


def best_float() -> str:
    """What is computed in floating point where a model leaves the choice: "bf16" or "f32"."""
    return "bf16" if bf16_pays() else "f32"


@functools.cache
def bf16_pays() -> bool:
    """Whether 3 x 3 x 3 convolutions are faster in bf16 than in f32 on this machine.

    The least of some runs counts, and the two take turns, so that another process that gets in
    between changes nothing.
    """
    core = ov.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    try:
        requests = [_convolutions(core, kind) for kind in ("f32", "bf16")]
    except RuntimeError:  # listed, but it cannot be compiled
        return False
    seconds = np.array([[_run(request) for request in requests] for _ in range(_TURNS)])
    f32, bf16 = seconds.min(axis=0)
    return bool(bf16 < 0.9 * f32)


def _convolutions(core: ov.Core, kind: str) -> ov.InferRequest:
    image = ops.parameter([1, _CHANNELS, *_SHAPE], np.float32)
    kernel = ops.constant(np.full((_CHANNELS, _CHANNELS, 3, 3, 3), 1e-3, np.float32))
    values = image
    for _ in range(2):
        values = ops.relu(ops.convolution(values, kernel, [1] * 3, [1] * 3, [1] * 3, [1] * 3))
    model = ov.Model([values], [image], "probe")
    compiled = core.compile_model(model, "CPU", cpu_settings(kind, threads=1))
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(np.zeros((1, _CHANNELS, *_SHAPE), np.float32)))
    request.infer()  # the first run gets its memory
    return request


def _run(request: ov.InferRequest) -> float:
    start = time.perf_counter()
    request.infer()
    return time.perf_counter() - start
