"""How much memory one pass of a network needs: a plan says it, so that windows fit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from inference.errors import ModelError
from inference.grid import Shape

_PASS = """
import sys
from pathlib import Path
import numpy as np
from inference.machine import peak_memory, restart_peak_memory, usable_threads
from inference.network.network import Network
ir, precision = Path(sys.argv[1]), sys.argv[2]
channels, inputs, *patch = map(int, sys.argv[3:])
restart_peak_memory()  # a new process starts with the peak of the one that made it
before = peak_memory()
network = Network(ir, precision, usable_threads(), channels, inputs)
network.run(np.zeros((inputs, *patch), np.float32))
print(peak_memory() - before)
"""


def bytes_per_voxel(
    folder: Path, networks: Mapping[str, str], patch: Shape, channels: int, inputs: int = 1
) -> dict[str, float]:
    """Peak memory of one pass per input voxel, each measured in a process of its own.

    Args:
        folder: where the networks lie.
        networks: precision to file name.
        patch: voxels (z, y, x) of the pass.
        channels: the networks' output channels.
        inputs: their input channels.

    Returns:
        The bytes by precision, for a CPU that has AVX2 alone: what is not int8 is f32 there, and
        no CPU needs more.

    Raises:
        ModelError: the pass failed, mostly for want of memory.
    """
    return {
        precision: _measured(folder / file, precision, patch, channels, inputs)
        for precision, file in networks.items()
    }


def _measured(ir: Path, precision: str, patch: Shape, channels: int, inputs: int) -> float:
    numbers = map(str, (channels, inputs, *patch))
    done = subprocess.run(
        [sys.executable, "-c", _PASS, str(ir.resolve()), precision, *numbers],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        cwd=Path(__file__).parents[2],
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["there is too little memory"]
        size = " x ".join(map(str, patch))
        raise ModelError(f"{ir}: one pass over {size} voxels failed ({lines[-1]})")
    return round(int(done.stdout) / float(np.prod(patch)), 1)
