"""Compiling and running a real (tiny) OpenVINO network."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desk import start
from tiny_model import make_tiny_model, run, volume_of

import inference.network.network
from inference.errors import ModelError
from inference.model import Model
from inference.network.logits import floats
from inference.network.network import Network
from inference.network.pass_memory import with_pass_memory

_RELEASE = """
import resource, sys
from pathlib import Path
import numpy as np
from inference.network.network import Network

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

network = Network(Path(sys.argv[1]), "f32", 1, 5)
network.run(np.zeros((64, 128, 128), np.float32))
print(resident())
network.release_features()
print(resident())
"""


@pytest.mark.parametrize("arithmetic", ["bf16", "f32"])
def test_bf16_is_close(arithmetic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are bits of bfloat16 also where f32 is faster: f32's, with less of a fraction."""
    monkeypatch.setattr(inference.network.network, "best_float", lambda: arithmetic)
    make_tiny_model(tmp_path / "m", networks={"f32": "network.xml", "bf16": "network.xml"})
    volume = volume_of((16, 32, 32))
    exact, rounded = (
        run(Model.load(tmp_path / "m", precision=precision), volume)
        for precision in ("f32", "bf16")
    )
    assert exact.dtype == np.float32
    assert rounded.dtype == np.uint16
    assert np.abs(exact - floats(rounded)).max() < 0.2  # of values up to 15
    if arithmetic == "f32":  # seven bits of it
        assert (np.abs(floats(rounded) - exact) <= np.abs(exact) / 128).all()


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
    assert np.array_equal(guessed_wrong, run(tiny, volume, tiling="whole", patch=(8, 12, 8)))


def test_without_a_bf16_kernel_it_is_f32(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO has none beside int8 depthwise convolutions, on a CPU where bf16 is fast."""
    monkeypatch.setattr(inference.network.network, "best_float", lambda: "bf16")
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


def test_logits_outlive_what_lies_before_them(tiny: Model) -> None:
    network = Network(tiny.folder / "network.xml", "f32", 1, len(tiny.plan.label_values))
    network.release_features()  # nothing was compiled: nothing to do
    volume = volume_of((8, 32, 32))
    logits = network.run(volume)
    kept = logits.copy()
    network.release_features()
    assert np.array_equal(logits, kept)
    assert np.array_equal(network.run(volume), kept)


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(),
    reason="there is no /proc to say how much memory a process has (macOS)",
)
def test_what_lies_between_input_and_logits_is_let_go(tiny: Model) -> None:
    """In a process of its own: this one may keep for itself what is let go."""
    done = start("-c", _RELEASE, str(tiny.folder / "network.xml"))
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    held, left = map(int, out.split())
    assert left < held - 64 * 128 * 128 * 4  # more than a channel


@pytest.mark.parametrize("tiling", ["whole", "window"])
def test_memory_of_a_pass_is_measured(tiling: str, tmp_path: Path) -> None:
    """Logits of two bytes instead of four."""
    networks = {"f32": "network.xml", "bf16": "network.xml"}
    plan = make_tiny_model(tmp_path, networks=networks, patch=(64, 128, 128), tiling=tiling)
    measured = with_pass_memory(plan, tmp_path)
    found = measured.bytes_per_voxel
    assert found["f32"] - found["bf16"] == pytest.approx(5 * 2, abs=3)
    # What does not grow is known where two sizes were measured: it is not counted by the voxel.
    assert set(measured.bytes_per_pass) == (set(networks) if tiling == "whole" else set())
    (tmp_path / "network.bin").write_bytes(b"")
    shape = "180 x 128 x 128" if tiling == "whole" else "64 x 128 x 128"
    with pytest.raises(ModelError, match=rf"network\.xml: one pass over {shape} voxels failed"):
        with_pass_memory(plan, tmp_path)


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
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Model.load("one", threads=0)
    wrong: Any
    for wrong in (True, "2", 1.5, float("nan"), -1):
        with pytest.raises(ValueError, match="whole number"):
            Model.load("one", threads=wrong)
    two: Any = np.int64(2)
    threads = Model.load("one", threads=two).threads
    assert threads == 2 and type(threads) is int


def test_a_fork_says_that_it_cannot_use_a_loaded_model(tiny: Model) -> None:
    """It has none of the threads that would compile: it would wait for ever."""
    tiny.network.compile((8, 8, 8))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        said = pool.apply_async(_said_in_a_fork, (tiny.folder,)).get(60)
        assert said == "nothing"  # loaded there, it works
    _LOADED.append(tiny)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        said = pool.apply_async(_said_in_a_fork, (None,)).get(60)
    assert "cannot be used in a forked process" in said


_LOADED: list[Model] = []


def _said_in_a_fork(folder: Path | None) -> str:
    model = Model.load(folder) if folder else _LOADED[0]
    try:
        model.network.compile((8, 8, 8))
    except ModelError as error:
        return str(error)
    return "nothing"
