"""What comes out of the benchmark: a row of numbers for each system, and the machine's peak."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from evaluation.benchmark.systems import System
from inference import stages

STAGES = ("start", "load", *stages.STAGES)
"""Where the seconds go, as far as the case had to wait for them; "start" is all that is in none of
the others: the interpreter, imports, exit."""


@dataclass
class Row:
    """What came out for one system: medians over its runs.

    Attributes:
        system: what was run.
        labels: the label file that it writes.
        seconds: wall clock around the process.
        stages: seconds per stage.
        peak_memory: most bytes of the process and its children.
        cpu_seconds: processor time.
        same_voxels: share of voxels labelled as by the reference system.
        agreement: mean DSC with it over the organs that either has.
        speed: operations a second of the network stage (a multiply-add is two).
        problem: why there are no numbers.
    """

    system: System
    labels: Path
    seconds: float = float("nan")
    stages: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    cpu_seconds: float = float("nan")
    same_voxels: float = float("nan")
    agreement: float = float("nan")
    speed: float = float("nan")
    problem: str | None = None


Peaks = dict[tuple[str | None, int], dict[str, float]]
"""By limit of the instructions and number of threads: operations a second by precision."""
