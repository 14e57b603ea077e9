"""Whole bodies from label maps: every organ map becomes a patient with all tissues.

A map of the whole body (the atlas) is registered to each patient whose organs alone are
labelled, and lends it bones, lungs, muscle, bowel and the organs that were not annotated. An
organ that the patient's map cuts off, as nearly every map does the aorta, is not absent beyond.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from inference.grid import Spacing
from inference.hounsfield import AIR
from inference.organs import LABEL_OF, ORGANS
from training.data.tissues import SPACING, Tissue
from training.sampling.chance import Chance
from training.sampling.warp import NearestVoxels, sample_linear, sample_nearest
from training.synthetic.lent_organs import join_to_stomach, lay, lead_past
from training.synthetic.registration import lay_over

_COVERED = 0.75  # of the most that is covered of any slice
_SKIN = 60.0  # mm around the labelled structures that are kept for fat and skin
_BEYOND = 255  # marks what the atlas does not reach; no tissue has this number
_GLANDS = (LABEL_OF["right_adrenal_gland"], LABEL_OF["left_adrenal_gland"])


@dataclass(frozen=True)
class Body:
    """A tissue map with room for fat and skin around it.

    Attributes:
        tissues: uint8 (z, y, x) at `SPACING`, values of `training.data.tissues`.
        hull: int8 (z, y, x), signed distance in mm to the hull of all labelled structures within
            each axial slice: negative inside, limited to +-127.
    """

    tissues: NDArray[np.uint8]
    hull: NDArray[np.int8]


def finish(tissues: NDArray[np.uint8]) -> Body:
    """Pad a whole-body tissue map for fat and skin and measure the distance to its hull.

    Raises:
        ValueError: nothing is labelled, or too little for a hull.
    """
    pad = round(_SKIN / SPACING)
    tissues = np.pad(tissues, ((0, 0), (pad, pad), (pad, pad)))
    inside = np.zeros(tissues.shape, bool)
    grid = np.indices(tissues.shape[1:]).reshape(2, -1).T
    for z in range(tissues.shape[0]):
        points = np.argwhere(ndimage.binary_opening(tissues[z] > 0))
        if len(points) < 20 or np.ptp(points, axis=0).min() < 3:
            continue
        sides = ConvexHull(points).equations
        inside[z] = (grid @ sides[:, :2].T + sides[:, 2] <= 0).all(axis=1).reshape(inside[z].shape)
    distance = np.empty(tissues.shape, np.int8)
    for z in range(tissues.shape[0]):
        if inside[z].any():
            out = ndimage.distance_transform_edt(~inside[z])
            within = ndimage.distance_transform_edt(inside[z])
            distance[z] = np.clip((out - within) * SPACING, -127, 127)
        else:
            distance[z] = 127
    # The body's surface runs smoothly from slice to slice.
    distance = ndimage.gaussian_filter1d(distance.astype(np.float32), 4.0, axis=0)
    columns = np.flatnonzero((distance < _SKIN).any(axis=(0, 1)))
    rows = np.flatnonzero((distance < _SKIN).any(axis=(0, 2)))
    if not len(rows):
        raise ValueError(f"{'too little' if tissues.any() else 'nothing'} is labelled")
    box = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Body(
        np.ascontiguousarray(tissues[box]),
        np.ascontiguousarray(np.round(distance[box]).astype(np.int8)),
    )


def complete(
    organs: NDArray[np.uint8],
    annotated: tuple[int, ...],
    atlas: NDArray[np.uint8],
    chance: Chance,
) -> NDArray[np.uint8]:
    """Give a patient of whom only organs are labelled the other tissues of an atlas.

    Args:
        organs: the patient's organ labels (z, y, x) at `SPACING`.
        annotated: which organs were annotated; the others come from the atlas.
        atlas: tissue map (z, y, x) of another patient's whole body at `SPACING`.
        chance: how the atlas's adrenal glands are varied.

    Returns:
        Tissue map (z, y, x) at `SPACING`: the patient's annotated organs, exactly, in a body that
        reaches as far as the atlas does within 100 mm above and 150 mm below the organs. What is
        annotated and absent stays absent; what the patient's map cuts off goes on beyond its end
        as the atlas has it.

    Raises:
        ValueError: the two share no organ, or the atlas cannot be laid over the patient.
    """
    laid = lay_over(organs, annotated, atlas)
    warped = sample_nearest(torch.from_numpy(atlas), laid.places, SPACING, _BEYOND).numpy()
    part = _reached(warped != _BEYOND)
    warped[warped == _BEYOND] = Tissue.NONE

    # What the patient's map tells, absence included, is not the atlas's to tell: its copies give
    # way to what surrounds them, though not to an organ, which would grow into them.
    foreign = np.zeros(warped.shape, bool)
    for value in annotated:
        foreign |= (warped == value) & laid.told[value][:, None, None]
    nearest = ndimage.distance_transform_edt(
        foreign | np.isin(warped, [*ORGANS]), return_distances=False, return_indices=True
    )
    merged = np.where(foreign, warped[tuple(nearest)], warped)
    glands = [value for value in _GLANDS if value not in annotated and value in merged]
    warped_glands = {value: merged == value for value in glands}
    merged[np.isin(merged, glands)] = Tissue.NONE
    own = np.isin(laid.organs, annotated)
    merged[own] = laid.organs[own]
    for value in glands:
        lay(merged, warped_glands[value], atlas, value, chance)
    if LABEL_OF["inferior_vena_cava"] not in annotated:
        lead_past(merged, LABEL_OF["inferior_vena_cava"])
    for name in ("esophagus", "duodenum"):
        if LABEL_OF[name] not in annotated:
            join_to_stomach(merged, LABEL_OF[name])
    return merged[part]


def transfer(
    hu: NDArray[np.int16],
    labels: NDArray[np.uint8],
    spacing: Spacing,
    atlas: NDArray[np.uint8],
    organs: NDArray[np.uint8],
    annotated: tuple[int, ...],
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Bend a real CT to another patient's anatomy: real texture and true labels, new shapes.

    Args:
        hu: the real CT (z, y, x).
        labels: its organ labels (z, y, x).
        spacing: of both in mm (z, y, x).
        atlas: tissue map of the same patient at `SPACING`.
        organs: the other patient's organ labels (z, y, x) at `SPACING`.
        annotated: which organs of the other patient were annotated.

    Returns:
        The bent CT and its labels (z, y, x) at `SPACING`, air where the CT has ended.

    Raises:
        ValueError: the two share no organ, or the CT cannot be laid over the patient.
    """
    places = lay_over(organs, annotated, atlas).places
    nearest = NearestVoxels(hu.shape, places, spacing)
    bent = sample_linear(torch.from_numpy(hu)[None], places, spacing)[0].numpy()
    bent_labels = nearest.values(torch.from_numpy(labels), 0).numpy()
    inside = nearest.inside.numpy()
    part = _reached(inside)
    bent[~inside] = AIR
    return np.round(bent[part]).astype(np.int16), bent_labels[part]


def _reached(inside: NDArray[np.bool_]) -> slice:
    """The slices of which the registered map covers nearly as much as anywhere, in one run.

    A map that is laid obliquely ends in a wedge, of which no slice shows a whole body.
    """
    covered = inside.mean(axis=(1, 2))
    runs, _ = ndimage.label(covered > _COVERED * covered.max())
    if not runs.any():
        raise ValueError("the whole-body map could not be laid over it")
    longest = int(np.bincount(runs)[1:].argmax()) + 1
    slices = np.flatnonzero(runs == longest)
    return slice(int(slices[0]), int(slices[-1]) + 1)
