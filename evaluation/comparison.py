"""Paired comparison of two sets of predictions on the same cases.

For every organ and metric: the mean of the differences (second minus first), its 95 % confidence
interval and the p-value of the Wilcoxon signed-rank test.

The interval is a bootstrap one over the cases (10 000 resamples, bias-corrected and accelerated,
Efron 1987), since differences of DSC are skewed and bounded; its seed is fixed, so that a table can
be made again. The test (Wilcoxon 1945) is two-sided, leaves out cases without a difference, and is
exact for small samples without ties. As 13 organs are tested at once, p-values are also given as
Holm (1979) adjusts them, per metric.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evaluation.challenge import COLUMN_OF, METRICS
from evaluation.summary import OVERALL

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 2024

Values = Mapping[tuple[str, int], float]
"""(metric, label) to the value of one case."""


@dataclass(frozen=True)
class Difference:
    """Second minus first, for one organ and metric, over the cases that both have.

    Attributes:
        organ: the organ's column name; "Overall" is the mean over a case's organs.
        metric: "DSC" or "NSD".
        cases: number of pairs.
        first: mean of the first predictions.
        second: mean of the second predictions.
        mean: mean difference.
        low: lower end of the confidence interval; nan for fewer than two cases.
        high: upper end.
        better: pairs in which the second is better.
        worse: pairs in which it is worse.
        p: Wilcoxon's p-value; 1 where no pair differs.
        p_holm: p adjusted for the number of organs (nan in the overall row, which is not
            part of it).
    """

    organ: str
    metric: str
    cases: int
    first: float
    second: float
    mean: float
    low: float
    high: float
    better: int
    worse: int
    p: float
    p_holm: float


def compare(
    first: Mapping[str, Values], second: Mapping[str, Values], labels: Sequence[int]
) -> list[Difference]:
    """Compare the cases that both sets have.

    Args:
        first: case name to its values.
        second: case name to its values.
        labels: the organs, in the order wanted.

    Returns:
        Per metric one row per organ and one for the mean over the organs.
    """
    names = [name for name in first if name in second]
    rows = []
    for metric in METRICS:
        pairs = {
            COLUMN_OF[label]: [
                (first[name][metric, label], second[name][metric, label]) for name in names
            ]
            for label in labels
        }
        own = [_difference(organ, metric, values) for organ, values in pairs.items()]
        rows += _with_holm(own)
        means = np.mean(list(pairs.values()), axis=0).reshape(-1, 2)
        overall = _difference(OVERALL, metric, [(float(a), float(b)) for a, b in means])
        rows.append(replace(overall, p_holm=math.nan))
    return rows


def _difference(organ: str, metric: str, pairs: Sequence[tuple[float, float]]) -> Difference:
    values = np.array(pairs, np.float64).reshape(-1, 2)
    if not len(values):
        nan = math.nan
        return Difference(organ, metric, 0, nan, nan, nan, nan, nan, 0, 0, nan, nan)
    # Values have four decimals (means of them a few more): what is left of a subtraction below
    # that is rounding, and must not count as a difference or break a tie.
    delta = np.round(values[:, 1] - values[:, 0], 9)
    low, high = interval(delta)
    p = _wilcoxon(delta)
    return Difference(
        organ,
        metric,
        len(values),
        float(values[:, 0].mean()),
        float(values[:, 1].mean()),
        float(delta.mean()),
        low,
        high,
        int((delta > 0).sum()),
        int((delta < 0).sum()),
        p,
        p,
    )


def interval(delta: NDArray[np.float64]) -> tuple[float, float]:
    """Bootstrap confidence interval of a mean.

    Args:
        delta: one value per case.

    Returns:
        Lower and upper end; nan for fewer than two cases.
    """
    if len(delta) < 2:
        return math.nan, math.nan
    if np.ptp(delta) == 0:
        return float(delta[0]), float(delta[0])
    for method in ("BCa", "percentile"):  # the first is undefined for a few tiny samples
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            ends = stats.bootstrap(
                (delta,),
                np.mean,
                n_resamples=RESAMPLES,
                confidence_level=CONFIDENCE,
                method=method,
                batch=1000,
                rng=np.random.default_rng(SEED),
            ).confidence_interval
        if math.isfinite(ends.low) and math.isfinite(ends.high):
            break
    return float(ends.low), float(ends.high)


def _wilcoxon(delta: NDArray[np.float64]) -> float:
    differing = delta[delta != 0]  # else scipy gives up the exact distribution for their sake
    if not len(differing):
        return 1.0
    return float(stats.wilcoxon(differing, alternative="two-sided").pvalue)


def _with_holm(rows: Sequence[Difference]) -> list[Difference]:
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, row in enumerate(sorted(rows, key=lambda row: row.p)):
        highest = max(highest, min(1.0, (len(rows) - rank) * row.p))
        adjusted[row.organ] = highest if row.cases else math.nan
    return [replace(row, p_holm=adjusted[row.organ]) for row in rows]
