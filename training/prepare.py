"""Turns a data folder into what the training loop reads: bodies and resampled images.

Output, all in LPS orientation with arrays (z, y, x):

- ``bodies/NAME.npz``: tissue maps of whole bodies (`training.bodies.Body`), for synthesis; a
  patient with organ labels alone appears once per atlas, as ``NAME__ATLAS.npz``;
- ``images/NAME.npz``: real CTs at the network's spacing: ``hu`` int16, ``labels`` uint8,
  ``annotated`` (label values that were annotated; empty for a CT without labels).

What exists already is kept, so an interrupted preparation goes on where it was.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from inference.organs import ORGANS
from inference.resample import resize, resize_labels, shape_at_spacing
from training.bodies import anchored, complete, finish, isotropic
from training.cases import Case, find_cases

HU_RANGE = (-1024.0, 1500.0)
"""Range in which prepared images are kept, wider than any network's own clipping."""


@dataclass(frozen=True)
class _Job:
    case: Case
    atlas: Case | None
    target: Path
    spacing: tuple[float, float, float]


def prepare(
    data: Path, out: Path, spacing: tuple[float, float, float], holdout: tuple[str, ...]
) -> list[str]:
    """Prepare every case of a data folder that is not held out.

    Held-out cases are prepared as images (to be scored on), never as bodies or atlases.

    Args:
        data: folder as described in `training.cases`.
        out: where ``bodies/`` and ``images/`` are written.
        spacing: the network's spacing in mm (z, y, x).
        holdout: names of cases that must not be trained on.

    Returns:
        One line per case that was refused, with the reason.

    Raises:
        FileNotFoundError: the data folder holds no case.
    """
    cases = find_cases(data)
    (out / "bodies").mkdir(parents=True, exist_ok=True)
    (out / "images").mkdir(parents=True, exist_ok=True)
    trained = [case for case in cases if case.annotated and case.name not in holdout]
    atlases = [case for case in trained if case.has_all_tissues]
    jobs = [
        _Job(case, None, out / "images" / f"{case.name}.npz", spacing)
        for case in cases
        if case.has_ct
    ]
    jobs += [_Job(case, None, out / "bodies" / f"{case.name}.npz", spacing) for case in atlases]
    for atlas in atlases:
        jobs += [
            _Job(case, atlas, out / "bodies" / f"{case.name}__{atlas.name}.npz", spacing)
            for case in trained
            if not case.has_all_tissues
        ]
    jobs = [job for job in jobs if not job.target.exists()]
    refused = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        running = {pool.submit(_run, job): job for job in jobs}
        for future in tqdm(as_completed(running), total=len(jobs), desc="prepare", unit="file"):
            if problem := future.result():
                refused.append(f"{running[future].target.stem}: {problem}")
    return sorted(refused)


def _run(job: _Job) -> str | None:
    """Do one job; returns why the case was refused, or None."""
    torch.set_num_threads(1)
    try:
        if job.target.parent.name == "images":
            arrays = _image(job.case, job.spacing)
        else:
            arrays = _body(job.case, job.atlas)
    except (ValueError, RuntimeError) as error:
        return str(error)
    # Written under another name first: a file that exists is complete.
    partial = job.target.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
    partial.rename(job.target)
    return None


def _body(case: Case, atlas: Case | None) -> dict[str, np.ndarray]:
    tissues = isotropic(*case.tissues())
    if not anchored(tissues):
        raise ValueError("the liver lies left of the spleen: is the image mirrored?")
    if atlas is not None:
        tissues = complete(tissues, case.annotated, isotropic(*atlas.tissues()))
    body = finish(tissues)
    return {"tissues": body.tissues, "hull": body.hull}


def _image(case: Case, spacing: tuple[float, float, float]) -> dict[str, np.ndarray]:
    hu, native = case.ct()
    shape = shape_at_spacing(hu.shape, native, spacing)
    if hu.min() > -200 or hu.max() < 200:
        raise ValueError(f"values from {hu.min()} to {hu.max()} are not Hounsfield units of a body")
    labels = np.zeros(shape, np.uint8)
    if case.annotated:
        original, label_spacing = case.labels()
        if original.shape != hu.shape or not np.allclose(native, label_spacing, rtol=1e-3):
            raise ValueError(
                f"labels of shape {original.shape} and spacing {label_spacing} do not lie on "
                f"the image's grid ({hu.shape}, {native})"
            )
        if unknown := sorted(set(np.unique(original)) - {0, *ORGANS}):
            raise ValueError(f"label values {unknown} are not organs")
        labels = resize_labels(original, shape)
        if not anchored(labels):
            raise ValueError("the liver lies left of the spleen: is the image mirrored?")
    return {
        "hu": np.round(resize(hu, shape, HU_RANGE)).astype(np.int16),
        "labels": labels,
        "annotated": np.array(case.annotated, np.uint8),
    }
