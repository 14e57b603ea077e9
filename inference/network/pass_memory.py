"""How much memory one pass of a network needs: a plan says it, so that windows fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from inference.errors import ModelError
from inference.grid import Shape

_PASS = """
import sys
import numpy as np, openvino as ov
from inference.machine import peak_memory, restart_peak_memory
shape = [1, *map(int, sys.argv[2:])]
core = ov.Core()
model = core.read_model(sys.argv[1])
model.reshape(shape)
restart_peak_memory()  # a new process starts with the peak of the one that made it
before = peak_memory()
core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(np.zeros(shape, np.float32))
print(peak_memory() - before)
"""


def bytes_per_voxel(ir: Path, patch: Shape, inputs: int = 1) -> float:
    """Peak memory of one fp32 pass per input voxel, measured in a process of its own.

    Args:
        ir: the network.
        patch: voxels (z, y, x) of the pass.
        inputs: the network's input channels.

    Raises:
        ModelError: the pass failed, mostly for want of memory.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PASS, str(ir.resolve()), *map(str, (inputs, *patch))],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["there is too little memory"]
        size = " x ".join(map(str, patch))
        raise ModelError(f"{ir}: one pass over {size} voxels failed ({lines[-1]})")
    return round(int(done.stdout) / float(np.prod(patch)), 1)
