"""Logits as the bits of bfloat16: their values, their order, what is put above and below them."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.labels.decode import decode
from inference.network.logits import above, below, comparable, floats
from inference.network.winners import winners

finite = st.integers(0, 0xFFFF).filter(lambda bits: bits >> 7 & 0xFF != 0xFF)


def value_of(bits: int) -> float:
    """A bfloat16's value from its sign, exponent and fraction."""
    sign, exponent, fraction = -1 if bits >> 15 else 1, bits >> 7 & 0xFF, bits & 0x7F
    scale = math.ldexp(1, max(exponent, 1) - 127)
    return sign * scale * ((exponent > 0) + fraction / 128)


@given(st.lists(finite, min_size=2, max_size=30))
def test_bits_have_their_values_and_order(bits: list[int]) -> None:
    stored = np.array(bits, np.uint16)
    values = [value_of(each) for each in bits]
    assert floats(stored).tolist() == values
    order = comparable(stored)
    assert order.dtype == np.int16
    for a, b, x, y in zip(order, order[1:], values, values[1:], strict=False):
        assert (a < b) == (x < y) or x == y == 0


def test_numbers_stay_what_they_are() -> None:
    for kind in (np.float16, np.float32):
        logits = np.array([1.5, -2, 0], kind)
        assert comparable(logits) is logits
        assert floats(logits).dtype == np.float32 and floats(logits).tolist() == [1.5, -2, 0]


@pytest.mark.parametrize("kind", [np.uint16, np.float16, np.float32])
@given(value=st.floats(-1000, 1000, width=32))
def test_above_and_below_survive_the_rounding(kind: type, value: float) -> None:
    values = np.array([value], np.float32)
    stored = values.view(np.uint32) >> 16 if kind is np.uint16 else values
    given_back = floats(stored.astype(kind))
    assert floats(below(values, np.dtype(kind)))[0] < min(value, given_back[0])
    assert floats(above(values, np.dtype(kind)))[0] > max(value, given_back[0])


def test_labels_are_those_of_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    bits = (rng.normal(size=(6, 7, 8, 9)).astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    )
    (first,) = struct.unpack("<f", b"\0\0" + bits[0, 0, 0, 0].tobytes())
    assert floats(bits)[0, 0, 0, 0] == first
    assert np.array_equal(winners(bits), floats(bits).argmax(axis=0))
    found, expected = np.zeros((2, 15, 18, 17), np.uint8)
    decode(bits, range(6), found, threads=2)
    decode(floats(bits), range(6), expected)
    assert np.array_equal(found, expected)
