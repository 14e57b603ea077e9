"""The JSON file of ``--report``: what was done to each case and what it took."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import inference
from inference.model import Model
from inference.processor import processor_name
from inference.write.files import write_text


@dataclass
class CaseReport:
    """What the report says about a case.

    Attributes:
        file: the CT, or the folder with its DICOM slices.
        series: the DICOM series' number, where several lie in that folder.
        labels: its label file; ``None`` where the case failed.
        shape: voxels along x, y, z, as SimpleITK and nibabel count them.
        spacing: millimetres along x, y, z.
        seconds: by stage, as far as the case had to wait for it: "load" (of the model, first case
            only), "read", "preprocess", "look" (where the plan has one), "compile", "network",
            "postprocess", "labels", "write", "preview"; and "total".
        window: voxels (z, y, x) of the network's input.
        passes: how often the network ran.
        peak_memory_mb: most memory (MiB) the process had resident during the case.
        millilitres: volume of each organ.
        warnings: what a user should know about the case.
        error: why it failed; ``None`` where it did not.
        traceback: where the program itself failed, for a bug report.
    """

    file: str
    series: str | None = None
    labels: str | None = None
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    window: tuple[int, ...] | None = None
    passes: int | None = None
    peak_memory_mb: float | None = None
    millilitres: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    traceback: str | None = None


def write_report(path: Path, model: Model, start: float, cases: list[CaseReport]) -> None:
    """Write the report; an existing one is replaced, also where ``path`` is a link to it.

    Args:
        path: where to.
        model: what segmented.
        start: seconds from the start of the process to the first case.
        cases: what was done so far.

    Raises:
        OSError: it cannot be written.
    """
    content: dict[str, Any] = {
        "abdoseg": inference.__version__,
        "model": {
            "name": model.plan.name,
            "version": model.plan.version,
            "folder": str(model.folder),
            "precision": model.precision,
            "arithmetic": model.network.arithmetic,
        },
        "processor": processor_name(),
        "threads": model.threads,
        "start_seconds": round(start, 4),
        "cases": [asdict(case) for case in cases],
    }
    write_text(path, json.dumps(content, indent=2) + "\n")
