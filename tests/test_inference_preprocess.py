"""Orientation, the body's box, resizing and normalising."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from inference.errors import CaseError
from inference.grid import whole_box
from inference.model import Model
from inference.preprocess.body import body_box
from inference.preprocess.preprocess import preprocess
from inference.preprocess.resample import resize, resize_labels


def test_a_ct_of_impossible_size_is_refused_before_memory_is_taken(tiny: Model) -> None:
    plan = replace(tiny.plan, spacing=(2.0, 2.0, 2.0), size=(None, None, None), crop="none")
    tenfold = (50_000.0, 7_000.0, 7_000.0)  # mm: a grid of thousands of TiB
    with pytest.raises(CaseError, match=r"500 x 70 x 70 m .* is its spacing right"):
        preprocess(np.zeros((10, 10, 10), np.int16), tenfold, plan)


@given(st.tuples(*[st.integers(1, 30)] * 3), st.tuples(*[st.integers(1, 30)] * 3))
@settings(max_examples=50, deadline=None)
def test_resize_keeps_constants_and_ramps(shape: Any, new: Any) -> None:
    assert np.allclose(resize(np.full(shape, 7, np.int16), new), 7)
    for axis in range(3):
        # A ramp in physical position stays that ramp, away from the borders.
        n, m = shape[axis], new[axis]
        ramp = np.moveaxis(np.broadcast_to((np.arange(n) + 0.5) / n, (2, 2, n)), 2, axis)
        goal = [2, 2, 2]
        goal[axis] = m
        found = np.moveaxis(resize(ramp, goal), axis, 2)
        rim = int(np.ceil(m / n)) + 1
        # Where it shrinks, the wide filter's taps lie unevenly around the centre: within a
        # seventh of a voxel.
        near = 1e-5 if m >= n else 1 / 7 / n
        assert np.allclose(found[..., rim:-rim], ((np.arange(m) + 0.5) / m)[rim:-rim], atol=near)


def test_resize_is_linear_interpolation_where_it_grows() -> None:
    volume = np.random.default_rng(0).normal(size=(5, 6, 7))
    shape = (11, 6, 20)
    axes = [
        np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        for n, m in zip(volume.shape, shape, strict=True)
    ]
    expected = ndimage.map_coordinates(volume, np.meshgrid(*axes, indexing="ij"), order=1)
    assert np.allclose(resize(volume, shape), expected, atol=1e-5)


def test_resize_does_not_depend_on_the_threads_of_blas() -> None:
    """The command sets BLAS to one thread, whoever calls `inference.segment` may not."""
    program = (
        "import hashlib, numpy as np\n"
        "from inference.preprocess.resample import resize\n"
        "volume = np.random.default_rng(0).normal(size=(6, 500, 510))\n"
        "for threads in (1, 2):\n"
        "    resized = resize(volume, (8, 205, 190), threads=threads)\n"
        "    print(hashlib.sha256(resized).hexdigest())\n"
    )
    found = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True
        )
        found.update(done.stdout.split())
    assert len(found) == 1


def test_resize_averages_where_it_shrinks() -> None:
    noise = np.random.default_rng(0).normal(0, 10, (40, 40, 40))
    assert resize(noise, (10, 10, 10)).std() < 3


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.float32, np.float64])
def test_resize_clips_every_type_and_threads_agree(kind: Any) -> None:
    volume = np.random.default_rng(0).integers(0, 3000, (30, 9, 8)).astype(kind)
    one = resize(volume, (24, 5, 6), (-100, 500))
    assert one.max() <= 500.001
    assert np.array_equal(one, resize(volume, (24, 5, 6), (-100, 500), threads=3))
    assert np.allclose(one, resize(np.clip(volume.astype(float), -100, 500), (24, 5, 6)), rtol=1e-5)


def test_resize_labels_takes_the_nearest() -> None:
    labels = np.arange(4, dtype=np.uint8).reshape(1, 1, 4)
    assert resize_labels(labels, (1, 2, 8))[0, 1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert resize_labels(labels, (1, 1, 2)).ravel().tolist() == [1, 3]


def patient(shape: tuple[int, int, int] = (40, 150, 160)) -> NDArray[np.int16]:
    """An ellipse of water with lungs, at 3 mm, on a table with a thin cover, beside an arm."""
    volume = np.full(shape, -1000, np.int16)
    y, x = np.ogrid[: shape[1], : shape[2]]
    body = ((y - 60) / 30) ** 2 + ((x - 80) / 45) ** 2 < 1
    volume[:, body] = 40
    volume[:, ((y - 60) / 15) ** 2 + ((x - 60) / 12) ** 2 < 1] = -850
    volume[:, 92:94, 20:140] = 200  # the table's cover, a little below the back
    volume[:, 110:113, 5:155] = -100
    volume[:, (y - 60) ** 2 + (x - 15) ** 2 < 49] = 40  # an arm
    return volume


def test_body_box_leaves_table_and_arm_out() -> None:
    z, y, x = body_box(patient(), (3.0, 3.0, 3.0))
    assert (z.start, z.stop) == (0, 40)
    assert 20 <= y.start <= 31
    assert 90 <= y.stop <= 99
    assert 25 <= x.start <= 36
    assert 125 <= x.stop <= 135


def test_the_body_goes_on_beyond_blank_slices() -> None:
    whole, holed = patient(), patient()
    holed[25:27] = -1024
    assert body_box(holed, (3.0, 3.0, 3.0)) == body_box(whole, (3.0, 3.0, 3.0))


def test_body_box_with_a_touching_table_still_holds_the_body() -> None:
    volume = patient()
    volume[:, 88:92, 60:100] = 100  # a cushion between back and table
    _, y, x = body_box(volume, (3.0, 3.0, 3.0))
    assert y.start <= 31
    assert y.stop >= 90
    assert x.start <= 36
    assert x.stop >= 125


@pytest.mark.parametrize("value", [-1000, 40])
def test_body_box_falls_back_to_everything(value: int) -> None:
    volume = np.full((10, 20, 30), value, np.int16)
    assert body_box(volume, (3.0, 3.0, 3.0)) == whole_box(volume.shape)
    volume[5, 10, 10:12] = 40
    assert body_box(volume, (3.0, 3.0, 3.0)) == whole_box(volume.shape)


def test_body_box_takes_the_offset() -> None:
    stored = (patient() + 1024).astype(np.uint16)
    assert body_box(stored, (3.0, 3.0, 3.0), -1024.0) == body_box(patient(), (3.0, 3.0, 3.0))


def test_network_input_is_clipped_and_normalised(tiny: Model) -> None:
    plan = replace(tiny.plan, clip=(-160.0, 240.0), subtract=40.0, divide=200.0)
    prepared = preprocess(patient(), (3.0, 3.0, 3.0), plan)
    assert prepared.values.min() == pytest.approx(-1.0) == plan.air
    assert prepared.values.max() <= 1.0
    part = patient()[prepared.box]
    sizes = zip(part.shape, prepared.values.shape, prepared.spacing, strict=True)
    assert all(n * 3.0 == pytest.approx(m * size) for n, m, size in sizes)
    shifted = preprocess((patient() + 1024).astype(np.uint16), (3.0, 3.0, 3.0), plan, -1024.0)
    assert shifted.box == prepared.box
    assert np.allclose(shifted.values, prepared.values, atol=1e-4)


def test_a_wider_range_first_and_the_narrow_one_after_resizing(tiny: Model) -> None:
    """Two voxels of bone and air become one: air, but about 40 HU where each is clipped before."""
    volume = np.zeros((4, 4, 4), np.int16)
    volume[:, :, 0::2], volume[:, :, 1::2] = 500, -1000
    plan = replace(tiny.plan, crop="none", clip=(-160.0, 240.0), subtract=0.0, divide=1.0)
    plan = replace(plan, spacing=(4.0, 4.0, 4.0))
    clipped = preprocess(volume, (2.0, 2.0, 2.0), plan).values
    wide = replace(plan, clip_first=(-1024.0, 1500.0))
    for offset in (0, 1024):
        shifted = (volume + offset).astype(np.int16)
        values = preprocess(shifted, (2.0, 2.0, 2.0), wide, -offset).values
        expected = resize(volume.astype(float), (2, 2, 2)).clip(-160, 240)
        assert np.allclose(values, expected, atol=1e-3)
    assert clipped.max() < 150 and values.mean() < clipped.mean() - 50


def test_plan_decides_the_grid(tiny: Model) -> None:
    volume = patient()
    plan = replace(tiny.plan, crop="none", spacing=(None, 6.0, 2.0), size=(None, None, 128))
    prepared = preprocess(volume, (3.0, 3.0, 3.0), plan)
    assert prepared.values.shape == (40, 75, 128)
    assert prepared.box == whole_box(volume.shape)
