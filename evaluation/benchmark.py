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
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from evaluation import benchmark_network, host
from evaluation.benchmark_groups import GROUPS, ISA_LEVELS
from evaluation.benchmark_peak import multiply_adds_of
from evaluation.metrics import dice
from evaluation.tables import csv_text, markdown_text, number
from evaluation.usage import Usage, run_command
from evaluation.volumes import read_labels
from inference import progress
from inference.cases import label_name
from inference.errors import CaseError, ModelError, UsageError
from inference.machine import usable_threads
from inference.model import weights_folders
from inference.organs import ORGANS
from inference.paths import is_file
from inference.phantom import make_phantom
from inference.plan import Plan
from inference.plan_check import PRECISIONS
from inference.processor import instruction_sets
from inference.reading import read
from inference.writing import write_image, write_text

STAGES = ("start", "load", *progress.STAGES)
"""Where the seconds go, as far as the case had to wait for them; "start" is all that is in none of
the others: the interpreter, imports, exit."""

PUBLISHED = "published OpenVINO recipe, fp32"
SCALING = (1, 2, 4, 8, 16)
"""Numbers of threads, as far as there are as many."""


@dataclass(frozen=True)
class System:
    """One row of the table: what is run.

    Attributes:
        name: what the row is called.
        command: program and arguments, with ``{labels}`` (file), ``{outputs}`` (folder) and
            ``{stages}`` (file) to be filled in.
        isa: limit of the processor's instructions, ``None`` for none.
        same_network: whether its labels can be compared with the reference's.
        baseline: whether the others' speed is given as a multiple of its speed.
        problem: why it cannot run, ``None`` if it can.
        threads: how many threads it uses; ``None`` for as many as the benchmark is told.
        network: the IR that our engine runs; ``None`` for the other systems.
        precision: what it runs in.
        default: whether it is a model as it comes.
    """

    name: str
    command: tuple[str, ...]
    isa: str | None = None
    same_network: bool = True
    baseline: bool = False
    problem: str | None = None
    threads: int | None = None
    network: Path | None = None
    precision: str | None = None
    default: bool = False


@dataclass
class Row:
    """What came out for one system: medians over its runs.

    Attributes:
        system: what was run.
        seconds: wall clock around the process.
        stages: seconds per stage.
        peak_memory: most bytes of the process and its children.
        cpu_seconds: processor time.
        same_voxels: share of voxels labelled as by the reference system.
        agreement: mean DSC with it over the organs that either has.
        speed: operations a second of the network stage (a multiply-add is two).
        problem: why there are no numbers.
    """

    system: System
    seconds: float = float("nan")
    stages: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    cpu_seconds: float = float("nan")
    same_voxels: float = float("nan")
    agreement: float = float("nan")
    speed: float = float("nan")
    problem: str | None = None


Peaks = dict[tuple[str | None, int], dict[str, float]]
"""By limit of the instructions and number of threads: operations a second by precision."""


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
    _write(rows, peaks, out, case or Path("phantom"), shape, checkpoint, threads, repeats)
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


def list_systems(
    model: Path,
    problem: str | None,
    case: Path,
    groups: Sequence[str],
    levels: Sequence[str],
    threads: int,
) -> list[System]:
    """The rows of the table, also those that cannot run here.

    Args:
        model: the shared network's folder.
        problem: why it could not be made.
        case: the CT.
        groups: which of `GROUPS`.
        levels: which of `ISA_LEVELS`.
        threads: threads for every system.
    """

    def process(module: str) -> tuple[str, ...]:
        return (
            *(sys.executable, "-m", module, "--model", str(model), "--case", str(case)),
            *("--labels", "{labels}", "--stages", "{stages}", "--threads", "{threads}"),
        )

    def ours(folder: Path, precision: str) -> tuple[str, ...]:
        return (
            *(sys.executable, "-m", "inference", "-i", str(case), "-o", "{outputs}", "--quiet"),
            *("--model", str(folder), "--precision", precision),
            *("--report", "{stages}", "--threads", "{threads}"),
        )

    systems: list[System] = []
    with_levels: list[System] = []
    if "nnunet" in groups:
        absent = None if find_spec("nnunetv2") else "nnunetv2 is not installed (extra 'nnunet')"
        systems.append(
            System(
                "nnU-Net v2 predictor, fp32", process("evaluation.run_nnunet"),
                baseline=True,
                problem=absent or problem,
            )
        )  # fmt: skip
    if "published" in groups:
        absent = None if find_spec("torch") else "torch is not installed (extra 'training')"
        with_levels.append(
            System(
                PUBLISHED, process("evaluation.run_published"),
                baseline=True,
                problem=absent or problem,
            )
        )  # fmt: skip
    if "ours" in groups:
        for precision in PRECISIONS:
            absent = None
            if precision == "int8" and find_spec("nncf") is None:
                absent = "nncf is not installed (extra 'training')"
            elif precision == "bf16" and "avx512_bf16" not in instruction_sets():
                absent = "this processor has no bf16 instructions"
            with_levels.append(
                System(
                    f"ours, same network, {precision}", ours(model, precision),
                    problem=problem or absent,
                    network=model / ("network_int8.xml" if precision == "int8" else "network.xml"),
                    precision=precision,
                )
            )  # fmt: skip
    if "models" in groups:
        found = {
            path.parent.name: path.parent
            for folder in reversed(weights_folders())
            for path in sorted(folder.glob("*/plan.json"))
        }
        for name in sorted({"dsunet_eca", *found}):
            if name not in found:
                with_levels.append(
                    System(f"ours, {name}", (), problem="no such model in the weights folder")
                )
                continue
            plan = Plan.load(found[name])
            for precision, file in sorted(plan.networks.items()):
                default = precision == plan.precision
                note = ", its default" if default else ""
                with_levels.append(
                    System(
                        f"ours, {name}, {precision}{note}", ours(found[name], precision),
                        same_network=False,
                        network=found[name] / file,
                        precision=precision,
                        default=default,
                    )
                )  # fmt: skip
    systems += with_levels
    for level in levels:
        absent = None
        if ISA_LEVELS[level] not in instruction_sets():
            absent = f"this processor has no {level.replace('_CORE', '')}"
        systems += [
            replace(
                system,
                name=f"{system.name}, {level}",
                isa=level,
                baseline=False,
                problem=system.problem or absent,
            )
            for system in with_levels
            # The lower levels have no bf16 instructions.
            if system.precision != "bf16" or system.default or level.endswith("BF16")
        ]
    if "scaling" in groups:
        # The shared network in int8 (where that cannot run, in what can), and each model as it
        # comes.
        own = [s for s in with_levels if s.network and not s.problem]
        shown = [s for s in own if s.same_network][-1:] + [s for s in own if s.default]
        for count in SCALING:
            if count <= usable_threads() and count != threads:
                systems += [
                    replace(system, name=f"{system.name}, {count} threads", threads=count)
                    for system in shown
                ]
    return systems


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


