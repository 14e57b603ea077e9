"""Turns a data folder into what the training loop reads: bodies and resampled images.

Output, all in LPS orientation with arrays (z, y, x):

- ``images/NAME.npz``: real CTs, cropped and resampled by inference's own code: ``hu`` int16,
  ``labels`` uint8, ``annotated`` (label values that were annotated; empty for a CT without
  labels), ``spacing`` in mm;
- ``empty/NAME.npz``: the same, of CTs that the configuration says hold no organ;
- ``pseudo/NAME.npz``: the same, labels made by a network;
- ``bodies/NAME.npz``: tissue maps of whole bodies (`training.synthetic.bodies.Body`), for
  synthesis, and which organs are the patient's own (``annotated``); a patient with organ labels
  alone appears once per atlas, as ``NAME__ATLAS.npz``;
- ``transferred/NAME__ATLAS.npz``: an atlas's real CT and labels, bent to a patient's anatomy
  (as ``images``, at the bodies' spacing);
- ``refused.txt``: which cases were refused, and why.

What exists already is kept: an interrupted preparation goes on where it was. Each file says what
it was made of (`training.fingerprint`); when that is no longer what the data has, it is made
anew. Files of cases that are gone or refused are removed, since the training draws from all that
it finds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from inference.errors import AbdosegError, last_line, os_error_line
from inference.machine import usable_threads
from inference.organs import LABEL_OF, ORGANS
from inference.plan import Plan
from inference.preprocess import preprocess
from inference.resample import resize_labels
from inference.writing import appearing, write_text
from training.case import Case
from training.chance import Chance
from training.config import Config
from training.fingerprint import MADE_OF, fingerprint, is_up_to_date
from training.json_file import read_json
from training.prepared_file import FOLDER_OF, complete_files, file_of
from training.synthetic.bodies import complete, finish, transfer
from training.synthetic.isotropic import isotropic
from training.tissues import SPACING, UNKNOWN, end_at_heart, on_wrong_sides

SETTINGS = "settings.json"
"""In a prepared folder: what all images there have in common."""

ABSENT = tuple(v for v in ORGANS if v not in (LABEL_OF["esophagus"], LABEL_OF["aorta"]))
"""What a CT without abdomen is known not to show: esophagus and aorta run through the chest."""


@dataclass(frozen=True)
class _Job:
    """A file to prepare.

    Attributes:
        kind: of the patches that are drawn from it, a key of `FOLDER_OF`: says what it holds.
        case: the patient; of a CT that counts as empty, with what that tells as annotated.
        atlas: whose body the patient borrows, or whose CT is bent to the patient.
        out: the prepared folder.
        plan: how images are resampled.
    """

    kind: str
    case: Case
    atlas: Case | None
    out: Path
    plan: Plan

    @property
    def name(self) -> str:
        return f"{self.case.name}__{self.atlas.name}" if self.atlas else self.case.name

    @property
    def target(self) -> Path:
        return file_of(self.out, self.kind, self.name)

    @property
    def cases(self) -> list[Case]:
        return [self.case, self.atlas] if self.atlas else [self.case]


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
        KeyboardInterrupt: as it came; what is complete is kept, and no process goes on.
        OSError: ``out`` cannot be written.
        ValueError: ``out`` holds images that were prepared for another grid, or one of the
            processes was killed.
    """
    for folder in FOLDER_OF.values():
        (out / folder).mkdir(parents=True, exist_ok=True)
    check_settings(out, config)
    write_text(out / SETTINGS, json.dumps(_settings(config)) + "\n")
    jobs = _images(cases, out, config) + _bodies(cases, out, config)
    _remove_others(jobs, cases, out, config)
    jobs = [job for job in jobs if not is_up_to_date(job.target, job.cases)]
    refused = []
    others = active_children()
    with ProcessPoolExecutor(workers or usable_threads(), initializer=_end_when_told) as pool:
        running = {pool.submit(_run, job): job for job in jobs}
        try:
            for future in tqdm(as_completed(running), total=len(jobs), desc="prepare", unit="file"):
                if problem := future.result():
                    job = running[future]
                    job.target.unlink(missing_ok=True)  # made when the case was another one
                    refused.append(f"{job.name}: {problem}")
        except BrokenProcessPool:
            raise ValueError(
                "a process that prepared cases was killed; if memory is short, --workers 1 needs "
                "least"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()).difference(others):
                process.terminate()
            raise
    write_text(out / "refused.txt", "".join(f"{line}\n" for line in sorted(refused)))
    return sorted(refused)


