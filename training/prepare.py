"""Turns a data folder into what the training loop reads: bodies and resampled images.

Output, all in LPS orientation with arrays (z, y, x):

- ``images/NAME.npz``: real CTs, cropped and resampled by inference's own code: ``hu`` int16,
  ``labels`` uint8, ``annotated`` (label values that were annotated; empty for a CT without
  labels), ``spacing`` in mm;
- ``empty/NAME.npz``: the same, of CTs that the configuration says hold no organ;
- ``pseudo/NAME.npz``: the same, labels made by a network;
- ``bodies/NAME.npz``: tissue maps of whole bodies (`training.bodies.Body`), for synthesis; a
  patient with organ labels alone appears once per atlas, as ``NAME__ATLAS.npz``;
- ``transferred/NAME__ATLAS.npz``: an atlas's real CT and labels, bent to a patient's anatomy
  (as ``images``, at the bodies' spacing);
- ``refused.txt``: which cases were refused, and why.

What exists already is kept, so an interrupted preparation goes on where it was.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from inference.errors import AbdosegError
from inference.machine import usable_threads
from inference.organs import LABEL_OF, ORGANS
from inference.plan import Plan
from inference.preprocess import preprocess
from inference.resample import resize_labels
from inference.writing import appearing
from training.bodies import SPACING, anchored, complete, finish, isotropic, transfer
from training.cases import Case
from training.config import Config

KINDS_OF_FILES = ("bodies", "images", "transferred", "empty", "pseudo")

ABSENT = tuple(v for v in ORGANS if v != LABEL_OF["esophagus"])
"""What a CT without abdomen is known not to show: its upper esophagus may be there."""


@dataclass(frozen=True)
class _Job:
    case: Case
    atlas: Case | None
    target: Path
    plan: Plan


def prepare(cases: list[Case], out: Path, config: Config, workers: int | None = None) -> list[str]:
    """Prepare cases.

    Held-out cases are prepared as images (to be scored on), never as bodies or atlases.

    Args:
        cases: what `training.cases.find_cases` found.
        out: where the output is written.
        config: its grid, HU range, hold-out list, and whether it trains on synthetic CT.
        workers: processes; ``None`` for as many as there are CPUs to use.

    Returns:
        One line per case that was refused, with the reason.

    Raises:
        ValueError: ``out`` holds images that were prepared for another grid.
    """
    for folder in KINDS_OF_FILES:
        (out / folder).mkdir(parents=True, exist_ok=True)
    _check_settings(out, config)
    plan = replace(
        config.plan((1, 1, 1), {"f32": ""}), clip=config.stored, subtract=0.0, divide=1.0
    )
    jobs = []
    for case in cases:
        if case.image is not None:
            kind = "pseudo" if case.kind == "pseudo" else "images"
            if case.name in config.empty:
                kind = "empty"
            jobs.append(_Job(case, None, out / kind / f"{case.name}.npz", plan))
    if config.shares.get("synthetic", 0) > 0:
        jobs += _bodies(cases, out, config, plan)
    jobs = [job for job in jobs if not _is_done(job)]
    refused = []
    with ProcessPoolExecutor(workers or usable_threads()) as pool:
        running = {pool.submit(_run, job): job for job in jobs}
        for future in tqdm(as_completed(running), total=len(jobs), desc="prepare", unit="file"):
            if problem := future.result():
                refused.append(f"{running[future].target.stem}: {problem}")
    (out / "refused.txt").write_text("".join(f"{line}\n" for line in sorted(refused)))
    return sorted(refused)


def _is_done(job: _Job) -> bool:
    """Whether the output is there; pseudo-labels may have been made anew since."""
    if not job.target.exists():
        return False
    labels = job.case.label_file
    made = job.target.stat().st_mtime
    return job.case.kind != "pseudo" or labels is None or labels.stat().st_mtime <= made


def _bodies(cases: list[Case], out: Path, config: Config, plan: Plan) -> list[_Job]:
    """Every trusted label map with every atlas; alone where there is no atlas."""
    trusted = [
        case
        for case in cases
        if case.kind in ("labelled", "labelmap") and case.name not in config.holdout
    ]
    atlases = [case for case in trusted if case.tissue_file]
    bodies, transferred = out / "bodies", out / "transferred"
    jobs = [_Job(case, None, bodies / f"{case.name}.npz", plan) for case in atlases or trusted]
    for atlas in atlases:
        patients = [case for case in trusted if not case.tissue_file]
        jobs += [_Job(p, atlas, bodies / f"{p.name}__{atlas.name}.npz", plan) for p in patients]
        if atlas.image is not None and config.shares.get("transferred", 0) > 0:
            others = [case for case in trusted if case is not atlas]
            jobs += [
                _Job(p, atlas, transferred / f"{p.name}__{atlas.name}.npz", plan) for p in others
            ]
    return jobs


def _check_settings(out: Path, config: Config) -> None:
    """Images that exist must have been prepared for the same grid."""
    names = ("spacing", "size", "crop", "stored")
    wanted = json.loads(json.dumps({name: getattr(config, name) for name in names}))
    path = out / "settings.json"
    there = json.loads(path.read_text()) if path.exists() else None
    if there != wanted and any(p.suffix == ".npz" for p in (out / "images").iterdir()):
        raise ValueError(
            f"{out}: images were prepared with other settings ({there}); remove images/ and "
            "pseudo/ there, or choose another --work"
        )
    path.write_text(json.dumps(wanted) + "\n")


def _run(job: _Job) -> str | None:
    """Do one job; returns why the case was refused, or None."""
    torch.set_num_threads(1)
    try:
        if job.target.parent.name == "bodies":
            arrays = _body(job.case, job.atlas)
        elif job.atlas is not None:
            arrays = _transferred(job.case, job.atlas, job.plan)
        else:
            arrays = _image(job.case, job.plan, job.target.parent.name == "empty")
    except (AbdosegError, ValueError, RuntimeError) as error:
        return str(error)
    with appearing(job.target) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    return None


def _body(case: Case, atlas: Case | None) -> dict[str, np.ndarray]:
    tissues = isotropic(*case.tissues())
    _check_sides(tissues)
    if atlas is not None:
        tissues = complete(tissues, case.annotated, isotropic(*atlas.tissues()))
    body = finish(tissues)
    return {"tissues": body.tissues, "hull": body.hull}


def _transferred(case: Case, atlas: Case, plan: Plan) -> dict[str, np.ndarray]:
    hu, _ = atlas.ct()
    labels, spacing = atlas.labels()
    organs = isotropic(*case.tissues())
    _check_sides(organs)
    low, high = plan.clip
    stored = np.clip(hu, low, high).astype(np.int16)
    atlas_tissues = isotropic(*atlas.tissues())
    bent, bent_labels = transfer(stored, labels, spacing, atlas_tissues, organs, case.annotated)
    return {
        "hu": bent,
        "labels": bent_labels,
        "annotated": np.array(atlas.annotated, np.uint8),
        "spacing": np.full(3, SPACING, np.float32),
    }


def _image(case: Case, plan: Plan, empty: bool) -> dict[str, np.ndarray]:
    hu, native = case.ct()
    prepared = preprocess(hu, native, plan)
    labels = np.zeros(prepared.values.shape, np.uint8)
    if case.label_file is not None:
        original, _ = case.labels()
        labels = resize_labels(original[prepared.box], labels.shape)
        if not labels.any():
            raise ValueError("nothing is labelled")
        _check_sides(labels, prepared.values)
    return {
        "hu": np.round(prepared.values).astype(np.int16),
        "labels": labels,
        "annotated": np.array(ABSENT if empty else case.annotated, np.uint8),
        "spacing": np.array(prepared.spacing, np.float32),
    }


def _check_sides(labels: np.ndarray, hu: np.ndarray | None = None) -> None:
    """The liver lies on the patient's right, which in LPS orientation is where x begins.

    Raises:
        ValueError: it lies left of the spleen, or, where there is no spleen, left of the body.
    """
    if not anchored(labels):
        raise ValueError("the liver lies left of the spleen: is the image mirrored?")
    liver, spleen = (labels == LABEL_OF[name] for name in ("liver", "spleen"))
    if hu is not None and liver.any() and not spleen.any():
        body = np.flatnonzero((hu > -150).any(axis=(0, 1)))
        if ndimage.center_of_mass(liver)[2] > (body[0] + body[-1]) / 2:
            raise ValueError("the liver lies in the left half: is the image mirrored?")
