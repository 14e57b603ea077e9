"""A prepared volume in memory, with what is asked of it each time that a patch is drawn."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.grid import Spacing
from inference.organs import ORGANS
from inference.preprocess.body import body_box
from training.data.tissues import SPACING as BODY_SPACING
from training.patches.warp import per_axis

VOLUMES = ("hu", "labels", "tissues", "hull")
"""What a prepared file may hold that has the volume's shape."""

_REMEMBERED = 2000  # voxels per organ from which a patch's middle is drawn


@dataclass(frozen=True)
class Volume:
    """A prepared volume in memory.

    Attributes:
        arrays: ``hu`` and ``labels`` of an image, ``tissues`` and ``hull`` of a body.
        annotated: label values that the labels tell.
        spacing: mm per axis.
        extent: first and last voxel (z, y, x) of the volume along z, of the body along y and x.
        voxels: organ to some of its voxels, (n, 3) on the CPU.
        heights: slices with an organ.
    """

    arrays: dict[str, Tensor]
    annotated: tuple[int, ...]
    spacing: Spacing
    extent: tuple[tuple[int, int], ...]
    voxels: dict[int, Tensor]
    heights: Tensor

    @property
    def shape(self) -> torch.Size:
        """Voxels (z, y, x)."""
        return next(iter(self.arrays.values())).shape


def volume_of(content: Mapping[str, Any], name: str, device: torch.device | str) -> Volume:
    """What a prepared file holds, as a volume.

    Args:
        content: the file's arrays (z, y, x), by name.
        name: of the file, without its ending: which voxels are remembered depends on it.
        device: where the arrays are kept.
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
            voxels[organ] = torch.from_numpy(np.stack(np.unravel_index(some, labels.shape), 1))
    is_organ = (labels > 0) & (labels <= max(ORGANS))
    return Volume(
        arrays={k: torch.from_numpy(content[k]).to(device) for k in VOLUMES if k in content},
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
