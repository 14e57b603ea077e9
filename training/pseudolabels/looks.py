"""Looks at a CT: what networks say of it as it is, enlarged, shrunk, brighter and mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from inference.grid import Spacing
from inference.labels.postprocess import postprocess
from inference.network.winners import winners
from inference.preprocess.resample import resize
from training.config import Config
from training.networks.torch_runner import logits_of

_CUTS = ("foreign_gas", "cut_necks", "cut_tail")
"""Steps of post-processing that take from an organ what is another's."""

_LOOKS = ((1.0, 0.0), (0.92, 15.0), (1.08, -15.0))
"""Relative voxel size and HU shift of each look."""


def look_at(
    networks: Sequence[nn.Module], hu: np.ndarray, spacing: Spacing, config: Config
) -> list[np.ndarray]:
    """Label maps (z, y, x) of all looks at a prepared CT, the plain one of the first network first.

    Gas that is not an organ's is taken from it, and branches from vessels, as the configuration's
    post-processing says: else what the network takes the airways, the colon or an iliac artery for
    would be taught to the next one.

    Args:
        networks: trained networks.
        hu: (z, y, x).
        spacing: mm per axis.
        config: the networks'.
    """
    steps = tuple(step for step in config.postprocessing if step["step"] in _CUTS)
    plan = replace(config.plan_in_hu, postprocessing=steps)

    def labels(logits: np.ndarray) -> np.ndarray:
        cleaned = postprocess(logits, spacing, plan, ct=hu)
        return winners(logits) if cleaned is None else cleaned

    result = []
    mirrored = config.augmentation.get("mirror", {}).get("axes", ())
    for network in networks:
        for size, shift in _LOOKS:
            # Where the network's grid has a fixed size in voxels, the slices keep it.
            shape = [
                n if fixed else max(1, round(n / size))
                for n, fixed in zip(hu.shape, config.size, strict=True)
            ]
            seen = resize(hu, shape) if size != 1 else hu.astype(np.float32)
            logits = logits_of(network, seen + shift, config)
            if size != 1:
                logits = _resized(logits, hu.shape)
            result.append(labels(logits))
        for axis in mirrored:
            logits = logits_of(network, np.flip(hu, axis), config)
            result.append(labels(np.ascontiguousarray(np.flip(logits, axis + 1))))
    return result


def _resized(logits: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    result = np.empty((len(logits), *shape), np.float32)
    for number, channel in enumerate(logits):
        result[number] = resize(channel, shape)
    return result
