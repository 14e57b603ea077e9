"""nnU-Net v2's own sliding window: Gaussian weights, sums in half precision, mirroring.

Parity with nnU-Net needs its roundings too: it adds up weighted logits and weights in half
precision, and where a voxel lies in the corner of one patch alone the weight is so small that
its logits come out as multiples of it. So the sums are made here as ``nnUNetPredictor`` makes
them, in its order. `inference.network.windows.predict_in_windows` is faster and rounds
less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.network.logits import Logits, check_room_for_logits, floats
from inference.network.tiling import window_starts
from inference.network.windows import Runner, box_at, pad
from inference.plan import Plan
from inference.preprocess.resample import Float32Array
from inference.stages import OnShare

Float16Array = NDArray[np.float16]

_PEAK = 10.0  # the largest weight


class Mirrored:
    """A network that is run on every reflection of its input too; the logits' mean is given.

    Args:
        network: the network.
        axes: the axes (0: z, 1: y, 2: x) along which the input may be reflected.
    """

    def __init__(self, network: Runner, axes: Sequence[int]) -> None:
        self._network = network
        self._flips = [
            tuple(axis - 3 for axis in chosen)
            for count in range(1, len(axes) + 1)
            for chosen in combinations(sorted(axes), count)
        ]

    def run(self, volume: Float32Array) -> Float32Array:
        """Logits (C, z, y, x) of a normalised volume, (z, y, x) or with channels first."""
        total = np.array(floats(self._network.run(volume)))
        for flip in self._flips:
            flipped = np.ascontiguousarray(np.flip(volume, flip))
            total += np.flip(floats(self._network.run(flipped)), flip)
        total /= np.float32(len(self._flips) + 1)
        return total


def predict_in_patches(
    network: Runner,
    volume: Float32Array,
    plan: Plan,
    memory: int,
    progress: OnShare | None = None,
) -> Logits:
    """Logits of a whole volume in nnU-Net's patches.

    Args:
        network: the network.
        volume: float32 array (z, y, x) or (C, z, y, x), normalised.
        plan: its patch, overlap and output channels, and what lies around the volume where it
            must be padded (`Plan.air`; nnU-Net: 0).
        memory: bytes that may be used.
        progress: is called with the finished share.

    Returns:
        float16 logits (C, z, y, x) on the volume's grid.

    Raises:
        CaseError: the logits do not fit into the memory, or half precision cannot hold them.
    """
    padded, inside = pad(volume, plan.patch, plan.air)
    grown = padded.shape[-3:]
    channels = len(plan.label_values)
    needed = (channels + 1) * math.prod(grown) * 2
    check_room_for_logits(needed, memory)
    total: Float16Array = np.zeros((channels, *grown), np.float16)
    weights: Float16Array = np.zeros(grown, np.float16)
    weight = patch_weights(plan.patch)
    corners = [
        window_starts(n, size, plan.overlap) for n, size in zip(grown, plan.patch, strict=True)
    ]
    count = math.prod(len(starts) for starts in corners)
    done = 0
    for z in corners[0]:
        for y in corners[1]:
            for x in corners[2]:
                here = box_at((z, y, x), plan.patch)
                # A sum that is too large becomes infinite and is found at the end.
                with np.errstate(over="ignore", invalid="ignore"):
                    for channel, values in enumerate(network.run(padded[here])):
                        total[channel][here] += floats(values) * weight
                weights[here] += weight
                done += 1
                if progress:
                    progress(done / count)
    for logits in total:
        with np.errstate(over="ignore", invalid="ignore"):
            logits /= weights
        if not np.isfinite(logits).all():
            raise CaseError(
                "its logits are not finite in the half precision of nnU-Net's tiling, where nnU-Net"
                " gives up too; a model imported with --tiling whole does not add up like this"
            )
    return total[inside]


def patch_weights(patch: Sequence[int]) -> Float16Array:
    """The weight of every voxel of a patch: nnU-Net's Gaussian, sigma an eighth of the patch.

    The Gaussian is SciPy's, cut off at four sigma; where nothing or less than half precision
    can hold is left, the smallest weight stands.
    """
    product: NDArray[Any] = np.full((1, 1, 1), _PEAK)
    for axis, size in enumerate(patch):
        distance = np.arange(size) - size // 2
        values = np.exp(-0.5 * (distance / (size / 8)) ** 2)
        values[np.abs(distance) > int(4 * size / 8 + 0.5)] = 0
        product = product * values.reshape([-1 if a == axis else 1 for a in range(3)])
    weights = product.astype(np.float16)
    weights[weights == 0] = weights[weights > 0].min()
    return weights
