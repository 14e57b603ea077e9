"""The finest stage in slabs, beside the same networks in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from desk import start
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from openvino import opset13 as ops

from inference.network import slabs
from inference.network.logits import floats
from inference.network.network import Network
from inference.network.slabs import in_slabs

_ONE = [1, 1, 1]
_CLASSES = 5


class _Weights:
    """Random constants, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> Any:
        return ops.constant(self._rng.normal(0, 0.3, shape).astype(np.float32))


def _convolved(
    values: Any, weights: _Weights, inputs: int, outputs: int, kernel: int, dilation: int = 1
) -> Any:
    pads = [dilation * (kernel - 1) // 2] * 3
    kernels = weights(outputs, inputs, *[kernel] * 3)
    return ops.convolution(values, kernels, _ONE, pads, pads, [dilation] * 3)


def _network(
    seed: int = 0,
    factor: int = 2,
    kernels: tuple[tuple[int, int], ...] = ((3, 1),),
    skip: str = "add",
    gate: bool = False,
    quantised: bool = False,
    depthwise: str = "",
    bias: bool = True,
    head: int = 1,
) -> Any:
    """A U-Net of two levels.

    Args:
        seed: of its weights.
        factor: by which it is downsampled and upsampled.
        kernels: kernel and dilation of each convolution behind the upsampling.
        skip: how what was before the downsampling comes in: "add", "concat" or "none".
        gate: whether each channel is then multiplied by a number that depends on all voxels.
        depthwise: how a depthwise convolution behind these is padded, "explicit" or "same_upper";
            empty for none.
        quantised: whether there is a quantiser before each of these convolutions.
        bias: whether the last layer has one.
        head: the last layer's kernel.
    """
    weights = _Weights(seed)
    image = ops.parameter([1, 1, -1, -1, -1], np.float32, name="image")
    fine = ops.relu(_convolved(image, weights, 1, 4, 3))
    steps = [factor] * 3
    coarse = ops.convolution(fine, weights(6, 4, *steps), steps, [0] * 3, [0] * 3, _ONE)
    values = ops.convolution_backprop_data(ops.relu(coarse), weights(6, 4, *steps), steps)
    channels = 4
    if skip == "add":
        values = ops.add(ops.add(values, weights(1, 4, 1, 1, 1)), fine)
    elif skip == "concat":
        values, channels = ops.concat([values, fine], 1), 8
    if gate:
        mean = ops.reduce_mean(values, np.array([2, 3, 4]), keep_dims=True)
        values = ops.multiply(values, ops.sigmoid(mean))
    for kernel, dilation in kernels:
        if quantised:
            low, high = (ops.constant(np.float32(limit)) for limit in (-4, 4))
            values = ops.fake_quantize(values, low, high, low, high, 256)
        values = _convolved(values, weights, channels, 4, kernel, dilation)
        values = ops.prelu(ops.add(values, weights(1, 4, 1, 1, 1)), ops.constant(np.float32(0.1)))
        channels = 4
    if depthwise:
        kernels, pads = weights(channels, 1, 1, 3, 3, 3), [1] * 3
        values = ops.group_convolution(values, kernels, _ONE, pads, pads, _ONE, depthwise)
    logits = _convolved(values, weights, channels, _CLASSES, head)
    if bias:
        logits = ops.add(logits, weights(1, _CLASSES, 1, 1, 1))
    return ov.Model([logits], [image], "network")


def _run(model: Any, volume: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(volume[None, None])
    return [np.array(found[output]) for output in compiled.outputs]


def _volume(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(0, 1, shape).astype(np.float32)


def _in_slabs_of(voxels: int, model: Any, shape: tuple[int, ...]) -> Any:
    model.reshape([1, 1, *shape])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "SLAB_VOXELS", voxels)
        return in_slabs(model)


def _check(slices: int, thick: int, **network: Any) -> None:
    shape = (slices, 12, 6)
    volume = _volume(*shape)
    whole = _network(**network)
    whole.reshape([1, 1, *shape])
    (expected,) = _run(whole, volume)
    divided = _in_slabs_of(thick * 12 * 6, whole, shape)
    parts = _run(divided, volume)
    assert len(parts) == min(-(-slices // thick), slices // 16)  # of 16 slices at least
    assert all(abs(len(part) - slices / len(parts)) <= 2 for part in parts)
    joined = np.concatenate(parts)
    assert joined.shape == (slices, _CLASSES, 12, 6)
    np.testing.assert_allclose(joined.swapaxes(0, 1)[None], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"skip": "concat", "kernels": ((3, 1), (3, 1))},
        {"skip": "none", "kernels": ()},
        {"gate": True},
        {"quantised": True},
        {"bias": False},
        {"depthwise": "explicit"},
        {"depthwise": "same_upper"},  # OpenVINO would pad each slab on its own
        {"factor": 3},  # slabs begin within a voxel of what is upsampled
        {"factor": 1},
        {"kernels": ((3, 2), (1, 1), (5, 1))},
    ],
    ids=str,
)
def test_logits_are_those_of_one_piece(network: dict[str, Any]) -> None:
    _check(slices=72, thick=20, **network)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 9),
    slices=st.integers(6, 16).map(lambda n: 6 * n),
    thick=st.integers(17, 35),
    factor=st.sampled_from([1, 2, 3]),
    kernels=st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 2)), max_size=3),
    skip=st.sampled_from(["add", "concat", "none"]),
    gate=st.booleans(),
)
def test_logits_of_any_finest_stage(
    seed: int,
    slices: int,
    thick: int,
    factor: int,
    kernels: list[tuple[int, int]],
    skip: str,
    gate: bool,
) -> None:
    _check(slices, thick, seed=seed, factor=factor, kernels=tuple(kernels), skip=skip, gate=gate)


