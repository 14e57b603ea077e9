"""From cases to organs: mean, standard deviation, median and quartiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.challenge import COLUMN_OF, METRICS
from evaluation.scoring import CaseScore

OVERALL = "Overall"


@dataclass(frozen=True)
class Line:
    """The distribution of one metric over the cases.

    Attributes:
        organ: the organ's column name; "Overall" is the mean over a case's organs.
        metric: "DSC" or "NSD".
        cases: how many cases are counted.
        absent: in how many of them neither mask has the organ (each counts as 1).
        mean: arithmetic mean.
        sd: sample standard deviation (n - 1); nan for a single case.
        median: median.
        lower: first quartile (linear interpolation).
        upper: third quartile.
    """

    organ: str
    metric: str
    cases: int
    absent: int
    mean: float
    sd: float
    median: float
    lower: float
    upper: float


def summarise(scores: Sequence[CaseScore], labels: Sequence[int]) -> list[Line]:
    """One line per metric and organ, and per metric over all organs.

    Args:
        scores: the cases; those without values are left out.
        labels: the organs, in the order wanted.
    """
    counted = [score for score in scores if score.values]
    lines = []
    for metric in METRICS:
        for label in labels:
            values = [score.values[metric, label] for score in counted]
            absent = sum(label in score.absent for score in counted)
            lines.append(_line(COLUMN_OF[label], metric, values, absent))
        lines.append(_line(OVERALL, metric, [score.mean(metric) for score in counted], 0))
    return lines


def _line(organ: str, metric: str, values: Sequence[float], absent: int) -> Line:
    if not values:
        nan = float("nan")
        return Line(organ, metric, 0, absent, nan, nan, nan, nan, nan)
    lower, median, upper = (float(q) for q in np.percentile(values, [25, 50, 75]))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    mean = float(np.mean(values))
    return Line(organ, metric, len(values), absent, mean, sd, median, lower, upper)


def worst(scores: Sequence[CaseScore], number: int) -> list[CaseScore]:
    """The cases with the lowest mean of DSC and NSD, worst first."""
    counted = [score for score in scores if score.values]
    return sorted(counted, key=lambda s: (s.mean("DSC") + s.mean("NSD"), s.name))[:number]
