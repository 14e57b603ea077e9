"""Writes down what a training did: numbers and pictures, and has the curves drawn."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from torch.utils.tensorboard import SummaryWriter

from inference.organs import ORGANS
from inference.plan import Plan
from inference.write.files import appearing, write_text
from inference.write.preview import write_preview
from training.data.tissues import UNKNOWN
from training.records.curves import draw_curves
from training.records.evaluate import Evaluated
from training.records.machine import machine_in_words
from training.records.read import read_lines, read_rows

INITIAL = "initial.txt"
MACHINES = "machines.txt"
_LOSSES = ("iteration", "loss", "seconds_per_iteration", "data_wait_share")
_SCORES = ("iteration", "case", *ORGANS.values())


class Records:
    """The files of a training, in its folder.

    - ``log.csv``: mean loss, seconds per iteration and the share of time spent waiting for data;
    - ``scores.csv``: DSC per organ on the held-out cases;
    - ``curves.png``: both as curves;
    - ``pictures/``: the held-out cases' labels over the CT at each evaluation;
    - ``tensorboard/``: the numbers again, for TensorBoard;
    - ``initial.txt``: whose weights it began with, if not with random ones;
    - ``machines.txt``: on what it was trained, a line each;
    - ``settings.json``: the configuration that it went on with last (see `run_folder.py`).

    Args:
        run: the training's folder.
        start: the iteration at which the training goes on; what was recorded later goes.
    """

    def __init__(self, run: Path, start: int) -> None:
        self.run = run
        (run / "pictures").mkdir(parents=True, exist_ok=True)
        for name, header in (("log.csv", _LOSSES), ("scores.csv", _SCORES)):
            rows = [row for row in read_rows(run / name) if int(row["iteration"]) <= start]
            with appearing(run / name) as path, path.open("w", newline="") as file:
                writer = csv.DictWriter(file, header)
                writer.writeheader()
                writer.writerows(rows)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
        self._scores: list[list[object]] = []
        machines = read_lines(run / MACHINES)
        if (here := machine_in_words()) not in machines:
            write_text(run / MACHINES, "".join(f"{m}\n" for m in (*machines, here)))

    def has_scores(self, done: int) -> bool:
        """Whether there are scores of this iteration: of all held-out cases, or of none."""
        return any(int(row["iteration"]) == done for row in read_rows(self.run / "scores.csv"))

    def begin_with(self, initial: Sequence[Path]) -> None:
        """Note whose weights a new training begins with, for the model card.

        Args:
            initial: checkpoints or model folders.
        """
        plans = [(path, Plan.load(path) if path.is_dir() else None) for path in initial]
        names = [f"{plan.name} {plan.version}" if plan else str(path) for path, plan in plans]
        write_text(self.run / INITIAL, "".join(f"{name}\n" for name in names))

    def add_losses(self, done: int, losses: list[float], seconds: float, waited: float) -> None:
        """Note the losses of the steps since the last time.

        Args:
            done: steps in all.
            losses: of each step.
            seconds: that the steps took.
            waited: how many of them were spent waiting for data.
        """
        loss, each, share = float(np.mean(losses)), seconds / len(losses), waited / seconds
        self._append("log.csv", [done, f"{loss:.5f}", f"{each:.4f}", f"{share:.4f}"])
        self._board.add_scalar("loss", loss, done)
        self._board.add_scalar("seconds_per_iteration", each, done)
        self._board.add_scalar("data_wait_share", share, done)
        print(
            f"{done}: loss {loss:.4f}, {each:.3f} s per iteration, "
            f"{100 * share:.1f} % of it waiting for data",
            flush=True,
        )

    def add_case(self, done: int, case: Evaluated) -> None:
        """Note the scores of a held-out case, until `end_evaluation`, and draw its labels.

        Args:
            done: steps in all.
            case: as evaluated.
        """
        z, y, x = case.spacing
        image = sitk.GetImageFromArray(case.hu)
        image.SetSpacing((x, y, z))
        folder = self.run / "pictures"
        write_preview(folder / f"{case.name}_{done:07d}.png", image, case.predicted)
        if not any(score is not None for score in case.dice):
            return
        known = np.where(case.labels == UNKNOWN, 0, case.labels).astype(np.uint8)
        write_preview(folder / f"{case.name}_truth.png", image, known)
        cells = ["" if score is None else f"{score:.4f}" for score in case.dice]
        self._scores.append([done, case.name, *cells])
        named = {n: s for n, s in zip(ORGANS.values(), case.dice, strict=True) if s is not None}
        mean = float(np.mean(list(named.values())))
        for organ, score in named.items():
            self._board.add_scalar(f"dice_{case.name}/{organ}", score, done)
        self._board.add_scalar(f"dice_{case.name}/mean", mean, done)
        print(f"{case.name}: mean DSC {mean:.4f}; {','.join(cells)}", flush=True)

    def end_evaluation(self) -> None:
        """Write the scores of all held-out cases, in one step, and draw the curves anew.

        A training that is stopped among them scores all of them when it goes on.
        """
        path = self.run / "scores.csv"
        before = path.read_bytes()
        with appearing(path) as temporary:
            temporary.write_bytes(before)
            with temporary.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self._scores)
        self._scores = []
        draw_curves(self.run)
        self._board.flush()

    def close(self) -> None:
        """Finish."""
        self._board.close()

    def _append(self, name: str, row: list[object]) -> None:
        with (self.run / name).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)
