"""Which channel of the logits is the largest, voxel by voxel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from inference.network.logits import Logits, comparable

Channels = NDArray[np.uint8]
"""The channel that wins at each voxel, by its index."""

_AT_ONCE = 100_000  # voxels: with fewer, Python is what threads wait for; more leave the cache


def winners(logits: Logits) -> Channels:
    """The channel with the largest logit; the first of them where several are equal.

    Args:
        logits: shape (C, ...), C at most 256. In bits of bfloat16, -0.0 is less than 0.0.

    Returns:
        uint8 array of shape (...).
    """
    # A running maximum over planes is several times faster than np.argmax along axis 0.
    best = np.array(comparable(logits[0]))
    index = np.zeros(best.shape, np.uint8)
    better = np.empty(best.shape, bool)
    here = np.empty(best.shape, np.uint8)
    for channel in range(1, logits.shape[0]):
        values = comparable(logits[channel])
        np.greater(values, best, out=better)
        np.maximum(best, values, out=best)
        # Instead of index[better] = channel, which is no vector operation.
        np.multiply(better.view(np.uint8), np.uint8(channel), out=here)
        np.maximum(index, here, out=index)
    return index


def all_winners(logits: Logits, threads: int = 1) -> Channels:
    """`winners` of logits (C, z, y, x), several slices at once: (z, y, x)."""
    found = np.empty(logits.shape[1:], np.uint8)
    few = max(1, _AT_ONCE // max(1, found[0].size))

    def fill(z: int) -> None:
        found[z : z + few] = winners(logits[:, z : z + few])

    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(fill, range(0, len(found), few)))
    return found
