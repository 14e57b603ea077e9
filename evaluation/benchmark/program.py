"""What the benchmark's other systems share: one file in, labels and seconds per stage out."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

Segment = Callable[[Path, Path, Path, int], dict[str, float]]
"""Model folder, CT, label file to write, threads; returns the seconds of each stage."""


def run(segment: Segment, description: str | None) -> None:
    """Be a program that segments one file and writes what each stage took.

    Args:
        segment: does it.
        description: of the program.
    """
    parser = argparse.ArgumentParser(description=description)
    for name in ("model", "case", "labels", "stages"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = segment(options.model, options.case, options.labels, options.threads)
    options.stages.write_text(json.dumps(seconds), encoding="utf-8")


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Put the seconds that a block takes under a stage's name."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
