"""``python -m evaluation score``: tables, figures and pictures from two folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from evaluation import figures, overlay, summary
from evaluation.challenge import COLUMN_OF, METRICS, columns
from evaluation.scoring import ALL_LABELS, CaseScore, score_folders
from evaluation.tables import csv_text, markdown_text, number
from evaluation.volumes import list_cts, shown, stem, volumes_by_case
from inference.console import say
from inference.errors import CaseError, UsageError
from inference.write.files import make_folder, write_text


def run(
    reference: Path,
    prediction: Path,
    out: Path,
    strict: bool = False,
    labels: Sequence[int] = ALL_LABELS,
    images: Path | None = None,
    worst: int = 5,
    workers: int = 1,
    quiet: bool = False,
) -> list[CaseScore]:
    """Score a folder and write everything that there is to say about it.

    Writes into ``out``: ``scores.csv`` (the organisers' table), ``cases.csv`` (state, means and
    notes per case), ``summary.csv`` and ``summary.md`` (per organ and overall), ``boxplots.png``,
    ``worst.md`` and ``overlays/NAME.png`` of the worst cases.

    Args:
        reference: folder of reference label files.
        prediction: folder of predictions under the same names.
        out: folder for the results, made where missing.
        strict: treat what cannot be scored as the organisers' script does (`evaluation.scoring`).
        labels: which organs.
        images: folder with the CTs, to lay under the overlays (``X.nii.gz`` or ``X_0000.nii.gz``).
        worst: how many cases to list and draw.
        workers: processes.
        quiet: show no progress bar.

    Raises:
        UsageError: a folder is missing or empty, or ``out`` cannot be written.
    """
    cts = {} if images is None else list_cts(images)
    make_folder(out)  # what is wrong with it is better said before the scoring
    scores = score_folders(reference, prediction, strict, labels, workers, quiet)
    try:
        write_scores(scores, labels, out / "scores.csv")
        _write_cases(scores, out / "cases.csv")
        _write_summary(scores, labels, strict, out)
        if any(score.values for score in scores):
            figures.box_plots(scores, labels, out / "boxplots.png")
        else:
            (out / "boxplots.png").unlink(missing_ok=True)  # of a run before this one
        worst_cases = summary.worst(scores, worst)
        truths, guesses = (volumes_by_case(folder) for folder in (reference, prediction))
        _write_worst(worst_cases, truths, guesses, cts, out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from None
    return scores


def write_scores(scores: Sequence[CaseScore], labels: Sequence[int], path: Path) -> None:
    """The organisers' table: one row per counted case, four decimals in every cell."""
    keys = [(metric, label) for metric in METRICS for label in labels]
    rows = [
        [score.name, *(number(score.values[key]) for key in keys)]
        for score in scores
        if score.values
    ]
    write_text(path, csv_text(columns(labels), rows))


def _write_cases(scores: Sequence[CaseScore], path: Path) -> None:
    rows = [
        [
            score.name,
            score.status,
            "yes" if score.values else "no",
            number(score.mean("DSC")),
            number(score.mean("NSD")),
            " ".join(COLUMN_OF[label] for label in score.absent),
            "; ".join(score.notes),
        ]
        for score in scores
    ]
    header = ["Name", "Status", "Counted", "Mean_DSC", "Mean_NSD", "Absent", "Notes"]
    write_text(path, csv_text(header, rows))


