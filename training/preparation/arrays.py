"""What a prepared file holds: a case's image, body or bent CT, resampled, checked and believed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage

from inference.organs import LABEL_OF, ORGANS
from inference.preprocess.preprocess import preprocess
from inference.preprocess.resample import resize_labels
from training.data.tissues import SPACING, UNKNOWN, end_at_heart, on_wrong_sides
from training.preparation.jobs import Job
from training.sampling.chance import Chance
from training.synthetic.bodies import complete, finish, transfer
from training.synthetic.isotropic import isotropic


def arrays_of(job: Job) -> dict[str, np.ndarray]:
    """The arrays (z, y, x) of a prepared file, by name: those of `training.preparation.prepare`.

    Args:
        job: which file.

    Raises:
        CaseError: one of the cases' files is damaged.
        ValueError: a case cannot be right.
    """
    return _ARRAYS_OF[job.kind](job)


def _body(job: Job) -> dict[str, np.ndarray]:
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


def _transferred(job: Job) -> dict[str, np.ndarray]:
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


def _image(job: Job) -> dict[str, np.ndarray]:
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


_ARRAYS_OF: Mapping[str, Callable[[Job], dict[str, np.ndarray]]] = {
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
