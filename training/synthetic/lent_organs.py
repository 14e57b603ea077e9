"""Organs that an atlas lends to a patient's body, fitted to those that are the patient's own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from inference.organs import LABEL_OF
from training.data.tissues import SPACING, Tissue
from training.sampling.chance import Chance
from training.synthetic.tubes import tube

_RESIZED = 1.1  # at most so many times as large as the atlas's, or as small
_MOVED = 16.0  # mm along an axis, at most, out of the way of what is there
_TURNED = 15.0  # degrees around an axis, at most
_STRETCHED = 0.12  # along an axis, standard deviation of the logarithm
_SHIFTED = 3.0  # mm along an axis, standard deviation

_SQUEEZED = 0.5  # of a vessel's usual cross-section thereabouts, below which it is
_THEREABOUTS = 120.0  # mm
_ASIDE = 24.0  # mm from its course, at most, to where there is room for it
_PER_MM = 0.01  # of its cross-section that must be free more, to be worth a mm

_TOUCHING = 1.8 * SPACING  # mm between two voxels of organs with nothing between them
_LONGEST_JOINT = 50.0  # mm
_OUTLET = 10.0  # mm of the esophagus's lower end
_GIVES_WAY = (Tissue.NONE, Tissue.MUSCLE, Tissue.SMALL_BOWEL)


def lay(
    tissues: NDArray[np.uint8],
    warped: NDArray[np.bool_],
    atlas: NDArray[np.uint8],
    value: int,
    chance: Chance,
) -> None:
    """Put an organ of nearly the atlas's shape and size where it lies when it is warped.

    For what is small beside the distances between the organs that lead the registration: these
    move it to its place, but stretch it as far as what lies between them. So that a few atlases
    give many shapes, it is turned, stretched and moved a little by chance. It gives way to what
    is there: it is laid where it fits nearly whole, and no further away than it must be.

    Args:
        tissues: the body (z, y, x) at `SPACING`, edited in place.
        warped: where the registration puts the organ (z, y, x).
        atlas: the tissue map (z, y, x) at `SPACING` that it comes from.
        value: the organ's label.
        chance: how it is varied.
    """
    straight = (atlas == value).astype(np.uint8)
    size = float(np.cbrt(warped.sum() / straight.sum()).clip(1 / _RESIZED, _RESIZED))
    whole = np.pad(straight[ndimage.find_objects(straight)[0]], 1)
    places = np.argwhere(_varied(whole, size, chance))
    wanted = np.argwhere(warped).mean(axis=0)
    wanted += [chance.normal(0, _SHIFTED / SPACING) for _ in range(3)]
    places = places - np.round(places.mean(axis=0) - wanted).astype(int)
    reach = round(_MOVED / SPACING)
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1, 2)] * 3, indexing="ij"), axis=-1)
    best, found = -np.inf, places[:0]
    for step in steps.reshape(-1, 3):
        moved = places + step
        moved = moved[((moved >= 0) & (moved < tissues.shape)).all(axis=1)]
        free = moved[tissues[tuple(moved.T)] == Tissue.NONE]
        score = len(free) / len(places) - _PER_MM * SPACING * float(np.linalg.norm(step))
        if score > best:
            best, found = score, free
    tissues[tuple(found.T)] = value


def _varied(mask: NDArray[np.uint8], size: float, chance: Chance) -> NDArray[np.bool_]:
    """A mask so many times as large, turned and stretched by chance.

    Args:
        mask: uint8 (z, y, x), with a margin of zeros.
        size: how many times as large along each axis.
        chance: source of chance.

    Returns:
        A cube with the mask in its middle.
    """
    angles = [chance.uniform(-_TURNED, _TURNED) for _ in range(3)]
    stretch = size * np.exp([chance.normal(0, _STRETCHED) for _ in range(3)])
    turned = Rotation.from_euler("zyx", angles, degrees=True).as_matrix() * stretch
    reach = int(np.ceil(np.linalg.norm(mask.shape) / 2 * stretch.max()))
    back = np.linalg.inv(turned)
    middle = (np.array(mask.shape) - 1) / 2
    offset, shape = middle - back @ np.full(3, reach), (2 * reach + 1,) * 3
    varied = ndimage.affine_transform(mask.astype(np.float32), back, offset, shape, order=1)
    # Of a thin organ few voxels stay more than half full: the fullest are taken, as many as it has.
    voxels = round(int(mask.sum()) * float(stretch.prod()))
    return np.asarray((varied > 0) & (varied >= np.sort(varied, axis=None)[-voxels]))


def lead_past(tissues: NDArray[np.uint8], value: int) -> None:
    """Let a vessel of the atlas's go on where the patient's organs have squeezed or cut it.

    It is led past them, round and as wide as it is thereabouts, where there is room for it.

    Args:
        tissues: the body (z, y, x) at `SPACING`, edited in place.
        value: the vessel's label.
    """
    areas = (tissues == value).sum(axis=(1, 2))
    if not areas.any():
        return
    usual = ndimage.percentile_filter(areas, 70, round(_THEREABOUTS / SPACING))
    wide = np.flatnonzero((areas > 0) & (areas >= _SQUEEZED * usual))
    course = np.arange(wide[0], wide[-1] + 1)
    middles = np.array([ndimage.center_of_mass(tissues[z] == value) for z in wide])
    centres = np.stack([np.interp(course, wide, middles[:, axis]) for axis in (0, 1)], axis=1)
    radius, reach = np.sqrt(usual / np.pi), round(_ASIDE / SPACING)
    steps = np.indices((2 * reach + 1,) * 2) - reach
    toll = _PER_MM * SPACING * np.hypot(*steps)
    squeezed = np.setdiff1d(course, wide)
    for z in squeezed:
        disc = (np.hypot(*steps) <= radius[z]).astype(np.float32)
        y, x = np.round(centres[z - course[0]]).astype(int)
        free = np.isin(tissues[z], (Tissue.NONE, value)).astype(np.float32)
        room = ndimage.correlate(np.pad(free, reach), disc / disc.sum(), mode="constant")
        best = int((room[y : y + 2 * reach + 1, x : x + 2 * reach + 1] - toll).argmax())
        centres[z - course[0]] += steps.reshape(2, -1)[:, best]
    centres = ndimage.gaussian_filter1d(centres, 2.0, axis=0)
    y, x = np.ogrid[: tissues.shape[1], : tissues.shape[2]]
    for z in squeezed:
        middle_y, middle_x = centres[z - course[0]]
        inside = np.hypot(y - middle_y, x - middle_x) <= radius[z]
        tissues[z][inside & (tissues[z] == Tissue.NONE)] = value


def join_to_stomach(tissues: NDArray[np.uint8], value: int) -> None:
    """Let the atlas's esophagus or duodenum reach the stomach, which is the patient's own.

    Args:
        tissues: the body (z, y, x) at `SPACING`, edited in place.
        value: the organ's label.
    """
    organ, stomach = tissues == value, tissues == LABEL_OF["stomach"]
    if not (organ.any() and stomach.any()):
        return
    away, nearest = ndimage.distance_transform_edt(~stomach, SPACING, return_indices=True)
    ends = np.argwhere(organ)
    if value == LABEL_OF["esophagus"]:  # the stomach's fundus lies beside it, further up
        ends = ends[ends[:, 0] <= ends[0, 0] + _OUTLET / SPACING]
    end = ends[away[tuple(ends.T)].argmin()]
    if not _TOUCHING < away[tuple(end)] <= _LONGEST_JOINT:
        return
    other = nearest[:, end[0], end[1], end[2]]
    # As thick as the organ is near its end, and from its middle on.
    depth = ndimage.distance_transform_edt(organ)
    near = np.argwhere(organ)
    near = near[np.linalg.norm(near - end, axis=1) <= _OUTLET / SPACING]
    middle = near[depth[tuple(near.T)].argmax()]
    course = [(float(z), float(y), float(x)) for z, y, x in (middle, other)]
    joint = tube(torch.from_numpy(organ), course, float(depth[tuple(middle)])).numpy()
    tissues[joint & np.isin(tissues, _GIVES_WAY)] = value
