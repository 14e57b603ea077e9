"""Telling the user how far things are: bars on a terminal, lines elsewhere, or only errors."""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from inference.console import printable, say, terminal
from inference.stages import STAGES


class Progress:
    """Lines on standard output, errors and warnings on standard error.

    Args:
        count: number of cases.
        quiet: whether only errors are told.
    """

    def __init__(self, count: int, quiet: bool = False) -> None:
        self._count = count
        self._quiet = quiet
        self._number = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, source: Path) -> None:
        """A case begins."""
        self._number += 1

    def stage(self, name: str, share: float) -> None:
        """A share of a stage of the case is done."""

    def done(self, source: Path, target: Path, seconds: float) -> None:
        """The case is done."""
        if not self._quiet:
            self._print(
                f"[{self._number}/{self._count}] {source.name or source} -> {target}  "
                f"{seconds:.1f} s"
            )

    def warn(self, source: Path, warning: str) -> None:
        """There is something to know about the case."""
        if not self._quiet:
            self._print(f"warning: {source}: {warning}", error=True)

    def fail(self, source: Path, reason: str) -> None:
        """The case cannot be segmented."""
        self._print(f"error: {source}: {reason}", error=True)

    def _print(self, line: str, error: bool = False) -> None:
        with terminal:
            say(printable(line), error)


class Bars(Progress):
    """A bar over the cases and one over the steps of a case.

    Bars are drawn only while `terminal` is held: what is drawn while a CT is read in the
    background might otherwise go into the pipe that keeps ITK's noise from the user.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        over = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
        within = "{desc:>12}: {percentage:3.0f}%|{bar}| {elapsed}"
        with terminal:
            self._cases = tqdm(total=count, desc="cases", unit="case", bar_format=over, leave=False)
            self._steps = tqdm(total=100, bar_format=within, leave=False)

    def __exit__(self, *_: object) -> None:
        with terminal:
            self._steps.close()
            self._cases.close()

    def start(self, source: Path) -> None:
        """A case begins."""
        super().start(source)
        with terminal:
            self._cases.set_description(printable(source.name or str(source)))
            self._steps.reset()

    def stage(self, name: str, share: float) -> None:
        """A share of a stage of the case is done."""
        before = sum(list(STAGES.values())[: list(STAGES).index(name)])
        self._steps.set_description_str(name, refresh=False)
        position = round(before + share * STAGES[name])
        if position != self._steps.n or share == 0:
            self._steps.n = position
            with terminal:
                self._steps.refresh()

    def done(self, source: Path, target: Path, seconds: float) -> None:
        """The case is done."""
        super().done(source, target, seconds)
        with terminal:
            self._cases.update()

    def fail(self, source: Path, reason: str) -> None:
        """The case cannot be segmented."""
        super().fail(source, reason)
        with terminal:
            self._cases.update()

    def _print(self, line: str, error: bool = False) -> None:
        with terminal, tqdm.external_write_mode(file=sys.stderr):
            super()._print(line, error)


def progress_for(count: int, quiet: bool) -> Progress:
    """The kind of progress that suits standard error and the user's wish."""
    if sys.stderr.isatty() and not quiet:
        return Bars(count)
    return Progress(count, quiet)
