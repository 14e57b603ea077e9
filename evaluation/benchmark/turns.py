"""Runs the systems one after the other, again and again, each run a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from evaluation.benchmark.peak import multiply_adds_of
from evaluation.benchmark.rows import STAGES, Peaks, Row
from evaluation.benchmark.setting import Setting
from evaluation.benchmark.systems import System
from evaluation.usage import Usage, run_command
from inference.errors import CaseError
from inference.file_names import label_name


def run_in_turns(
    systems: Sequence[System], case: Path, out: Path, setting: Setting
) -> tuple[list[Row], Peaks]:
    """Run all systems in turns, so that a slower minute of the machine meets each of them.

    Args:
        systems: what is run.
        case: the CT. What is made on the way lies in its folder: the labels, which stay there.
        out: folder of the results, in which logs stay.
        setting: threads, turns, and whether the peak is measured.

    Returns:
        A row per system, and the machine's peak for each instruction set and number of threads.
    """
    rows = [
        Row(system, case.parent / f"labels_{i}" / label_name(case.name), problem=system.problem)
        for i, system in enumerate(systems)
    ]
    measured: list[list[tuple[Usage, dict[str, float]]]] = [[] for _ in rows]
    peaks: Peaks = {}
    places = {
        (row.system.isa, row.system.threads or setting.threads): None
        for row in rows
        if row.system.network and not row.problem
    }
    runs = setting.repeats * len(rows)
    with tqdm(total=runs, unit="run", desc="benchmark", disable=setting.quiet or None) as bar:
        for turn in range(1, setting.repeats + 1):
            if "peak" in setting.groups:  # in every turn: the best counts
                for place in places or {(None, setting.threads): None}:
                    _measure_peak(peaks, *place, setting.small)
            for row, own in zip(rows, measured, strict=True):
                if row.problem is None:
                    log = out / "logs" / f"{_file_name(row.system)}_{turn}.txt"
                    try:
                        own.append(_run_once(row.system, case, row.labels, log, setting.threads))
                    except CaseError as error:
                        row.problem = str(error)
                bar.update()
    for row, own in zip(rows, measured, strict=True):
        if row.problem is None:
            _fill_in(row, own)
    return rows, peaks


def _file_name(system: System) -> str:
    return system.name.replace(" ", "_").replace(",", "")


def _fill_in(row: Row, measured: Sequence[tuple[Usage, dict[str, float]]]) -> None:
    """The medians of a system's runs."""
    usages, stages = zip(*measured, strict=True)
    row.seconds = statistics.median(usage.seconds for usage in usages)
    row.cpu_seconds = statistics.median(usage.cpu_seconds or 0.0 for usage in usages)
    row.peak_memory = max(usage.peak_memory or 0 for usage in usages)
    row.stages = {
        stage: statistics.median(one.get(stage, 0.0) for one in stages) for stage in STAGES
    }
    if "operations" in stages[0]:
        row.speed = stages[0]["operations"] / row.stages["network"]


def _measure_peak(peaks: Peaks, isa: str | None, threads: int, small: bool) -> None:
    """Measure what the machine can do; keep it where it is more than before."""
    command = [sys.executable, "-m", "evaluation.benchmark.peak", "--threads", str(threads)]
    limit = {"ONEDNN_MAX_CPU_ISA": isa} if isa else {}
    done = subprocess.run(
        [*command, *(["--small"] if small else [])],
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
    system: System, case: Path, labels: Path, log: Path, threads: int
) -> tuple[Usage, dict[str, float]]:
    """Run one system on the case once.

    Args:
        system: what is run.
        case: the CT.
        labels: the file to write, in a folder that is made anew.
        log: file for what it prints.
        threads: of a system that has no number of its own.

    Returns:
        What it took, and its seconds by stage, if it tells them.

    Raises:
        CaseError: it failed.
    """
    threads = system.threads or threads
    work, outputs = case.parent, labels.parent
    stages = work / "stages.json"
    shutil.rmtree(outputs, ignore_errors=True)
    outputs.mkdir()
    stages.unlink(missing_ok=True)
    places = {
        "{labels}": str(labels),
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
        ours = content["cases"][0]
        once = multiply_adds_of(system.network, ours["window"])
        known["operations"] = 2.0 * ours["passes"] * once
    return usage, known
