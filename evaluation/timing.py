"""Times a submission case by case: a fresh start for each, wall clock around it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
from tqdm import tqdm

from evaluation import host
from evaluation.challenge import TIME_LIMIT
from evaluation.figures import seconds_against_slices
from evaluation.tables import csv_text, markdown_text, number
from evaluation.usage import Runner, Usage, run_folders
from evaluation.volumes import list_volumes, shown, without_axes_of_one
from inference.errors import CaseError, UsageError
from inference.file_names import label_name
from inference.write.files import write_text


@dataclass(frozen=True)
class CaseTiming:
    """What one case took.

    Attributes:
        name: the input's file name.
        shape: voxels along the file's axes, as NIfTI stores them (slices last).
        zooms: millimetres along them.
        usage: what was measured, ``None`` where it could not be started.
        verdict: "ok" or what is wrong.
    """

    name: str
    shape: tuple[int, ...]
    zooms: tuple[float, ...]
    usage: Usage | None
    verdict: str

    @property
    def passed(self) -> bool:
        """Whether there is nothing wrong."""
        return self.verdict == "ok"


def time_cases(
    cases: Path,
    out: Path,
    runner: Runner,
    limit: float = TIME_LIMIT,
    memory: int | None = None,
    title: str = "",
    quiet: bool = False,
) -> list[CaseTiming]:
    """Run every case of a folder by itself and write what it took.

    Writes into ``out``: ``timing.csv``, ``timing.md``, ``timing.png``, ``outputs/`` with the
    labels and ``logs/`` with what each run printed.

    Args:
        cases: folder of CTs (``.nii.gz``, ``.nii``).
        out: folder for the results, made where missing.
        runner: what runs one case (`evaluation.container.Container`, or a command).
        limit: seconds allowed per case.
        memory: bytes allowed, where the runner does not enforce it.
        title: what is timed, for the table and the plot.
        quiet: show no progress bar.

    Returns:
        One timing per case, in the order of their names.

    Raises:
        UsageError: no cases, two cases whose labels would have one name, ``out`` cannot be
            written, or there is nothing that could be run.
    """
    files = list_volumes(cases)
    if not files:
        raise UsageError(f"{cases}: no .nii.gz or .nii file to time")
    by_labels: dict[str, Path] = {}
    for path in files.values():
        other = by_labels.setdefault(label_name(path.name), path)
        if other is not path:
            raise UsageError(f"{path}: its labels would have the name of those of {other.name}")
    timings: list[CaseTiming] = []
    try:
        for folder in (out, out / "outputs", out / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        for name, path in tqdm(files.items(), unit="case", desc="timing", disable=quiet or None):
            timings.append(_time_case(name, path, out, runner, limit, memory))
            # After every case: what was measured is not lost when a later one is interrupted.
            _write(timings, out, limit, title)
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror or error}") from None
    return timings


def write_side_by_side(out: Path, timings: Mapping[str, Sequence[CaseTiming]], title: str) -> None:
    """Write ``timing.csv`` and ``timing.md`` with a few columns for each model that was timed.

    Args:
        out: folder for them.
        timings: a model's name to what the same cases took, in the same order.
        title: of what the models are, for the table.

    Raises:
        UsageError: ``out`` cannot be written.
    """
    columns = ("s", "MiB", "CPU s", "verdict")
    header = ["Name", "Size", *(f"{model}: {column}" for model in timings for column in columns)]
    rows = []
    for sides in zip(*timings.values(), strict=True):
        row = [sides[0].name, " x ".join(map(str, sides[0].shape)) or "-"]
        for side in sides:
            row += [*_numbers(side.usage), side.verdict]
        rows.append(row)
    try:
        write_text(out / "timing.csv", csv_text(header, rows))
        write_text(
            out / "timing.md",
            f"{title}, measured on {host.describe()}.\n\n" + markdown_text(header, rows),
        )
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror or error}") from None


def _numbers(usage: Usage | None) -> list[str]:
    """Seconds, peak memory in MiB and CPU seconds; "-" for what is not known."""
    if usage is None:
        return ["-"] * 3
    return [
        number(usage.seconds, 2),
        f"{usage.peak_memory / 2**20:.0f}" if usage.peak_memory else "-",
        "-" if usage.cpu_seconds is None else number(usage.cpu_seconds, 2),
    ]


def _time_case(
    name: str, path: Path, out: Path, runner: Runner, limit: float, memory: int | None
) -> CaseTiming:
    try:
        header: Any = nibabel.load(path).header
        shape = tuple(int(n) for n in header.get_data_shape())
        zooms = tuple(float(z) for z in header.get_zooms())
    except Exception:  # a broken file is a case too: what the submission does with it is timed
        shape, zooms = (), ()
    wanted = label_name(path.name)
    log = out / "logs" / f"{name}.txt"
    for left in (out / "outputs" / wanted, log):  # by a run before this one
        left.unlink(missing_ok=True)
    with run_folders(out) as (inputs, outputs):
        try:
            source = path.open("rb")
        except OSError as error:
            reason = f"failed: cannot be read ({error.strerror or error})"
            return CaseTiming(shown(path), shape, zooms, None, reason)
        with source, (inputs / path.name).open("wb") as copy:
            shutil.copyfileobj(source, copy)
        try:
            usage = runner(inputs, outputs, log)
        except CaseError as error:
            return CaseTiming(shown(path), shape, zooms, None, f"failed: {error}")
        verdict = _verdict(usage, limit, memory, _wrong_labels(outputs, wanted, shape))
        for written in outputs.iterdir():
            if written.is_file():
                shutil.move(written, out / "outputs" / written.name)
        return CaseTiming(shown(path), shape, zooms, usage, verdict)


def _wrong_labels(outputs: Path, wanted: str, shape: tuple[int, ...]) -> str | None:
    """What is wrong with the labels that a run wrote; only their header is read."""
    if not (outputs / wanted).is_file():
        others = ", ".join(sorted(shown(path) for path in outputs.iterdir()))
        return f"failed: wrote {others}, not {wanted}" if others else "failed: no labels written"
    try:
        with nibabel.imageglobals.LoggingOutputSuppressor():
            found: Any = nibabel.load(outputs / wanted).header
    except Exception as error:  # gzip, zlib and nibabel each raise their own
        return f"failed: {wanted} cannot be read ({' '.join(str(error).split())})"
    size = tuple(int(n) for n in found.get_data_shape())
    if shape and without_axes_of_one(size) != without_axes_of_one(shape):
        return f"failed: {wanted} has {size} voxels, not {shape}"
    return None


def _verdict(usage: Usage, limit: float, memory: int | None, wrong_labels: str | None) -> str:
    if usage.out_of_memory:
        return "out of memory"
    if usage.gave_up:
        return "stopped: took too long"
    if usage.exit_code < 0:
        return f"killed by signal {-usage.exit_code}"
    if usage.exit_code:
        return f"failed: exit code {usage.exit_code}"
    if wrong_labels:
        return wrong_labels
    if memory is not None and usage.peak_memory is not None and usage.peak_memory > memory:
        return "too much memory"
    return "ok" if usage.seconds <= limit else "too slow"


def _write(timings: Sequence[CaseTiming], out: Path, limit: float, title: str) -> None:
    header = [
        "Name", "Slices", "Size", "Spacing_mm", "Seconds", "Peak_memory_MiB", "CPU_seconds",
        "Exit_code", "Verdict",
    ]  # fmt: skip
    rows = []
    for timing in timings:
        usage = timing.usage
        rows.append(
            [
                timing.name,
                str(timing.shape[2]) if len(timing.shape) > 2 else "-",
                " x ".join(map(str, timing.shape)) or "-",
                " x ".join(f"{zoom:.4g}" for zoom in timing.zooms) or "-",
                *_numbers(usage),
                "-" if usage is None else str(usage.exit_code),
                timing.verdict,
            ]
        )
    write_text(out / "timing.csv", csv_text(header, rows))
    passed = sum(timing.passed for timing in timings)
    write_text(
        out / "timing.md",
        f"{title}: {passed} of {len(timings)} cases pass ({limit:g} s each). Measured on "
        f"{host.describe()}.\n\n" + markdown_text([h.replace("_", " ") for h in header], rows),
    )
    points = [
        (timing.shape[2], timing.usage.seconds, timing.passed)
        for timing in timings
        if timing.usage is not None and len(timing.shape) > 2
    ]
    seconds_against_slices(points, limit, title, out / "timing.png")
