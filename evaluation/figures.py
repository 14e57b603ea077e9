"""Figures for a paper: box plots per organ, paired differences, seconds against slices.

Drawn without pyplot, so that nothing needs a screen and several may be drawn at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from evaluation.challenge import COLUMN_OF, METRICS
from evaluation.scoring import CaseScore
from inference.organs import COLOURS
from inference.write.files import appearing


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, complete or not at all."""
    with appearing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font does not have
        figure.savefig(temporary, format="png", dpi=150)


def box_plots(scores: Sequence[CaseScore], labels: Sequence[int], path: Path) -> None:
    """Box plots of DSC and NSD per organ, one point per case.

    Boxes reach from the first to the third quartile, whiskers 1.5 times as far at most (Tukey);
    the diamond is the mean.
    """
    counted = [score for score in scores if score.values]
    figure = Figure(figsize=(max(6.0, 0.8 * len(labels) + 1.5), 7.5), layout="constrained")
    for axes, metric in zip(figure.subplots(2, 1, sharex=True), METRICS, strict=True):
        values = [[score.values[metric, label] for score in counted] for label in labels]
        boxes = axes.boxplot(
            values,
            patch_artist=True,
            showfliers=False,
            showmeans=True,
            widths=0.6,
            meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "black"},
            medianprops={"color": "black"},
        )
        for box, label in zip(boxes["boxes"], labels, strict=True):
            box.set_facecolor([c / 255 for c in COLOURS[label]])
        for position, own in enumerate(values, start=1):
            # Spread evenly and not at random: the same scores give the same picture.
            offsets = [((i * 0.618) % 1 - 0.5) * 0.4 for i in range(len(own))]
            axes.plot([position + o for o in offsets], own, ".", color="black", ms=3, alpha=0.5)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel(metric)
        axes.grid(axis="y", alpha=0.3)
    axes.set_xticks(
        range(1, len(labels) + 1), [COLUMN_OF[label] for label in labels], rotation=30, ha="right"
    )
    figure.suptitle(f"DSC and NSD per organ, {len(counted)} cases")
    save(figure, path)


def differences(
    rows: Mapping[str, Sequence[tuple[str, float, float, float]]], title: str, path: Path
) -> None:
    """Mean paired differences with their confidence intervals, one panel per metric.

    Args:
        rows: metric to (organ, mean, lower end, upper end).
        title: what is compared.
        path: the PNG's name.
    """
    number = max(len(own) for own in rows.values())
    figure = Figure(figsize=(10, 0.32 * number + 1.6), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, (metric, own) in zip(panels, rows.items(), strict=True):
        heights = list(range(len(own), 0, -1))
        for height, (_, mean, low, high) in zip(heights, own, strict=True):
            axes.plot([low, high], [height, height], "-", color="tab:blue", lw=2)
            axes.plot([mean], [height], "o", color="tab:blue", ms=5)
        axes.axvline(0, color="black", lw=0.8)
        axes.set_yticks(heights, [organ for organ, *_ in own])
        axes.set_xlabel(f"difference in {metric}")
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title, parse_math=False)
    save(figure, path)


def seconds_against_slices(
    points: Sequence[tuple[int, float, bool]], limit: float, title: str, path: Path
) -> None:
    """Wall-clock seconds of every case against its number of slices, and the limit.

    Args:
        points: (slices, seconds, whether the case passed).
        limit: seconds allowed per case.
        title: what was timed.
        path: the PNG's name.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    passed = sorted(point[:2] for point in points if point[2])
    failed = sorted(point[:2] for point in points if not point[2])
    if passed:
        axes.plot(*zip(*passed, strict=True), "o-", color="tab:blue", label="passed")
    if failed:
        axes.plot(*zip(*failed, strict=True), "X", color="tab:red", ms=9, label="failed")
    axes.axhline(limit, color="tab:red", ls="--", lw=1, label=f"limit {limit:g} s")
    axes.set_xlabel("slices")
    axes.set_ylabel("seconds per case, wall clock")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(title, parse_math=False)  # a command may hold dollars
    save(figure, path)
