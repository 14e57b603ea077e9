"""One pass over a volume and windows of both kinds, with a real (tiny) OpenVINO network."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_model import PLENTY, run, volume_of

from inference.errors import CaseError
from inference.model import Model
from inference.network.logits import Logits, floats, stored
from inference.network.tiling import (
    even_starts,
    largest_window,
    window_for,
    window_shares,
    window_starts,
)
from inference.network.windows import predict_in_windows


@pytest.mark.parametrize("shape", [(16, 32, 32), (19, 33, 45), (1, 5, 70), (40, 64, 36)])
def test_windows_leave_no_seams(tiny: Model, shape: tuple[int, int, int]) -> None:
    """A network that sees 3 x 3 x 3 voxels answers the same in windows.

    At the volume's faces it need not: there one pass pads to the network's multiple.
    """
    volume = volume_of(shape)
    whole = run(tiny, volume)
    windows = run(tiny, volume, tiling="window")
    assert whole.shape == windows.shape == (len(tiny.plan.label_values), *shape)
    inside = (slice(None), *(slice(3, -3) if n > 6 else slice(None) for n in shape))
    # Voxels at a window's face see zeros instead of their neighbours there, but weigh next to
    # nothing: 4 sigma from the centre.
    assert np.abs(whole - windows)[inside].max() < 0.1
    same = whole.argmax(axis=0) == windows.argmax(axis=0)
    assert same[inside[1:]].mean() > 0.9999


@pytest.mark.parametrize("shape", [(64, 32, 32), (40, 96, 36), (33, 70, 99)])
def test_large_windows_leave_no_seams(tiny: Model, shape: tuple[int, int, int]) -> None:
    """Nor do those that lie beside each other along two or three axes."""
    volume = volume_of(shape)
    seen: list[float] = []
    whole = run(tiny, volume)
    plan = replace(tiny.plan, bytes_per_voxel={"f32": PLENTY / (2 * 16 * 32 * 36)})
    windows = predict_in_windows(tiny.network, volume, plan, PLENTY, seen.append)
    assert len(seen) > 1 and seen[-1] == 1.0
    inside = (slice(None), *(slice(3, -3) for _ in shape))
    assert windows.dtype == np.float32
    assert np.abs(whole - windows)[inside].max() < 1e-4


class Watching:
    """A network that remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[NDArray[np.float32]] = []

    def run(self, volume: NDArray[np.float32]) -> Logits:
        self.given.append(volume.copy())
        return np.zeros((5, *volume.shape), np.float32)


