"""Speed side by side: same network, same case, file to file, each run a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from evaluation import benchmark_network
from evaluation.benchmark_groups import GROUPS, ISA_LEVELS
from evaluation.benchmark_peak import multiply_adds_of
from evaluation.benchmark_systems import PUBLISHED, System, list_systems
from evaluation.benchmark_table import STAGES, Peaks, Row, write_table
from evaluation.metrics import dice
from evaluation.usage import Usage, run_command
from evaluation.volumes import read_labels
from inference.errors import CaseError, ModelError, UsageError
from inference.file_names import label_name
from inference.organs import ORGANS
from inference.paths import is_file
from inference.phantom import make_phantom
from inference.reading import read
from inference.writing import write_image


def benchmark(
    out: Path,
    case: Path | None = None,
    checkpoint: Path | None = None,
    groups: Sequence[str] = tuple(GROUPS),
    levels: Sequence[str] = tuple(ISA_LEVELS),
    threads: int = 1,
    repeats: int = 3,
    slices: int = 300,
    plane: int = 512,
    quick: bool = False,
    quiet: bool = False,
) -> list[Row]:
    """Time the systems and write ``benchmark.csv`` and ``benchmark.md``.

    Args:
        out: folder for the results, made where missing; ``logs/`` has what each run printed.
        case: the CT; by default a phantom of 0.8 x 0.8 x 2.5 mm.
        checkpoint: an nnU-Net checkpoint for the shared network (`evaluation.benchmark_network`).
        groups: which of `GROUPS`: nnU-Net's predictor, the published recipe, our engine with the
            same network, our engine with the models in ``weights/``, the two last with fewer
            and more threads, and what the machine can do at most.
        levels: which of `ISA_LEVELS` to repeat the OpenVINO rows with.
        threads: threads for every system.
        repeats: runs of each; the systems take turns, and medians are reported.
        slices: slices of the phantom.
        plane: pixels along both sides of its slices.
        quick: the network with a small patch, for trying.
        quiet: show no progress bar.

    Returns:
        One row per system, in the order of the table.

    Raises:
        UsageError: the case or the checkpoint cannot be used, the shared network not be built, or
            ``out`` not be written.
    """
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=out) as folder:
            work = Path(folder)
            image, size = _case(case, work, slices, plane)
            model, problem = work / "models" / benchmark_network.NAME, None
            if {"nnunet", "published", "ours"} & set(groups):
                int8 = "ours" in groups and find_spec("nncf") is not None
                problem = _make_model(model, checkpoint, int8, quick, quiet)
            systems = list_systems(model, problem, image, groups, levels, threads)
            rows, peaks = _run(
                systems, work, out, threads, repeats, image.name, groups, quick, quiet
            )
            _compare(rows, work, image.name)
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror or error}") from None
    shape = " x ".join(map(str, size))
    write_table(rows, peaks, out, case or Path("phantom"), shape, checkpoint, threads, repeats)
    return rows


def _case(case: Path | None, work: Path, slices: int, plane: int) -> tuple[Path, tuple[int, ...]]:
    """The CT's file and its size (x, y, z)."""
    if case is not None:
        if not is_file(case):
            raise UsageError(f"{case}: no such file")
        if not case.name.endswith((".nii.gz", ".nii")):
            raise UsageError(f"{case}: not a .nii.gz or .nii file")
        return _upright(case, work)
    image, _ = make_phantom((slices, plane, plane), (2.5, 0.8 * 512 / plane, 0.8 * 512 / plane))
    path = work / "phantom_0000.nii.gz"
    write_image(image, path, compression=-1)
    return path, image.GetSize()


def _upright(case: Path, work: Path) -> tuple[Path, tuple[int, ...]]:
    """A copy of the case, its axes LPS (not every system turns one), with no other CT beside it.

    Beside ``X_0001`` the ``_0000`` of a name would be a number to us and none to others.

    Returns:
        The file and its size (x, y, z).
    """
    try:
        image = read(case).image
    except CaseError as error:
        raise UsageError(f"{case}: {error}") from None
    turned = sitk.DICOMOrient(image, "LPS")
    copy = work / case.name
    if turned.GetDirection() == image.GetDirection():
        shutil.copyfile(case, copy)
    else:
        write_image(turned, copy)
    return copy, turned.GetSize()


def _make_model(
    folder: Path, checkpoint: Path | None, int8: bool, quick: bool, quiet: bool
) -> str | None:
    """Build the shared network.

    Returns:
        The reason where something is not installed, else ``None``.

    Raises:
        UsageError: the checkpoint cannot be used, or building was stopped, as by a lack of memory.
    """
    if package := benchmark_network.missing():
        return f"{package} is not installed (extra 'nnunet')"
    if not quiet:
        print("building the shared network ...", file=sys.stderr)
    # In a process of its own, which takes its memory with it.
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(benchmark_network.make_model, folder, checkpoint, int8, quick).result()
        return None
    except BrokenProcessPool:
        reason = "its process was killed, perhaps for lack of memory"
    except ModelError as error:
        reason = str(error)
    raise UsageError(
        f"the shared network cannot be built: {reason} (--small-patch needs less memory; "
        "--only models,peak does without the network)"
    )


