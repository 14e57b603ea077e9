"""The benchmark from what is asked to its tables."""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path

from evaluation.benchmark import shared_network
from evaluation.benchmark.agreement import compare
from evaluation.benchmark.case import given_case, phantom_case
from evaluation.benchmark.rows import Row
from evaluation.benchmark.setting import Setting
from evaluation.benchmark.systems import list_systems
from evaluation.benchmark.table import write_table
from evaluation.benchmark.turns import run_in_turns
from evaluation.processes import processes
from inference.errors import ModelError, UsageError


def benchmark(
    out: Path,
    case: Path | None = None,
    checkpoint: Path | None = None,
    slices: int = 300,
    plane: int = 512,
    setting: Setting | None = None,
) -> list[Row]:
    """Time the systems and write ``benchmark.csv`` and ``benchmark.md``.

    Args:
        out: folder for the results, made where missing; ``logs/`` has what each run printed.
        case: the CT; by default a phantom of 0.8 x 0.8 x 2.5 mm.
        checkpoint: an nnU-Net checkpoint for the shared network (`shared_network.py`).
        slices: slices of the phantom.
        plane: pixels along both sides of its slices.
        setting: what is run and how; by default everything.

    Returns:
        One row per system, in the order of the table.

    Raises:
        UsageError: the case or the checkpoint cannot be used, the shared network not be built, or
            ``out`` not be written.
    """
    setting = setting or Setting()
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=out) as folder:
            work = Path(folder)
            image, size = given_case(case, work) if case else phantom_case(work, slices, plane)
            model, problem = work / "models" / shared_network.NAME, None
            if {"nnunet", "published", "ours"} & set(setting.groups):
                problem = _make_model(model, checkpoint, setting)
            systems = list_systems(model, problem, image, setting)
            rows, peaks = run_in_turns(systems, image, out, setting)
            compare(rows)
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror or error}") from None
    write_table(rows, peaks, out, case or Path("phantom"), size, checkpoint, setting)
    return rows


def _make_model(folder: Path, checkpoint: Path | None, setting: Setting) -> str | None:
    """Build the shared network.

    Returns:
        The reason where something is not installed, else ``None``.

    Raises:
        UsageError: the checkpoint cannot be used, or building was stopped, as by a lack of memory.
    """
    if package := shared_network.missing():
        return f"{package} is not installed (extra 'nnunet')"
    if not setting.quiet:
        print("building the shared network ...", file=sys.stderr)
    int8 = "ours" in setting.groups and find_spec("nncf") is not None
    arguments = folder, checkpoint, int8, setting.small, setting.quiet
    # In a process of its own, which takes its memory with it.
    try:
        with processes(1) as pool:
            pool.submit(shared_network.make_model, *arguments).result()
        return None
    except BrokenProcessPool:
        reason = "its process was killed, perhaps for lack of memory"
    except ModelError as error:
        reason = str(error)
    raise UsageError(
        f"the shared network cannot be built: {reason} (--small-patch needs less memory; "
        "--only models,peak does without the network)"
    )