def _remove_others(jobs: list[_Job], cases: list[Case], out: Path, config: Config) -> None:
    """Remove prepared files that no case makes any more.

    Bodies that are only not drawn, or held out, stay: the training passes over them, and the
    next configuration may want them.

    Raises:
        ValueError: that would be all of them: the folder is of other data.
    """
    drawn = {"synthetic": 1.0, "transferred": 1.0}
    possible = _bodies(cases, out, replace(config, holdout=(), shares=drawn))
    kept = {job.target for job in (*jobs, *possible)}
    found = [path for kind in FOLDER_OF for path in complete_files(out, kind)]
    removed = [path for path in found if path not in kept]
    if removed and len(removed) == len(found):
        raise ValueError(f"{out}: was prepared from other data; name another --work, or remove it")
    for path in removed:
        path.unlink()
    if removed:
        print(f"removed {len(removed)} prepared file(s) that no case makes now", file=sys.stderr)


def _images(cases: list[Case], out: Path, config: Config) -> list[_Job]:
    """Every case with a CT, as what it counts."""
    plan = config.plan_in_hu
    jobs = []
    for case in cases:
        if case.image is None:
            continue
        if case.name in config.empty:
            jobs.append(_Job("empty", replace(case, annotated=ABSENT), None, out, plan))
        else:
            kind = "pseudo" if case.kind == "pseudo" else "labelled"
            jobs.append(_Job(kind, case, None, out, plan))
    return jobs


def _bodies(cases: list[Case], out: Path, config: Config) -> list[_Job]:
    """Every trusted label map with every atlas.

    Where no case's tissues are labelled, organs have no body around them: they are drawn alone
    if there is no labelled CT to learn from instead.

    Bodies are made where the configuration draws synthetic patches from them, CTs bent to them
    where it draws transferred ones.
    """
    plan = config.plan_in_hu
    synthetic, bent = (config.shares.get(kind, 0) > 0 for kind in ("synthetic", "transferred"))
    trusted = _trusted(cases, config)
    atlases = [case for case in trusted if case.tissue_file]
    alone = atlases or ([] if any(case.image for case in trusted) else trusted)
    jobs = []
    if synthetic:
        jobs += [_Job("synthetic", case, None, out, plan) for case in alone]
    for atlas in atlases:
        patients = [case for case in trusted if not case.tissue_file]
        if synthetic:
            jobs += [_Job("synthetic", patient, atlas, out, plan) for patient in patients]
        if bent and atlas.image is not None:
            others = [case for case in trusted if case is not atlas]
            jobs += [_Job("transferred", patient, atlas, out, plan) for patient in others]
    return jobs


def what_is_not_drawn(cases: list[Case], config: Config) -> str | None:
    """A line about synthetic patches that a configuration wants and the data cannot give."""
    trusted = _trusted(cases, config)
    if not config.shares.get("synthetic", 0) or any(case.tissue_file for case in trusted):
        return None
    alone = trusted and not any(case.image for case in trusted)
    drawn = "organs are drawn alone" if alone else "no CT is drawn"
    return f"synthetic: no case has all tissues labelled (full_labels.nii.gz): {drawn}"


def _trusted(cases: list[Case], config: Config) -> list[Case]:
    kinds = "labelled", "labelmap"
    return [case for case in cases if case.kind in kinds and case.name not in config.holdout]


def _settings(config: Config) -> dict[str, Any]:
    """What all images of a prepared folder have in common, as JSON gives it back."""
    names = ("spacing", "size", "crop", "stored")
    wanted: dict[str, Any] = json.loads(json.dumps({n: getattr(config, n) for n in names}))
    return wanted


def check_settings(out: Path, config: Config) -> None:
    """See that what was prepared is what a configuration wants.

    Raises:
        ValueError: images were prepared for another grid, or it cannot be told.
    """
    wanted = _settings(config)
    path = out / SETTINGS
    there = read_json(path) if path.exists() else None
    # Bodies have a grid of their own.
    folders = [folder for kind, folder in FOLDER_OF.items() if kind != "synthetic"]
    old = [folder for folder in folders if any((out / folder).glob("*.npz"))]
    if there != wanted and old:
        raise ValueError(
            f"{out}: images were prepared with other settings ({there}); remove "
            f"{', '.join(f'{folder}/' for folder in old)} there, or choose another --work"
        )


_told_to_end = False
"""Whether this process was. Between two jobs the pool swallows what is raised."""


def _end_when_told() -> None:
    """Ctrl-C is the parent's to hear; when it says so, end without leaving half a file."""

    def end(*_: object) -> None:
        global _told_to_end
        _told_to_end = True
        sys.exit()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


