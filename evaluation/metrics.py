"""DSC and NSD of one organ, by the challenge's rules.

The surface Dice (NSD) is that of Nikolov et al., "Clinically applicable segmentation of head and
neck anatomy for radiotherapy" (2021), as DeepMind's ``surface-distance`` computes it: surface
elements sit at the corners between voxels, and their areas come from that library's tables.

One thing is done in another way, with the same result. The library makes a Euclidean distance map
of the whole box around both masks; one stray voxel far from the organ makes that box the whole
body and costs gigabytes. Here each surface element looks for its nearest neighbour (a k-d tree) and
memory follows the surface. Distances are then calculated with the library's own arithmetic, so that
one which equals the tolerance falls on the same side. In small boxes areas are added up in the
library's order too, that of the distances: a share that ends on half of the last digit, as those of
few voxels may, is rounded as the library's.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from surface_distance import lookup_tables

from evaluation.challenge import LOWEST_DSC_FOR_NSD, SLAB_LABELS, TOLERANCE_MM
from inference.grid import Box, Mask

_INSIDE = 255  # the code of a corner all of whose eight voxels are set
_SMALL = 100_000  # voxels of a box in which the nearest neighbour may be sought however far it is


def dice(reference: Mask, prediction: Mask) -> float:
    """Volumetric Dice similarity coefficient of two masks of the same shape, not both empty."""
    both = np.count_nonzero(reference & prediction)
    return 2 * both / (np.count_nonzero(reference) + np.count_nonzero(prediction))


def surface_dice(
    reference: Mask,
    prediction: Mask,
    spacing: tuple[float, ...],
    tolerance: float,
) -> float:
    """Share of two surfaces that lies within a tolerance of the other one.

    Args:
        reference: mask of shape (i, j, k), not empty.
        prediction: mask of the same shape, not empty.
        spacing: millimetres along i, j and k.
        tolerance: millimetres.

    Returns:
        Between 0 and 1.
    """
    areas = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    corners_r, areas_r, on_r = _surface(reference, areas)
    corners_p, areas_p, on_p = _surface(prediction, areas)
    reach = np.inf if reference.size <= _SMALL else tolerance * (1 + 1e-6)  # a little more
    near_r = _distances(corners_r, corners_p, on_p, spacing, reach)
    near_p = _distances(corners_p, corners_r, on_r, spacing, reach)
    shared_r, all_r = _sums(areas_r, near_r, tolerance)
    shared_p, all_p = _sums(areas_p, near_p, tolerance)
    return float((shared_r + shared_p) / (all_r + all_p))


def _surface(
    mask: Mask, area_of_code: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.float64], Mask]:
    """Corners between voxels that are neither inside nor outside, their areas, and their map."""
    # The eight voxels around a corner are the bits of a number, 128 for the lowest indices and
    # 1 for the highest, as in the library's kernel. It is separable: k first, then j, then i.
    codes: NDArray[np.uint8] = mask.view(np.uint8)
    for axis, shift in ((2, 1), (1, 2), (0, 4)):
        shape = [n + (axis == i) for i, n in enumerate(codes.shape)]
        wider = np.zeros_like(codes, shape=shape)
        here, after = [slice(None)] * 3, [slice(None)] * 3
        here[axis], after[axis] = slice(None, -1), slice(1, None)
        wider[tuple(here)] = codes
        wider[tuple(after)] |= np.left_shift(codes, shift, dtype=np.uint8)
        codes = wider
    on_surface = (codes != 0) & (codes != _INSIDE)
    # Looked up in the order of the memory, which is Fortran's for NIfTI: no copy is made.
    order: Literal["F", "C"] = "F" if codes.flags.f_contiguous else "C"
    flat = np.flatnonzero(on_surface.ravel(order=order))
    corners = np.stack(np.unravel_index(flat, codes.shape, order=order), axis=1)
    return corners, area_of_code[codes.ravel(order=order)[flat]], on_surface


def _distances(
    corners: NDArray[np.intp],
    others: NDArray[np.intp],
    on_others: Mask,
    spacing: tuple[float, ...],
    reach: float,
) -> NDArray[np.float64]:
    """How far, in mm, the nearest of the others is from each corner; infinity beyond the reach."""
    found = np.zeros(len(corners))
    rest = np.flatnonzero(~on_others[tuple(corners.T)])  # a good prediction has most in common
    if len(rest):
        step = np.asarray(spacing, np.float64)
        tree = cKDTree(others * step, compact_nodes=False, balanced_tree=False)
        _, nearest = tree.query(corners[rest] * step, distance_upper_bound=reach)
        found[rest] = np.inf
        there = nearest < len(others)  # the tree answers with their number where there is none
        offset = (corners[rest[there]] - others[nearest[there]]) * step
        found[rest[there]] = np.sqrt(np.add.reduce((offset * offset).T, axis=0))
    return found


def _sums(
    areas: NDArray[np.float64], distances: NDArray[np.float64], tolerance: float
) -> tuple[np.float64, np.float64]:
    """The area within the tolerance, and all of it."""
    areas = areas[np.lexsort((areas, distances))]
    return np.sum(areas[: np.count_nonzero(distances <= tolerance)]), np.sum(areas)


def score_organ(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    label: int,
    spacing: tuple[float, ...],
    boxes: tuple[Box | None, Box | None],
) -> tuple[float, float]:
    """DSC and NSD of one organ, not yet rounded, with all the challenge's special cases.

    Args:
        reference: label volume of shape (i, j, k) as NIfTI stores it; k is the axial axis.
        prediction: label volume of the same shape.
        label: the organ's value.
        spacing: millimetres along i, j and k (the header's zooms).
        boxes: the slices that enclose the label in the reference and in the prediction, ``None``
            where it is not there.

    Returns:
        DSC and NSD.
    """
    box_r, box_p = boxes
    if box_r is None and box_p is None:
        return 1.0, 1.0
    if box_r is None or box_p is None:
        return 0.0, 0.0
    box = [
        slice(min(r.start, p.start), max(r.stop, p.stop)) for r, p in zip(box_r, box_p, strict=True)
    ]
    if label in SLAB_LABELS:
        # The organisers slice with [first:last], which leaves the last labelled slice out.
        box[2] = slice(box_r[2].start, box_r[2].stop - 1)
        if box[2].start == box[2].stop:
            return 1.0, 1.0  # nothing is left of either mask (see is_single_slice)
    cut_r = reference[tuple(box)] == label
    cut_p = prediction[tuple(box)] == label
    dsc = dice(cut_r, cut_p)
    if dsc < LOWEST_DSC_FOR_NSD:
        return dsc, 0.0
    return dsc, surface_dice(cut_r, cut_p, spacing, TOLERANCE_MM[label])


def is_single_slice(label: int, box: Box | None) -> bool:
    """Whether the slab rule leaves nothing of this organ: it is labelled on one slice only.

    The organisers' own script stops with an error there. We apply the rule for two empty masks
    and say so beside the case.
    """
    return label in SLAB_LABELS and box is not None and box[2].stop - box[2].start == 1