def _write_summary(
    scores: Sequence[CaseScore], labels: Sequence[int], strict: bool, out: Path
) -> None:
    lines = summary.summarise(scores, labels)
    header = ["Organ", "Metric", "Cases", "Absent", "Mean", "SD", "Median", "Q1", "Q3"]
    rows = [
        [
            line.organ,
            line.metric,
            str(line.cases),
            "-" if line.organ == summary.OVERALL else str(line.absent),
            *(number(v) for v in (line.mean, line.sd, line.median, line.lower, line.upper)),
        ]
        for line in lines
    ]
    write_text(out / "summary.csv", csv_text(header, rows))

    states = {
        state: sum(score.status == state for score in scores)
        for state in ("scored", "missing", "error", "extra")
    }
    # The reference is unreadable or the scoring was killed: not what the prediction did.
    unknown = sum(score.status == "error" and not score.values for score in scores)
    left_out = f"; pairs left out, since nothing is known of them: {unknown}" if unknown else ""
    text = [
        f"{states['scored']} cases scored, {states['missing']} predictions missing, "
        f"{states['error']} pairs that cannot be scored, {states['extra']} predictions without "
        "a reference. "
        + (
            "Strict mode: only scored cases are counted.\n\n"
            if strict
            else f"Missing predictions and those that cannot be scored count as zero{left_out}.\n\n"
        )
    ]
    by_organ: dict[str, list[str]] = {}
    for line in lines:
        absent = "-" if line.organ == summary.OVERALL else str(line.absent)
        cells = by_organ.setdefault(line.organ, [line.organ, str(line.cases), absent])
        cells.append(f"{number(line.mean)} ± {number(line.sd)}")
        cells.append(f"{number(line.median)} ({number(line.lower)} to {number(line.upper)})")
    text.append(
        markdown_text(
            [
                "Organ",
                "Cases",
                "Absent",
                *(
                    f"{metric} {what}"
                    for metric in METRICS
                    for what in ("mean ± SD", "median (quartiles)")
                ),
            ],
            by_organ.values(),
        )
    )
    text.append(
        "\nOverall: mean over a case's organs, then over the cases. Absent: cases in which "
        "neither mask has the organ; the challenge's rules count each as 1.\n"
    )
    if problems := [note for score in scores for note in score.notes]:
        text.append("\n" + "".join(f"- {note}\n" for note in problems))
    write_text(out / "summary.md", "".join(text))


def _that_counts(paths: Sequence[Path], name: str) -> Path:
    """Of a case's files the one of its name (as `shown`), else the first."""
    return next((path for path in paths if shown(path) == name), paths[0])


def _write_worst(
    cases: Sequence[CaseScore],
    truths: dict[str, list[Path]],
    guesses: dict[str, list[Path]],
    cts: dict[str, Path],
    out: Path,
) -> None:
    pictures = out / "overlays"
    # Of an earlier run: pictures of other cases would mislead. Only ours: those that it lists.
    earlier = out / "worst.md"
    if earlier.is_file():
        text = earlier.read_text(encoding="utf-8", errors="replace")
        for link in re.findall(r"\(overlays/([^/)]+\.png)\)", text):
            (pictures / Path(unquote(link)).name).unlink(missing_ok=True)
    rows, trouble = [], []
    for case in cases:
        name = stem(case.name)
        picture = pictures / f"{name}.png"
        pictures.mkdir(exist_ok=True)
        link = "-"
        truth = _that_counts(truths[name], case.name)
        guess = _that_counts(guesses[name], case.name) if name in guesses else None
        ct = cts.get(name)
        for under in (ct, None) if ct else (None,):
            try:
                overlay.draw(case, truth, guess, under, picture)
            except (CaseError, MemoryError) as error:
                reason = str(error) if isinstance(error, CaseError) else "too little memory"
                trouble.append(f"{'no CT in the picture' if under else 'no picture'}: {reason}")
                if under:  # what is wrong with the labels is among the case's own notes
                    say(f"note: {trouble[-1]}", error=True)
            else:
                link = f"[picture](overlays/{quote(picture.name, safe='')})"
                break
        label = case.worst_label
        lowest = "-"
        if label is not None:
            dsc, nsd = case.values["DSC", label], case.values["NSD", label]
            lowest = f"{COLUMN_OF[label]} ({number(dsc)} / {number(nsd)})"
        means = (number(case.mean(metric)) for metric in METRICS)
        rows.append([case.name, case.status, *means, lowest, link])
    header = ["Case", "Status", "Mean DSC", "Mean NSD", "Lowest organ (DSC / NSD)", "Overlay"]
    text = markdown_text(header, rows)
    if trouble:
        text += "\n" + "".join(f"- {line}\n" for line in trouble)
    write_text(out / "worst.md", text)
