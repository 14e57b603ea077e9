"""Scores two folders of label files: by the challenge's rules, and without keeping quiet.

For a pair that can be scored, the numbers are the organisers' in either mode. The modes differ in
what happens to the rest:

============================  ================================  ================================
what is found                 default                           strict (as the organisers do)
============================  ================================  ================================
a prediction is missing       a row of zeros, counted           no row (their script only lists
                                                                the predictions); reported
prediction unreadable or of   a row of zeros, counted           no row (their script stops
another size                                                    there); reported
prediction there as X.nii     scored; twice: zeros, counted     X.nii.gz of the reference's name
and not, or beside, X.nii.gz                                    alone counts; reported
same size, other spacing or   a row of zeros, counted           scored as stored with the
position                                                        reference's zooms; reported
values that are no labels     a row of zeros, counted           cast to uint8
reference unreadable or       no row; reported                  no row; reported
there twice, or the scoring
was killed
============================  ================================  ================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from tqdm import tqdm

from evaluation.challenge import COLUMN_OF, DECIMALS, METRICS
from evaluation.metrics import is_single_slice, score_organ
from evaluation.processes import processes
from evaluation.volumes import (
    SUFFIXES,
    LabelVolume,
    check_header,
    check_same_grid,
    read_labels,
    shown,
    twice,
    volumes_by_case,
)
from inference.errors import CaseError, UsageError
from inference.grid import Box
from inference.organs import ORGANS

ALL_LABELS: tuple[int, ...] = tuple(ORGANS)

Boxes = dict[int, Box]
"""Label value to the slices that enclose it; those that are not there are left out."""


@dataclass(frozen=True)
class CaseScore:
    """What came out for one case.

    Attributes:
        name: the reference's file name, as in the organisers' table.
        status: "scored", "missing" (no prediction), "error" (a pair that cannot be scored) or
            "extra" (a prediction without a reference).
        values: (metric, label) to its value, rounded; empty where there is no row for the case.
        absent: labels that neither the reference nor the prediction has.
        notes: sentences on what is wrong or unusual.
    """

    name: str
    status: str
    values: dict[tuple[str, int], float] = field(default_factory=dict)
    absent: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def mean(self, metric: str) -> float:
        """Mean of a metric over the organs (nan where the case has no row)."""
        own = [value for (name, _), value in self.values.items() if name == metric]
        return float(np.mean(own)) if own else float("nan")

    @property
    def worst_label(self) -> int | None:
        """The label with the lowest DSC (then NSD), ``None`` where the case has no row."""
        labels = [label for metric, label in self.values if metric == "DSC"]
        if not labels:
            return None
        return min(labels, key=lambda v: (self.values["DSC", v], self.values["NSD", v]))


def failed(scores: Sequence[CaseScore], strict: bool) -> bool:
    """Whether some case could not be scored, which the exit code says.

    Args:
        scores: of a folder.
        strict: as the organisers' script, which does not mind a missing prediction.
    """
    bad = {"error"} if strict else {"error", "missing"}
    return any(score.status in bad for score in scores)


def score_labels(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    zooms: tuple[float, ...],
    labels: Sequence[int] = ALL_LABELS,
    boxes: tuple[Boxes, Boxes] | None = None,
) -> dict[tuple[str, int], float]:
    """DSC and NSD of every organ of one pair, rounded as the organisers round.

    Args:
        reference: uint8 volume of shape (i, j, k) in NIfTI's axis order; k is the axial axis.
        prediction: uint8 volume of the same shape.
        zooms: millimetres along i, j and k.
        labels: which organs.
        boxes: where the labels of both lie, if that is known (`find_boxes`).

    Returns:
        (metric, label) to the value.
    """
    in_r, in_p = boxes or (find_boxes(reference), find_boxes(prediction))
    scores = {
        label: score_organ(reference, prediction, label, zooms, (in_r.get(label), in_p.get(label)))
        for label in labels
    }
    # numpy's rounding, not Python's: the organisers round numpy numbers, ties to the even digit
    # of the scaled value.
    return {
        (metric, label): float(np.round(np.float64(scores[label][i]), DECIMALS))
        for i, metric in enumerate(METRICS)
        for label in labels
    }


def find_boxes(volume: NDArray[np.uint8]) -> Boxes:
    """Every value but 0 that a volume (i, j, k) has, and the slices that enclose it."""
    found = find_objects(volume, max_label=255)
    return {
        value: (box[0], box[1], box[2]) for value, box in enumerate(found, 1) if box is not None
    }


def score_case(
    name: str,
    reference: Path,
    prediction: Path | None,
    strict: bool = False,
    labels: Sequence[int] = ALL_LABELS,
) -> CaseScore:
    """Score one pair of files; what is wrong with them ends in the result, not in an exception.

    Args:
        name: what the case is called in the tables.
        reference: the reference's file.
        prediction: the prediction's file, ``None`` where there is none.
        strict: see the module's table.
        labels: which organs.
    """
    zeros = _zeros(strict, labels)
    try:
        truth = read_labels(reference, strict)
        check_header(truth)
    except CaseError as error:  # nothing can be said about the prediction
        return CaseScore(name, "error", notes=(str(error),))
    if prediction is None:
        return CaseScore(name, "missing", zeros, notes=(f"{name}: prediction is missing",))
    try:
        guess = read_labels(prediction, strict, truth.labels.shape)
        if not strict:  # the organisers never look at it
            check_header(guess)
        difference = check_same_grid(truth, guess, strict)
    except CaseError as error:
        return CaseScore(name, "error", zeros, notes=(str(error),))
    boxes = find_boxes(truth.labels), find_boxes(guess.labels)
    notes = [] if difference is None else [difference]
    notes += _oddities(truth, guess, boxes, labels)
    return CaseScore(
        name,
        "scored",
        score_labels(truth.labels, guess.labels, truth.zooms, labels, boxes),
        tuple(label for label in labels if not any(label in own for own in boxes)),
        tuple(notes),
    )


def _zeros(strict: bool, labels: Sequence[int]) -> dict[tuple[str, int], float]:
    """The row of a prediction that cannot be scored, if it has one."""
    return {} if strict else {(metric, label): 0.0 for metric in METRICS for label in labels}


def _oddities(
    truth: LabelVolume, guess: LabelVolume, boxes: tuple[Boxes, Boxes], labels: Sequence[int]
) -> list[str]:
    notes = []
    in_truth, in_guess = boxes
    for label in labels:
        if is_single_slice(label, in_truth.get(label)) and label in in_guess:
            notes.append(
                f"{truth.path}: {COLUMN_OF[label]} is labelled on one slice only, of which the "
                "slab rule leaves nothing; counted as two empty masks"
            )
    for volume, own in ((truth, in_truth), (guess, in_guess)):
        if unknown := [value for value in own if value > max(ORGANS)]:
            values = ", ".join(map(str, unknown))
            notes.append(f"{volume.path}: values beyond the 13 organs are ignored ({values})")
    return notes


def score_folders(
    reference: Path,
    prediction: Path,
    strict: bool = False,
    labels: Sequence[int] = ALL_LABELS,
    workers: int = 1,
    quiet: bool = False,
) -> list[CaseScore]:
    """Score every case of a reference folder, several at once.

    Args:
        reference: folder of reference label files.
        prediction: folder of predictions under the same names.
        strict: see the module's table.
        labels: which organs.
        workers: processes.
        quiet: show no progress bar.

    Returns:
        One result per reference in the order of their names, then predictions that have no
        reference ("extra").

    Raises:
        UsageError: a folder is missing or the reference folder has no NIfTI file.
    """
    truths, guesses = volumes_by_case(reference), volumes_by_case(prediction)
    if not truths:
        raise UsageError(f"{reference}: no .nii.gz or .nii file in the reference folder")
    doubled: dict[str, CaseScore] = {}
    pairs: list[tuple[str, Path, Path | None]] = []
    for case, own in truths.items():
        name, others = shown(own[0]), guesses.get(case, [])
        if strict:  # the organisers open the file of the same name
            others = [path for path in others if shown(path) == name]
        if len(own) > 1:
            doubled[name] = CaseScore(name, "error", notes=(twice(own),))
        elif len(others) > 1:
            doubled[name] = CaseScore(name, "error", _zeros(strict, labels), notes=(twice(others),))
        else:
            pairs.append((name, own[0], others[0] if others else None))
    with tqdm(total=len(pairs), unit="case", desc="scoring", disable=quiet or None) as bar:
        if min(workers, len(pairs)) <= 1:
            results = []
            for pair in pairs:
                results.append(_result(partial(score_case, *pair, strict, labels), pair[0]))
                bar.update()
        else:
            results = _score_in_processes(pairs, strict, labels, workers, bar)
    names = {shown(path) for own in truths.values() for path in own}
    extras = [
        CaseScore(shown(path), "extra", notes=(f"{path}: has no reference, so no score",))
        for case, paths in guesses.items()
        for path in paths
        if case not in truths or (strict and shown(path) not in names)
    ]
    of_name = doubled | {score.name: score for score in results}
    scores = [of_name[shown(own[0])] for own in truths.values()]
    found = zip(truths, scores, strict=True)
    return [_with_what_is_there(score, case, prediction) for case, score in found] + extras


def _with_what_is_there(score: CaseScore, case: str, folder: Path) -> CaseScore:
    """Name the file that a missing prediction may be, where it is not read."""
    if score.status != "missing":
        return score
    for path in sorted(folder.rglob(f"{escape(case)}.*")):
        read = path.parent == folder and path.name.lower().endswith(SUFFIXES)
        if path.is_file() and not read:
            unread = f"{path} is there, but only NIfTI files in the folder itself are read"
            return replace(score, notes=(*score.notes, unread))
    return score


def _score_in_processes(
    pairs: Sequence[tuple[str, Path, Path | None]],
    strict: bool,
    labels: Sequence[int],
    workers: int,
    bar: tqdm[NoReturn],
) -> list[CaseScore]:
    """Score pairs in several processes; a process that dies costs its case, not the others'.

    Its death ends every case that waits or runs in the same pool, and nobody says whose it was. So
    those are scored again, each in a process of its own.
    """
    results: dict[str, CaseScore] = {}
    arguments = (strict, tuple(labels))
    with processes(min(workers, len(pairs))) as pool:
        jobs: dict[Future[CaseScore], str] = {}
        with suppress(BrokenExecutor):
            for pair in pairs:
                jobs[pool.submit(score_case, *pair, *arguments)] = pair[0]
        for job in as_completed(jobs):
            if not isinstance(job.exception(), BrokenExecutor):
                results[jobs[job]] = _result(job.result, jobs[job])
                bar.update()
    for pair in pairs:
        if pair[0] not in results:
            with processes(1) as pool:
                job = pool.submit(score_case, *pair, *arguments)
                results[pair[0]] = _result(job.result, pair[0])
            bar.update()
    return [results[name] for name, *_ in pairs]


def _result(score: Callable[[], CaseScore], name: str) -> CaseScore:
    """A case's score, or why there is none."""
    try:
        return score()
    except (MemoryError, OSError, BrokenExecutor) as error:
        killed = not isinstance(error, OSError)
        reason = "a process was killed or ran out of memory" if killed else str(error)
        note = f"{name}: cannot be scored ({reason}); fewer --workers need less memory"
        return CaseScore(name, "error", notes=(note,))