def _down_and_up(values: Any, weights: _Weights, kernel: int, pad: int, more: int) -> Any:
    """Half the size, and back by a transposed convolution of another kind than the usual one."""
    half = ops.convolution(values, weights(4, 4, 2, 2, 2), [2] * 3, [0] * 3, [0] * 3, _ONE)
    return ops.convolution_backprop_data(
        half, weights(4, 4, *[kernel] * 3), [2] * 3, None, [pad] * 3, [pad] * 3,
        output_padding=[more] * 3,
    )  # fmt: skip


_ODD: dict[str, Any] = {
    "weights along z": lambda v, w: ops.multiply(v, w(1, 4, 72, 1, 1)),
    "weights along z, of three axes": lambda v, w: ops.multiply(v, w(72, 1, 1)),
    "weights along z, of four axes": lambda v, w: ops.multiply(v, w(4, 72, 1, 1)),
    "constants beside": lambda v, w: ops.concat([v, w(1, 3, 72, 12, 6)], 1),
    "parts above each other": lambda v, w: ops.concat(
        [ops.slice(v, [40], [72], [1], [2]), ops.slice(v, [0], [40], [1], [2])], 2
    ),
    "a computed number": lambda v, w: ops.multiply(
        v, ops.sigmoid(ops.reduce_mean(v, np.arange(5), keep_dims=False))
    ),
    "an even kernel": lambda v, w: ops.convolution(
        v, w(4, 4, 2, 2, 2), _ONE, [0] * 3, [1] * 3, _ONE
    ),
    "grown and shrunk": lambda v, w: ops.convolution(
        ops.convolution(v, w(4, 4, 3, 3, 3), _ONE, [2] * 3, [2] * 3, _ONE),
        w(4, 4, 3, 3, 3), _ONE, [0] * 3, [0] * 3, _ONE,
    ),
    "upsampled with overlap": lambda v, w: _down_and_up(v, w, 4, 1, 0),
    "upsampled with gaps": lambda v, w: _down_and_up(v, w, 1, 0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", _ODD)
def test_layers_that_cannot_be_cut_are_not(name: str) -> None:
    """They are computed for all slices, or in slabs: what comes out is the same."""
    weights, shape = _Weights(3), (72, 12, 6)
    image = ops.parameter([1, 1, *shape], np.float32, name="image")
    values = _ODD[name](ops.relu(_convolved(image, weights, 1, 4, 3)), weights)
    values = ops.relu(_convolved(values, weights, values.get_output_shape(0)[1], 4, 3))
    model = ov.Model([_convolved(values, weights, 4, _CLASSES, 1)], [image], "network")
    (expected,) = _run(model, _volume(*shape))
    parts = _run(_in_slabs_of(20 * 12 * 6, model, shape), _volume(*shape))
    assert len(parts) == 4
    joined = np.concatenate(parts).swapaxes(0, 1)[None]
    np.testing.assert_allclose(joined, expected, rtol=1e-4, atol=1e-4)


def test_logits_that_are_not_of_each_voxel_are_not_cut() -> None:
    weights, shape = _Weights(3), (72, 12, _CLASSES)
    image = ops.parameter([1, 1, *shape], np.float32, name="image")
    values = ops.relu(_convolved(image, weights, 1, 4, 3))
    along_x = ops.add(_convolved(values, weights, 4, _CLASSES, 1), weights(_CLASSES))
    half = ops.max_pool(values, [2] * 3, _ONE, [0] * 3, [0] * 3, [2] * 3).output(0)
    for logits in (along_x, _convolved(half, weights, 4, _CLASSES, 1)):
        assert _in_slabs_of(1000, ov.Model([logits], [image], "network"), shape) is None


def test_what_cannot_be_taken_apart_runs_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.xml"
    ov.save_model(_network(), path, compress_to_fp16=False)
    volume = _volume(72, 12, 6)
    expected = Network(path, "f32", 2, _CLASSES).run(volume)

    def spoil(model: Any) -> None:
        model.get_results()[0].input(0).replace_source_output(model.input(0))
        raise RuntimeError("what is this")

    monkeypatch.setattr("inference.network.network.in_slabs", spoil)
    np.testing.assert_array_equal(Network(path, "f32", 2, _CLASSES).run(volume), expected)


def test_few_voxels_are_one_slab() -> None:
    assert _in_slabs_of(72 * 12 * 6, _network(), (72, 12, 6)) is None
    assert _in_slabs_of(100, _network(), (24, 12, 6)) is None  # slabs of a few slices


def test_a_network_that_ends_otherwise_stays_as_it_is() -> None:
    """What is asked for "no" is run after it."""
    model = _network(head=3)
    assert _in_slabs_of(1000, model, (72, 12, 6)) is None
    (logits,) = _run(model, _volume(72, 12, 6))
    assert logits.shape == (1, _CLASSES, 72, 12, 6)


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_a_pass_in_slabs_gives_one_array(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.network.network.best_float", lambda: "f32")
    ov.save_model(_network(), tmp_path / "network.xml", compress_to_fp16=False)
    volume = _volume(64, 16, 16)
    whole = Network(tmp_path / "network.xml", precision, 1, _CLASSES)
    expected = floats(whole.run(volume)).copy()
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 20 * 16 * 16)
    network = Network(tmp_path / "network.xml", precision, 1, _CLASSES)
    assert len(network.compile((64, 16, 16)).model_outputs) == 4
    logits = network.run(volume)
    assert logits.dtype == (np.float32 if precision == "f32" else np.uint16)
    # Of bfloat16 the last bit may differ, where a sum is rounded otherwise.
    fraction = 1e-5 if precision == "f32" else 2**-7
    np.testing.assert_allclose(floats(logits), expected, rtol=fraction, atol=1e-5)
    # The next pass overwrites it, and letting go what lies before does not touch it.
    again = network.run(volume[::-1])
    assert again.ctypes.data == logits.ctypes.data
    assert not np.allclose(floats(again), expected, rtol=fraction, atol=1e-5)
    kept = again.copy()
    network.release_features()
    assert np.array_equal(again, kept)


def test_with_bfloat16_there_are_no_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic that is asked for is what counts, so OpenVINO need not have it."""
    monkeypatch.setattr("inference.network.network.best_float", lambda: "bf16")
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 20 * 16 * 16)
    ov.save_model(_network(), tmp_path / "network.xml", compress_to_fp16=False)
    network = Network(tmp_path / "network.xml", "bf16", 1, _CLASSES)
    outputs = []

    class Core:
        def compile_model(self, model: Any, *rest: Any) -> Any:
            outputs.append(len(model.outputs))
            raise RuntimeError("not here")

    monkeypatch.setattr(network, "_core", Core())
    with pytest.raises(Exception, match="not here"):
        network.compile((64, 16, 16))
    assert outputs == [1, 4]  # bf16, and f32 after it


_PEAK = """
import sys
from pathlib import Path
import numpy as np
from inference.machine import peak_memory, restart_peak_memory
from inference.network import slabs
from inference.network.network import Network
slabs.SLAB_VOXELS = int(sys.argv[2])
restart_peak_memory()
before = peak_memory()
Network(Path(sys.argv[1]), "f32", 1, 5).run(np.zeros((128, 96, 96), np.float32))
print(peak_memory() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="there is no /proc to restart the peak of memory (macOS)",
)
def test_slabs_need_less_memory(tmp_path: Path) -> None:
    """Of what lies between the upsampling and the logits, most is not there at once."""
    ov.save_model(_network(), tmp_path / "network.xml", compress_to_fp16=False)
    voxels = 128 * 96 * 96
    peaks = []
    for slab in (voxels, voxels // 8):
        done = start("-c", _PEAK, str(tmp_path / "network.xml"), str(slab))
        out, err = done.communicate(timeout=60)
        assert done.returncode == 0, err
        peaks.append(int(out))
    assert peaks[1] < peaks[0] - 4 * voxels * 4  # more than four channels of float32
