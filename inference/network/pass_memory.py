"""How much memory one pass of a network needs: a plan says it, so that windows fit."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from inference.errors import ModelError
from inference.grid import Shape
from inference.network.slabs import SLAB_VOXELS
from inference.plan import Plan

_PASS = """
import sys
from pathlib import Path
import numpy as np
from inference.machine import peak_memory, restart_peak_memory, usable_threads
from inference.network.network import Network
ir, precision = Path(sys.argv[1]), sys.argv[2]
channels, inputs, *shape = map(int, sys.argv[3:])
restart_peak_memory()  # a new process starts with the peak of the one that made it
before = peak_memory()
network = Network(ir, precision, usable_threads(), channels, inputs)
network.run(np.zeros((inputs, *shape), np.float32))
print(peak_memory() - before)
"""


def with_pass_memory(plan: Plan, folder: Path) -> Plan:
    """A plan that says how much memory passes of its networks need.

    Each is measured in a process of its own. Where windows are as large as memory allows, two sizes
    are: the largest slab of the finest stage (`inference.network.slabs`), and two such slabs. A
    line through both is near what larger passes need: of ``abdoseg``'s seven slabs it says 42 %
    more than was measured in int8, 7 % less in f32, which the share that a budget leaves free
    covers.

    Args:
        plan: the model's.
        folder: where its networks lie.

    Returns:
        The plan with its ``bytes_per_voxel`` and ``bytes_per_pass``, for a CPU that has AVX2 alone:
        what is not int8 is f32 there. (In bf16 there are no slabs, but all that is not int8 takes
        half.)

    Raises:
        ModelError: a pass failed, mostly for want of memory.
    """
    per_voxel, per_pass = {}, {}
    for precision, file in plan.networks.items():
        ir = folder / file
        if plan.tiling == "whole":
            depth, *plane = _largest_slab(plan)
            voxels = depth * math.prod(plane)
            one, two = (_measured(ir, precision, plan, (n * depth, *plane)) for n in (1, 2))
            per_voxel[precision] = round((two - one) / voxels, 1)
            per_pass[precision] = float(max(0, 2 * one - two))
        else:
            one = _measured(ir, precision, plan, plan.patch)
            per_voxel[precision] = round(one / math.prod(plan.patch), 1)
    return replace(plan, bytes_per_voxel=per_voxel, bytes_per_pass=per_pass)


def _largest_slab(plan: Plan) -> Shape:
    """As many slices of a patch's height and width as a slab may have, but no less than a patch."""
    depth, height, width = plan.patch
    step = plan.multiple[0]
    return max(depth, SLAB_VOXELS // (height * width * step) * step), height, width


def _measured(ir: Path, precision: str, plan: Plan, shape: Sequence[int]) -> int:
    """Peak memory of a pass over so many voxels (z, y, x), in bytes."""
    numbers = map(str, (len(plan.label_values), plan.inputs, *shape))
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
        size = " x ".join(map(str, shape))
        raise ModelError(f"{ir}: one pass over {size} voxels failed ({lines[-1]})")
    return int(done.stdout)
