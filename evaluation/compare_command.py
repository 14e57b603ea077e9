"""``python -m evaluation compare``: two predictions of the same cases, side by side."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from evaluation import figures
from evaluation.challenge import DECIMALS, METRICS, columns
from evaluation.comparison import CONFIDENCE, RESAMPLES, Difference, Values, compare
from evaluation.score_command import write_scores
from evaluation.scoring import ALL_LABELS, failed, score_folders
from evaluation.tables import csv_text, markdown_text, number
from inference.errors import UsageError
from inference.paths import is_there
from inference.write.files import make_folder, write_text


def run(
    reference: Path | None,
    first: Path,
    second: Path,
    out: Path,
    strict: bool = False,
    labels: Sequence[int] = ALL_LABELS,
    workers: int = 1,
    quiet: bool = False,
) -> tuple[list[Difference], list[str], bool]:
    """Score two folders of predictions and compare them case by case.

    Writes into ``out``: ``comparison.csv``, ``comparison.md``, ``differences.png`` and, for each
    folder that was scored, ``scores_first.csv`` and ``scores_second.csv``.

    Args:
        reference: folder of reference label files; not needed where both others are tables.
        first: folder of predictions, or a ``scores.csv`` made before.
        second: likewise; differences are second minus first.
        out: folder for the results, made where missing.
        strict: leave missing predictions out instead of counting them as zero.
        labels: which organs.
        workers: processes.
        quiet: show no progress bar.

    Returns:
        The rows, sentences on what was noticed, and whether something went wrong: a case that
        cannot be scored (`evaluation.scoring.failed`), or, unless strict, is in one side only.

    Raises:
        UsageError: something is missing, no case is in both, or ``out`` cannot be written.
    """
    notes: list[str] = []
    bad = False
    sides: list[dict[str, Values]] = []
    for path in (first, second):
        if not is_there(path):
            raise UsageError(f"{path}: no such folder or table")
        if path.is_dir() and reference is None:
            raise UsageError(f"{path}: to score a folder, --reference is needed")
    make_folder(out)
    try:
        for side, path in (("first", first), ("second", second)):
            if not path.is_dir() or reference is None:
                sides.append(read_scores(path, labels))
                continue
            scores = score_folders(reference, path, strict, labels, workers, quiet)
            write_scores(scores, labels, out / f"scores_{side}.csv")
            sides.append({score.name: score.values for score in scores if score.values})
            notes += [f"{side}: {note}" for score in scores for note in score.notes]
            bad |= failed(scores, strict)
        alone = [
            f"{name}: only in the {side}, so not compared"
            for side, own, other in (("first", *sides), ("second", *reversed(sides)))
            for name in own
            if name not in other
        ]
        notes += alone
        bad |= bool(alone) and not strict
        rows = compare(sides[0], sides[1], labels)
        if not rows[0].cases:
            raise UsageError(f"{first} and {second} have no case in common")
        _write(rows, first, second, out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from None
    return rows, notes, bad


def read_scores(path: Path, labels: Sequence[int]) -> dict[str, Values]:
    """Read a table that ``score`` (or the organisers' script) wrote.

    Raises:
        UsageError: it cannot be read, or lacks a column or a number.
    """
    wanted = columns(labels)
    keys = [(metric, label) for metric in METRICS for label in labels]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel puts a mark before it
            reader = csv.DictReader(file)
            there = reader.fieldnames or []
            if missing := sorted(set(wanted) - set(there)):
                hint = "; are its cells separated by commas?" if len(there) == 1 else ""
                raise UsageError(f"{path}: no column {', '.join(missing)}{hint}")
            rows = [(reader.line_num, row) for row in reader]
        scores: dict[str, Values] = {}
        for line, row in rows:
            if None in row or None in row.values():  # cells too many, or too few
                raise UsageError(f"{path}: row {line} has not {len(there)} cells")
            scores[row["Name"]] = {
                key: _score(row[column], f"{path}: row {line}, {column}")
                for key, column in zip(keys, wanted[1:], strict=True)
            }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a table of scores ({error})") from None
    if len(scores) < len(rows):
        raise UsageError(f"{path}: a case is there twice")
    return scores


def _score(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(f"{where}: {text!r} is no score from 0 to 1")
    return value


def _write(rows: Sequence[Difference], first: Path, second: Path, out: Path) -> None:
    header = [
        "Organ", "Metric", "Cases", "First", "Second", "Difference", "CI_low", "CI_high",
        "Better", "Worse", "Wilcoxon_p", "Holm_p",
    ]  # fmt: skip
    cells = [
        [
            row.organ,
            row.metric,
            str(row.cases),
            *(number(v, DECIMALS) for v in (row.first, row.second)),
            *(number(v, DECIMALS + 1) for v in (row.mean, row.low, row.high)),
            str(row.better),
            str(row.worse),
            *("-" if math.isnan(p) else f"{p:.3g}" for p in (row.p, row.p_holm)),
        ]
        for row in rows
    ]
    write_text(out / "comparison.csv", csv_text(header, cells))
    text = [
        f"First: {first}. Second: {second}. Differences are second minus first; positive is "
        f"better.\n\n",
        markdown_text(
            [
                "Organ", "Metric", "Cases", "First", "Second", "Difference",
                f"{CONFIDENCE:.0%} interval", "Better / worse", "Wilcoxon p", "Holm p",
            ],
            (
                [*row[:6], f"{row[6]} to {row[7]}", f"{row[8]} / {row[9]}", *row[10:]]
                for row in cells
            ),
        ),
        f"\nInterval: bootstrap over the cases, bias-corrected and accelerated, {RESAMPLES} "
        "resamples. Test: two-sided Wilcoxon signed-rank on the cases that differ; Holm's "
        "adjustment is over the organs of one metric, without the overall row.\n",
    ]  # fmt: skip
    write_text(out / "comparison.md", "".join(text))
    # One case has no interval: its point is drawn alone.
    panels = {
        metric: [(row.organ, row.mean, row.low, row.high) for row in rows if row.metric == metric]
        for metric in METRICS
    }
    title = f"{second.name} minus {first.name}, {rows[0].cases} cases"
    figures.differences(panels, title, out / "differences.png")
