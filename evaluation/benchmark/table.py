"""The table of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation import host
from evaluation.benchmark import shared_network
from evaluation.benchmark.rows import STAGES, Peaks, Row
from evaluation.benchmark.setting import ISA_LEVELS, Setting
from evaluation.tables import csv_text, markdown_text, number
from inference.plan_check import PRECISIONS
from inference.write.files import write_text


def write_table(
    rows: Sequence[Row],
    peaks: Peaks,
    out: Path,
    case: Path,
    size: Sequence[int],
    checkpoint: Path | None,
    setting: Setting,
) -> None:
    """Write ``benchmark.csv`` and ``benchmark.md``.

    Args:
        rows: what came out, in the order of the table.
        peaks: what the machine can do.
        out: the folder.
        case: the CT, of which the name is told.
        size: its voxels (x, y, z).
        checkpoint: of the shared network; ``None`` if it was made for the benchmark.
        setting: how it was run.
    """
    baselines = [row for row in rows if row.problem is None and row.system.baseline]
    header = ["System", "Seconds", *(stage.capitalize() for stage in STAGES), "Peak_MiB",
              "CPU_seconds", "Network_GOPS", "Share_of_int8_peak", "Same_voxels", "Mean_DSC",
              "Problem"]  # fmt: skip

    def share(row: Row) -> float:
        peak = peaks.get((row.system.isa, row.system.threads or setting.threads), {}).get("int8")
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
        f"trained for {shared_network.STEPS} steps on another phantom, which is enough for "
        "regions where organs are, not for accuracy"
    )
    if checkpoint is not None:
        weights = f"those of {checkpoint.name}"
    write_text(
        out / "benchmark.md",
        f"Case {case.name}, {' x '.join(map(str, size))} voxels. {setting.threads} threads; "
        f"medians of {setting.repeats} runs, each a process of its own. Measured on "
        f"{host.describe()}.\n\n"
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
