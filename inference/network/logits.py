"""Logits as they are kept: as numbers, or as the bits of bfloat16, which NumPy has no type for.

Where OpenVINO computes in bfloat16, float32 logits would be the same numbers in twice the memory,
and memory that is touched for the first time is slow: for a large CT it costs more than the sum.
A bfloat16 is the upper half of a float32, so what int8 networks compute in float32 elsewhere is cut
off to it: that costs less than int8 does. Such arrays have the type uint16 here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.preprocess.resample import Float32Array

Logits = NDArray[Any]
"""float32, float16, or uint16: the bits of bfloat16."""


def check_room_for_logits(needed: int, memory: int) -> None:
    """Refuse a case whose logits need more bytes than may be used.

    Raises:
        CaseError: they do.
    """
    if needed > memory:
        raise CaseError(
            f"needs {needed / 2**30:.2g} GiB of memory for its logits, and {memory / 2**30:.2g} GiB"
            " can be had; is its spacing right?"
        )


def floats(logits: Logits) -> Float32Array:
    """Logits as float32, exactly; the array itself if it is that already."""
    if logits.dtype == np.uint16:
        wide = logits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return logits.astype(np.float32, copy=False)


def comparable(logits: Logits) -> NDArray[Any]:
    """Numbers in the order of the logits, of no larger a type.

    Bits of bfloat16 become int16: as they are where the sign bit is not set, the others reversed
    (so -0.0 comes before 0.0). Everything else is given back as it is.
    """
    if logits.dtype != np.uint16:
        return logits
    ordered = logits.view(np.int16) >> 15
    ordered &= 0x7FFF
    ordered ^= logits.view(np.int16)
    return ordered


def any_nan(logits: Logits) -> bool:
    """Whether any of the logits is no number."""
    if logits.dtype != np.uint16:
        return bool(np.isnan(logits).any())
    return bool(((logits & 0x7FFF) > 0x7F80).any())  # largest exponent, and a fraction


def above(values: Float32Array, kind: np.dtype[Any]) -> Logits:
    """Something larger than each value, as logits of a type; `below` gives something smaller."""
    return stored(values + _step(values), kind)


def below(values: Float32Array, kind: np.dtype[Any]) -> Logits:
    """Something smaller than each value, as logits of a type."""
    return stored(values - _step(values), kind)


def _step(values: Float32Array) -> Float32Array:
    """More than is lost by rounding."""
    return (1 + np.abs(values) / 64).astype(np.float32)


def stored(values: Float32Array, kind: np.dtype[Any]) -> Logits:
    """Values as logits of a type, rounded to the nearest."""
    if kind == np.uint16:
        return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    return values.astype(kind)