def _run(
    systems: Sequence[System],
    work: Path,
    out: Path,
    threads: int,
    repeats: int,
    case_name: str,
    groups: Sequence[str],
    quick: bool,
    quiet: bool,
) -> tuple[list[Row], Peaks]:
    """Run all systems in turns, so that a slower minute of the machine meets each of them.

    Args:
        systems: what is run.
        work: folder of the case and of all that is made on the way.
        out: folder of the results, in which logs stay.
        threads: of systems that have no number of their own.
        repeats: turns.
        case_name: the CT's file name in ``work``.
        groups: those that were asked for.
        quick: whether a rough peak is enough.
        quiet: whether no bar is shown.

    Returns:
        A row per system, and the machine's peak for each instruction set and number of threads.
    """
    rows = [Row(system, problem=system.problem) for system in systems]
    measured: dict[int, list[tuple[Usage, dict[str, float]]]] = {i: [] for i in range(len(rows))}
    peaks: Peaks = {}
    places = {
        (row.system.isa, row.system.threads or threads): None
        for row in rows
        if row.system.network and not row.problem
    }
    with tqdm(
        total=repeats * len(rows), unit="run", desc="benchmark", disable=quiet or None
    ) as bar:
        for turn in range(repeats):
            if "peak" in groups:  # in every turn: the best counts
                for place in places or {(None, threads): None}:
                    _measure_peak(peaks, *place, quick)
            for i, row in enumerate(rows):
                if row.problem is None:
                    try:
                        once = _run_once(row.system, i, turn, work, out, threads, case_name)
                        measured[i].append(once)
                    except CaseError as error:
                        row.problem = str(error)
                bar.update()
    for i, row in enumerate(rows):
        if row.problem is None:
            usages, stages = zip(*measured[i], strict=True)
            row.seconds = statistics.median(usage.seconds for usage in usages)
            row.cpu_seconds = statistics.median(usage.cpu_seconds or 0.0 for usage in usages)
            row.peak_memory = max(usage.peak_memory or 0 for usage in usages)
            row.stages = {
                stage: statistics.median(one.get(stage, 0.0) for one in stages) for stage in STAGES
            }
            if "operations" in stages[0]:
                row.speed = stages[0]["operations"] / row.stages["network"]
    return rows, peaks


def _measure_peak(peaks: Peaks, isa: str | None, threads: int, quick: bool) -> None:
    """Measure what the machine can do; keep it where it is more than before."""
    command = [sys.executable, "-m", "evaluation.benchmark_peak", "--threads", str(threads)]
    limit = {"ONEDNN_MAX_CPU_ISA": isa} if isa else {}
    done = subprocess.run(
        [*command, *(["--small"] if quick else [])],
        env={**os.environ, **limit},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:  # no peak, and the table says so
        return
    best = peaks.setdefault((isa, threads), {})
    for precision, speed in json.loads(done.stdout.splitlines()[-1]).items():
        best[precision] = max(best.get(precision, 0.0), speed or 0.0)


def _run_once(
    system: System, index: int, turn: int, work: Path, out: Path, threads: int, case_name: str
) -> tuple[Usage, dict[str, float]]:
    """Run one system on the case once: what it took, and its seconds by stage, if it tells them.

    Args:
        system: what is run.
        index: its number, for its folder.
        turn: the turn's number, for its log.
        work: folder of the case.
        out: folder of the results.
        threads: of a system that has no number of its own.
        case_name: the CT's file name.
    """
    threads = system.threads or threads
    outputs, stages = work / f"labels_{index}", work / "stages.json"
    shutil.rmtree(outputs, ignore_errors=True)
    outputs.mkdir()
    stages.unlink(missing_ok=True)
    places = {
        "{labels}": str(outputs / label_name(case_name)),
        "{outputs}": str(outputs),
        "{stages}": str(stages),
        "{threads}": str(threads),
    }
    command = [places.get(word, word) for word in system.command]
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "nnUNet_def_n_proc": str(threads),
        # nnU-Net complains where these are not set; nothing is read there.
        **dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), str(work)),
    }
    if system.isa is not None:
        environment["ONEDNN_MAX_CPU_ISA"] = system.isa
    log = out / "logs" / f"{system.name.replace(' ', '_').replace(',', '')}_{turn + 1}.txt"
    usage = run_command(command, log, environment=environment)
    if usage.exit_code or not stages.is_file():
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        end = f"signal {-usage.exit_code}" if usage.exit_code < 0 else f"code {usage.exit_code}"
        raise CaseError(f"failed ({end}): {said[-1] if said else 'it said nothing'}")
    content = json.loads(stages.read_text(encoding="utf-8"))
    seconds: dict[str, float] = content["cases"][0]["seconds"] if "cases" in content else content
    known = {stage: seconds.get(stage, 0.0) for stage in STAGES[1:]}
    known["start"] = usage.seconds - sum(known.values())
    if system.network and "cases" in content:
        case = content["cases"][0]
        once = multiply_adds_of(system.network, case["window"])
        known["operations"] = 2.0 * case["passes"] * once
    return usage, known


def _compare(rows: Sequence[Row], work: Path, case_name: str) -> None:
    """Agreement with the published recipe, else with the first that ran the shared network.

    Not with nnU-Net's predictor where both ran: it sums windows in half precision.
    """

    def labels(i: int) -> Path:
        return work / f"labels_{i}" / label_name(case_name)

    ran = [i for i, row in enumerate(rows) if row.problem is None and row.system.same_network]
    if not ran:
        return
    first = next((i for i in ran if rows[i].system.name == PUBLISHED), ran[0])
    reference = read_labels(labels(first)).labels
    for i in ran:
        own = read_labels(labels(i)).labels
        rows[i].same_voxels = float(np.mean(own == reference))
        both = [(own == label, reference == label) for label in ORGANS]
        found = [dice(a, b) for a, b in both if a.any() or b.any()]
        rows[i].agreement = float(np.mean(found)) if found else float("nan")
