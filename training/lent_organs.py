"""Organs that an atlas lends to a patient's body, fitted to those that are the patient's own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from inference.organs import LABEL_OF
from training.chance import Chance
from training.tissues import SPACING, Tissue
from training.tubes import tube

_RESIZED = 1.1  # at most so many times as large as the atlas's, or as small
_MOVED = 16.0  # mm along an axis, at most, out of the way of what is there
_TURNED = 15.0  # degrees around an axis, at most
_STRETCHED = 0.12  # along an axis, standard deviation of the logarithm
_SHIFTED = 3.0  # mm along an axis, standard deviation

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
        score = len(free) / len(places) - 0.01 * SPACING * float(np.linalg.norm(step))
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
