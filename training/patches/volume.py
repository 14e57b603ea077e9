"""A prepared volume, with what is asked of it each time that a patch is drawn."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.grid import Shape, Spacing
from inference.organs import ORGANS
from inference.preprocess.body import body_box
from training.data.tissues import SPACING as BODY_SPACING
from training.sampling.warp import per_axis

VOLUMES = ("hu", "labels", "tissues", "hull")
"""What a prepared file may hold that has the volume's shape."""

_REMEMBERED = 2000  # voxels per organ from which a patch's middle is drawn


@dataclass(frozen=True)
class Volume:
    """A prepared volume, or what is known of one whose arrays are in its file alone.

    Attributes:
        arrays: ``hu`` and ``labels`` of an image, ``tissues`` and ``hull`` of a body; or empty.
        shape: (z, y, x) of each.
        annotated: label values that the labels tell.
        spacing: mm per axis.
        extent: first and last voxel (z, y, x) of the volume along z, of the body along y and x.
        voxels: organ to some of its voxels, (n, 3) on the CPU.
        heights: slices with an organ.
    """

    arrays: dict[str, Tensor]
    shape: Shape
    annotated: tuple[int, ...]
    spacing: Spacing
    extent: tuple[tuple[int, int], ...]
    voxels: dict[int, Tensor]
    heights: Tensor


def volume_of(content: Mapping[str, Any], name: str) -> Volume:
    """What is known of a prepared file's content, without its arrays.

    Args:
        content: the file's arrays (z, y, x), by name.
        name: of the file, without its ending: which voxels are remembered depends on it.
    """
    is_body = "tissues" in content
    labels = content["tissues"] if is_body else content["labels"]
    spacing = per_axis(BODY_SPACING if is_body else content["spacing"].tolist())
    if is_body:
        patient = content["hull"] < 10
    else:
        _, height, width = body_box(content["hu"], spacing)  # without the couch
        patient = np.zeros(content["hu"].shape, bool)
        patient[:, height, width] = content["hu"][:, height, width] > -300  # nor its margin
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    voxels = {}
    for organ in ORGANS:
        found = np.flatnonzero(labels == organ)
        if len(found):
            some = rng.choice(found, min(len(found), _REMEMBERED), replace=False)
            index = np.stack(np.unravel_index(some, labels.shape), 1)
            voxels[organ] = torch.from_numpy(index.astype(np.int16))  # small: of every case
    is_organ = (labels > 0) & (labels <= max(ORGANS))
    return Volume(
        arrays={},
        shape=(labels.shape[0], labels.shape[1], labels.shape[2]),
        annotated=tuple(ORGANS) if is_body else tuple(content["annotated"].tolist()),
        spacing=spacing,
        extent=(
            (0, len(labels) - 1),
            _extent(patient.any(axis=(0, 2))),
            _extent(patient.any(axis=(0, 1))),
        ),
        voxels=voxels,
        heights=torch.from_numpy(np.flatnonzero(is_organ.any(axis=(1, 2)))),
    )


def _extent(marked: np.ndarray) -> tuple[int, int]:
    """The first and the last marked place; of all places where none is marked."""
    there = np.flatnonzero(marked)
    return (int(there[0]), int(there[-1])) if len(there) else (0, len(marked) - 1)
