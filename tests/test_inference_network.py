"""One pass and sliding windows of a real (tiny) OpenVINO network."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_model import make_tiny_model

import inference.network
from inference.errors import ModelError
from inference.model import Model
from inference.network import Network, largest_window, predict, window_shares, window_starts

PLENTY = 10**10


def volume_of(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(-10, 5, shape).astype(np.float32)


def run(model: Model, volume: NDArray[np.float32], memory: int = PLENTY, **plan: Any) -> Any:
    return predict(model.network, volume, replace(model.plan, **plan), -10.0, memory).copy()


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


def test_windows_are_used_where_memory_is_short(tiny: Model) -> None:
    volume = volume_of((32, 64, 64))
    seen: list[float] = []
    plan = replace(tiny.plan, overlap=0.0)
    need = int(volume.size * plan.bytes_per_voxel)
    predict(tiny.network, volume, plan, -10.0, need, seen.append)
    assert seen == [1.0]
    seen.clear()
    predict(tiny.network, volume, plan, -10.0, need - 1, seen.append)
    assert len(seen) == 2
    assert seen[-1] == 1.0


def test_window_is_as_large_as_memory_allows(tiny: Model) -> None:
    plan = replace(tiny.plan, patch=(16, 32, 32), multiple=(4, 4, 4), bytes_per_voxel=10.0)
    whole = (100, 64, 36)
    fits = 100 * 64 * 36 * 10
    assert largest_window(whole, plan, fits) == whole
    assert largest_window(whole, plan, fits - 1) == (52, 64, 36)
    assert largest_window(whole, plan, fits // 4) == (28, 32, 36)
    assert largest_window(whole, plan, 0) == (16, 32, 32)
    assert largest_window((8, 64, 12), plan, 0) == (8, 32, 12)


def test_half_precision_sums_where_memory_is_very_short(tiny: Model) -> None:
    volume = volume_of((16, 32, 48))
    whole = run(tiny, volume)
    windows = run(tiny, volume, memory=1000)
    assert windows.dtype == np.float16
    assert np.abs(whole - windows).max() < 0.1


def test_bf16_is_close(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "m", networks={"f32": "network.xml", "bf16": "network.xml"})
    volume = volume_of((16, 32, 32))
    exact, rounded = (
        run(Model.load(tmp_path / "m", precision=precision), volume)
        for precision in ("f32", "bf16")
    )
    assert np.abs(exact - rounded).max() < 0.2  # of values up to 15


def test_shape_is_compiled_once(tiny: Model) -> None:
    first = tiny.network.compile((8, 8, 8))
    assert tiny.network.compile((8, 8, 8)) is first
    assert tiny.network.compile((8, 8, 12)) is not first


def test_compiling_ahead(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait, is used if the guess was right, and does no harm if it was wrong."""
    network = Network(tiny.folder / "network.xml", "f32", 1, len(tiny.plan.label_values))
    begun, go = threading.Event(), threading.Event()
    real = network._core.compile_model
    shapes = []

    class Core:
        def compile_model(self, model: Any, *rest: Any) -> Any:
            shapes.append(tuple(model.inputs[0].shape)[2:])
            begun.set()
            assert go.wait(30)
            return real(model, *rest)

    monkeypatch.setattr(network, "_core", Core())
    network.expect((8, 8, 8))
    assert begun.wait(30)
    network.expect((8, 8, 8))
    go.set()
    assert network.run(volume_of((8, 8, 8))).shape[1:] == (8, 8, 8)
    assert shapes == [(8, 8, 8)]
    network.expect((8, 8, 12))
    volume = volume_of((8, 12, 8))
    guessed_wrong = network.run(volume).copy()
    assert shapes[-1] == (8, 12, 8)
    assert np.array_equal(guessed_wrong, run(tiny, volume, tiling="whole"))


def test_without_a_bf16_kernel_it_is_f32(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO has none beside int8 depthwise convolutions, on a CPU where bf16 is fast."""
    monkeypatch.setattr(inference.network, "best_float", lambda: "bf16")
    network = Network(tiny.folder / "network.xml", "int8", 1, len(tiny.plan.label_values))
    real = network._core.compile_model
    asked = []

    class Core:
        def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Any:
            asked.append(settings["INFERENCE_PRECISION_HINT"])
            if asked[-1] == "bf16":
                raise RuntimeError("No suitable implementations")
            return real(model, device, settings)

    monkeypatch.setattr(network, "_core", Core())
    assert network.run(volume_of((8, 8, 8))).shape[1:] == (8, 8, 8)
    assert network.run(volume_of((8, 8, 12))).shape[1:] == (8, 8, 12)
    assert asked == ["bf16", "f32", "f32"]


def test_what_went_wrong_ahead_is_said_later(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(tiny.folder / "network.xml", "f32", 1, len(tiny.plan.label_values))
    real = network._core

    class Broken:
        def compile_model(self, *rest: Any) -> Any:
            raise RuntimeError("Exception from\nno memory")

    monkeypatch.setattr(network, "_core", Broken())
    network.expect((8, 8, 8))
    with pytest.raises(ModelError, match=r"cannot compile it for \(8, 8, 8\) voxels \(no memory\)"):
        network.compile((8, 8, 8))
    monkeypatch.setattr(network, "_core", real)
    assert network.run(volume_of((8, 8, 12))).shape[1:] == (8, 8, 12)


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


def test_wrong_networks_are_refused(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "m")
    with pytest.raises(ModelError, match="5 channels, but the plan has 14"):
        Network(tmp_path / "m/network.xml", "f32", 1, 14)
    (tmp_path / "m/network.xml").write_text("no network")
    with pytest.raises(ModelError, match="cannot read"):
        Model.load(tmp_path / "m")


def test_models_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model(tmp_path / "one")
    make_tiny_model(tmp_path / "two")
    monkeypatch.setenv("ABDOSEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("ABDOSEG_MODEL", "two")
    assert Model.load().folder == tmp_path / "two"
    assert Model.load("one", threads=3).threads == 3
    assert Model.load(tmp_path / "one").plan.name == "one"
    with pytest.raises(ModelError, match=r"no model 'three'.* one, two"):
        Model.load("three")
    with pytest.raises(ModelError, match="has no 'int8' network, only f32"):
        Model.load("one", precision="int8")
    with pytest.raises(ValueError, match="at least 1"):
        Model.load("one", threads=0)