def _write(
    rows: Sequence[Row],
    peaks: Peaks,
    out: Path,
    case: Path,
    shape: str,
    checkpoint: Path | None,
    threads: int,
    repeats: int,
) -> None:
    baselines = [row for row in rows if row.problem is None and row.system.baseline]
    header = ["System", "Seconds", *(stage.capitalize() for stage in STAGES), "Peak_MiB",
              "CPU_seconds", "Network_GOPS", "Share_of_int8_peak", "Same_voxels", "Mean_DSC",
              "Problem"]  # fmt: skip

    def share(row: Row) -> float:
        peak = peaks.get((row.system.isa, row.system.threads or threads), {}).get("int8")
        return row.speed / peak if peak else float("nan")

    cells = [
        [
            row.system.name,
            number(row.seconds, 2),
            *(number(row.stages.get(stage, float("nan")), 2) for stage in STAGES),
            f"{row.peak_memory / 2**20:.0f}" if row.peak_memory else "-",
            number(row.cpu_seconds, 1),
            number(row.speed / 1e9, 0),
            number(share(row), 3),
            number(row.same_voxels, 6),
            number(row.agreement),
            row.problem or "",
        ]
        for row in rows
    ]
    write_text(out / "benchmark.csv", csv_text(header, cells))
    ratios = [f"x {row.system.name.split(',')[0]}" for row in baselines]
    shown = [
        [
            cell[0],
            *(cell[1:2] if not row.problem else [f"- ({row.problem})"]),
            *(number(base.seconds / row.seconds, 1) for base in baselines),
            *cell[2 : 5 + len(STAGES)],
            "-" if share(row) != share(row) else f"{100 * share(row):.0f} %",
            "-" if row.same_voxels != row.same_voxels else f"{100 * row.same_voxels:.3f} %",
            cell[-2],
        ]
        for row, cell in zip(rows, cells, strict=True)
    ]
    weights = (
        f"trained for {benchmark_network.STEPS} steps on another phantom, which is enough for "
        "regions where organs are, not for accuracy"
    )
    if checkpoint is not None:
        weights = f"those of {checkpoint.name}"
    write_text(
        out / "benchmark.md",
        f"Case {case.name}, {shape} voxels. {threads} threads; medians of {repeats} runs, each a "
        f"process of its own. Measured on {host.describe()}.\n\n"
        + markdown_text(
            [
                "System",
                "Seconds",
                *ratios,
                *(stage.capitalize() for stage in STAGES),
                "Peak MiB",
                "CPU s",
                "Network GOP/s",
                "Of int8 peak",
                "Same voxels",
                "Mean DSC",
            ],
            shown,
        )
        + _peak_table(peaks)
        + "\nSeconds are file to file, wall clock around the process. A stage has the seconds "
        "that the case waited for it: ours reads while OpenVINO is loaded, and compiles while it "
        "prepares. Start is what is in no other stage (interpreter, imports, exit). Network "
        "GOP/s are the multiply-adds of all convolutions times two, by the seconds of the "
        "network stage. Same voxels and mean "
        "DSC are agreement of the labels with those of the published recipe (where it did not run, "
        f"of the first row), where the network is the same. Its weights: {weights}. "
        f"{', '.join(ISA_LEVELS)} limit the instructions (ONEDNN_MAX_CPU_ISA).\n",
    )


def _peak_table(peaks: Peaks) -> str:
    """What a plain stack of convolutions reaches here."""
    if not peaks:
        return ""
    cells = [
        [isa or "all", str(threads), *(f"{found.get(p, 0) / 1e9:.0f}" for p in PRECISIONS)]
        for (isa, threads), found in peaks.items()
    ]
    return (
        "\nGOP/s of a plain stack of 3 x 3 x 3 convolutions, 64 channels each, best of all "
        "runs (0: OpenVINO cannot run it):\n\n"
        + markdown_text(["Instructions", "Threads", *PRECISIONS], cells)
    )