@pytest.mark.parametrize("shape", [(3, 40, 40), (20, 9, 33), (1, 1, 1)])
def test_a_slab_is_padded_to_a_patch(tiny: Model, shape: tuple[int, int, int]) -> None:
    """In one pass too: the network was trained on nothing smaller."""
    network = Watching()
    logits = predict_in_windows(network, np.ones(shape, np.float32), tiny.plan, PLENTY)
    (given,) = network.given
    assert logits.shape[1:] == shape
    for n, size, whole, step in zip(
        shape, tiny.plan.patch, given.shape, tiny.plan.multiple, strict=True
    ):
        assert whole % step == 0 and whole - step < max(n, size) <= whole
    middle = tuple(
        slice((m - n) // 2, (m - n) // 2 + n) for n, m in zip(shape, given.shape, strict=True)
    )
    assert (given[middle] == 1).all() and (given == -10).sum() == given.size - math.prod(shape)


class Counting:
    """A network whose logits are the number of the pass."""

    passes = 0

    def run(self, volume: NDArray[np.float32]) -> Logits:
        self.passes += 1
        return np.full((5, *volume.shape), self.passes - 1, np.float32)


def test_windows_are_faded_in_the_middle_half_of_what_they_share(tiny: Model) -> None:
    patch = tiny.plan.patch
    n = 6 * patch[0]
    shape = (n, *patch[1:])
    plan = replace(tiny.plan, overlap=0.5, bytes_per_voxel={"f32": PLENTY / (math.prod(shape) - 1)})
    window = window_for(shape, plan, PLENTY)
    assert n / 2 < window[0] < n and window[1:] == patch[1:]
    found = predict_in_windows(Counting(), np.zeros(shape, np.float32), plan, PLENTY)
    line = found[3, :, 2, 1]
    start, end = n - window[0], window[0]
    quarter = (end - start) // 4
    assert (found == line[:, None, None]).all()
    assert not line[: start + quarter].any() and (line[end - quarter :] == 1).all()
    middle = line[start + quarter : end - quarter]
    assert np.allclose(middle, (np.arange(len(middle)) + 0.5) / len(middle))


def test_rows_of_windows_are_faded_into_each_other(tiny: Model) -> None:
    patch = tiny.plan.patch
    shape = (patch[0] * 3 // 2, patch[1] * 3 // 2, patch[2])
    plan = replace(tiny.plan, overlap=0.5, bytes_per_voxel={"f32": PLENTY / math.prod(patch)})
    network = Counting()
    found = predict_in_windows(network, np.zeros(shape, np.float32), plan, PLENTY)[0]
    assert network.passes == 4
    corners = [found[z, y, 0] for z in (0, -1) for y in (0, -1)]
    assert corners == [0, 1, 2, 3]
    fade = found[:, 0, 0] / 2  # from pass 0 to pass 2
    assert np.allclose(found, fade[:, None, None] * 2 + found[0][None])


def test_bits_of_bfloat16_are_faded_too(tiny: Model) -> None:
    class Halved:
        def run(self, volume: NDArray[np.float32]) -> Logits:
            return stored(tiny.network.run(volume), np.dtype(np.uint16))

    volume = volume_of((64, 32, 32))
    plan = replace(tiny.plan, bytes_per_voxel={"f32": PLENTY / (2 * 16 * 32 * 36)})
    found = predict_in_windows(Halved(), volume, plan, PLENTY)
    exact = predict_in_windows(tiny.network, volume, plan, PLENTY)
    assert found.dtype == np.uint16
    assert np.allclose(floats(found), exact, rtol=2**-7, atol=1e-6)


def test_windows_are_used_where_memory_is_short(tiny: Model) -> None:
    volume = volume_of((32, 64, 64))
    seen: list[float] = []
    plan = replace(tiny.plan, overlap=0.0)
    need = int(plan.pass_bytes(volume.size))
    predict_in_windows(tiny.network, volume, plan, need, seen.append)
    assert seen == [1.0]
    seen.clear()
    predict_in_windows(tiny.network, volume, plan, need - 1, seen.append)
    assert len(seen) == 2
    assert seen[-1] == 1.0


def test_window_is_as_large_as_it_may_be(tiny: Model) -> None:
    each = 10000.0  # beside it, gathered logits are little
    plan = replace(
        tiny.plan,
        patch=(16, 32, 32),
        multiple=(4, 4, 4),
        overlap=0.0,
        bytes_per_voxel={"f32": each},
    )
    whole = (100, 64, 36)
    need = int(100 * 64 * 36 * each)
    assert largest_window(whole, plan, need) == whole
    assert largest_window(whole, plan, need - 1) == (52, 64, 36)
    assert largest_window(whole, plan, need // 4) == (28, 32, 36)
    assert largest_window(whole, plan, 0) == (16, 32, 32)
    assert largest_window((8, 64, 12), plan, 0) == (8, 32, 12)
    # And what a pass needs whatever its size.
    plan_and_slab = replace(plan, bytes_per_pass={"f32": 1000.0})
    assert largest_window(whole, plan_and_slab, need + 1000) == whole
    assert largest_window(whole, plan_and_slab, need + 999) == (52, 64, 36)
    # What two windows share counts too: 2 x 56 - 8 voxels cover 100, 2 x 52 - 8 would not.
    assert largest_window(whole, replace(plan, overlap=0.5), need - 1) == (56, 64, 36)


def test_logits_that_are_gathered_count_too(tiny: Model) -> None:
    """A window must leave room for the logits of the whole, and of each strip of windows."""
    plan = replace(
        tiny.plan,
        patch=(16, 32, 32),
        multiple=(4, 4, 4),
        overlap=0.0,
        bytes_per_voxel={"f32": 100.0},
    )
    whole, channels = (100, 64, 36), len(tiny.plan.label_values)
    half, logits = 52 * 64 * 36 * 100, 100 * 64 * 36 * channels * 4
    assert logits < (half + logits) // 2  # float32 then
    assert largest_window(whole, plan, half + logits) == (52, 64, 36)
    assert math.prod(largest_window(whole, plan, half + logits - 1)) < math.prod((52, 64, 36))
    # Other networks than those in f32 give logits of two bytes.
    two = {"f32": "network.xml", "bf16": "network.xml"}
    plan = replace(plan, networks=two, precision="bf16", bytes_per_voxel=dict.fromkeys(two, 100.0))
    assert largest_window(whole, plan, half + logits // 2) == (52, 64, 36)
    # Not so the mean over mirrored passes.
    mirrored = replace(plan, mirror=(0,))
    assert largest_window(whole, mirrored, half + logits) == (52, 64, 36)
    assert math.prod(largest_window(whole, mirrored, half + logits - 1)) < math.prod((52, 64, 36))


def test_memory_limits_a_window(tiny: Model) -> None:
    plan = replace(
        tiny.plan, patch=(16, 32, 32), multiple=(4, 4, 4), bytes_per_voxel={"f32": 100.0}
    )
    need = 400 * 160 * 192 * 100
    assert window_for((400, 160, 192), plan, need) == (400, 160, 192)
    assert window_for((400, 160, 192), plan, need - 1) == (204, 160, 192)
    assert window_for((400, 160, 192), replace(plan, tiling="window"), need) == plan.patch


@given(st.integers(1, 400), st.integers(2, 80), st.floats(0, 0.99), st.integers(1, 6))
def test_large_windows_cover_an_axis(n: int, patch: int, overlap: float, parts: int) -> None:
    """With as few windows as were planned, and never less shared than is asked for."""
    shared = min(patch - 1, round(patch * overlap))
    size = max(patch, -(-(n + (parts - 1) * shared) // parts))
    n = max(n, size)
    starts = even_starts(n, size, shared)
    assert starts[0] == 0 and starts[-1] == n - size
    assert len(starts) <= parts
    assert all(b - a <= size - shared for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("tiling", ["whole", "window"])
def test_half_precision_where_memory_is_very_short(tiny: Model, tiling: str) -> None:
    volume = volume_of((16, 32, 48))
    whole = run(tiny, volume)
    least = 2 * whole.size
    windows = run(tiny, volume, memory=least, tiling=tiling)
    assert windows.dtype == np.float16
    with pytest.raises(CaseError, match="of memory for its logits"):
        run(tiny, volume, memory=least - 1, tiling=tiling)
    assert np.abs(whole - windows).max() < 0.1


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(("n", "size"), [(16, 16), (17, 16), (100, 16), (33, 32), (64, 32)])
def test_windows_cover_an_axis(n: int, size: int, overlap: float) -> None:
    starts = window_starts(n, size, overlap)
    assert starts[0] == 0
    assert starts[-1] == n - size
    steps = np.diff(starts)
    assert (steps <= np.ceil(size * (1 - overlap))).all()
    total = np.zeros(n)
    for start, share in zip(starts, window_shares(n, size, starts), strict=True):
        total[start : start + size] += share
    assert np.allclose(total, 1, atol=1e-6)


def test_windows_step_as_nnunet_does() -> None:
    # nnunetv2.inference.sliding_window_prediction.compute_steps_for_sliding_window
    assert window_starts(110, 64, 0.5) == [0, 23, 46]
    assert window_starts(300, 128, 0.5) == [0, 57, 115, 172]
    assert window_starts(64, 64, 0.5) == [0]
    assert window_starts(3, 1, 0.5) == [0, 1, 2], "slices of a 2D network"