def _run(job: _Job) -> str | None:
    """Do one job; returns why the case was refused, or None."""
    try:
        if _told_to_end:
            sys.exit()
        torch.set_num_threads(1)
        return _try(job)
    except SystemExit:
        os._exit(0)  # else the pool would give this process its next job


def _try(job: _Job) -> str | None:
    try:
        made_of = fingerprint(job.cases)  # before they are read: what changes meanwhile is noticed
        arrays = _ARRAYS_OF[job.kind](job)
    except MemoryError:
        return "there is too little memory for it"
    except OSError as error:
        return os_error_line(error)
    except (AbdosegError, ValueError, RuntimeError) as error:
        return last_line(error)  # SimpleITK writes several
    except (
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
    ) as error:  # odd names or numbers of tissues
        return f"failed unexpectedly ({type(error).__name__}: {last_line(error)})"
    with appearing(job.target) as temporary:
        np.savez_compressed(temporary, **arrays, **{MADE_OF: np.array(made_of)})  # type: ignore[arg-type]
    return None


def _body(job: _Job) -> dict[str, np.ndarray]:
    case, atlas = job.case, job.atlas
    tissues = isotropic(*case.tissues())
    _check_sides(tissues)
    if atlas is not None:
        chance = Chance(zlib.crc32(job.name.encode()))
        tissues = complete(tissues, case.annotated, isotropic(*atlas.tissues()), chance)
    body = finish(end_at_heart(tissues))
    return {
        "tissues": body.tissues,
        "hull": body.hull,
        "annotated": np.array(case.annotated, np.uint8),
    }


def _transferred(job: _Job) -> dict[str, np.ndarray]:
    case, atlas = job.case, job.atlas
    assert atlas is not None
    labels, spacing = atlas.labels()
    organs = isotropic(*case.tissues())
    _check_sides(organs)
    low, high = job.plan.clip
    stored = np.clip(atlas.ct().hu, low, high).astype(np.int16)
    atlas_tissues = isotropic(*atlas.tissues())
    bent, bent_labels = transfer(stored, labels, spacing, atlas_tissues, organs, case.annotated)
    return {
        "hu": bent,
        "labels": _believed(bent_labels, atlas.annotated),
        "annotated": np.array(atlas.annotated, np.uint8),
        "spacing": np.full(3, SPACING, np.float32),
    }


def _image(job: _Job) -> dict[str, np.ndarray]:
    case = job.case
    ct = case.ct()
    hu, native = ct.hu, ct.spacing
    del ct  # with its image: the labels need the memory
    prepared = preprocess(hu, native, job.plan)
    labels = np.zeros(prepared.values.shape, np.uint8)
    if case.label_file is not None and job.kind != "empty":
        original, _ = case.labels()
        labels = resize_labels(original[prepared.box], labels.shape)
        if not np.isin(labels, [*ORGANS]).any():
            raise ValueError("nothing is labelled")
        _check_sides(labels, prepared.values)
        labels = _believed(labels, case.annotated)
    return {
        "hu": np.round(prepared.values).astype(np.int16),
        "labels": labels,
        "annotated": np.array(case.annotated, np.uint8),
        "spacing": np.array(prepared.spacing, np.float32),
    }


_ARRAYS_OF: Mapping[str, Callable[[_Job], dict[str, np.ndarray]]] = {
    "synthetic": _body,
    "labelled": _image,
    "transferred": _transferred,
    "empty": _image,
    "pseudo": _image,
}


def _believed(labels: np.ndarray, annotated: tuple[int, ...]) -> np.ndarray:
    """Labels in which organs that do not count as annotated are unknown.

    The loss has no class for them: it counts their probability as background's.
    """
    return np.where(np.isin(labels, (0, *annotated)), labels, UNKNOWN).astype(np.uint8)


def _check_sides(labels: np.ndarray, hu: np.ndarray | None = None) -> None:
    """The liver lies on the patient's right, which in LPS orientation is where x begins.

    Raises:
        ValueError: it lies left of the spleen, or, where there is no spleen, left of the body.
    """
    if LABEL_OF["liver"] in on_wrong_sides(labels):
        raise ValueError("the liver lies left of the spleen: is the image mirrored?")
    liver, spleen = (labels == LABEL_OF[name] for name in ("liver", "spleen"))
    if hu is not None and liver.any() and not spleen.any():
        body = np.flatnonzero((hu > -150).any(axis=(0, 1)))
        if ndimage.center_of_mass(liver)[2] > (body[0] + body[-1]) / 2:
            raise ValueError("the liver lies in the left half: is the image mirrored?")
