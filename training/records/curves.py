"""The curves of a training, drawn from its records."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inference.organs import COLOURS, ORGANS
from inference.write.files import appearing
from training.records.read import read_rows


def draw_curves(run: Path) -> None:
    """Write ``curves.png``: the loss, and DSC per organ (mean over the held-out cases).

    Args:
        run: a training's folder.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    log = read_rows(run / "log.csv")
    left.plot([int(r["iteration"]) for r in log], [float(r["loss"]) for r in log], color="black")
    left.set(xlabel="iteration", ylabel="loss")
    scores = read_rows(run / "scores.csv")
    for value, organ in ORGANS.items():
        iterations = sorted({int(r["iteration"]) for r in scores if r[organ]})
        means = [
            np.mean([float(r[organ]) for r in scores if r[organ] and int(r["iteration"]) == i])
            for i in iterations
        ]
        if means:
            colour = tuple(c / 255 for c in COLOURS[value])
            right.plot(iterations, means, ".-", color=colour, label=organ.replace("_", " "))
    right.set(xlabel="iteration", ylabel="DSC", ylim=(0, 1))
    if scores:
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    with appearing(run / "curves.png") as path:
        figure.savefig(path, dpi=120)
