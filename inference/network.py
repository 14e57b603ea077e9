"""Running the network with OpenVINO: compiling, one pass or sliding windows.

Settings are explicit: what OpenVINO would choose by itself depends on the CPU (bf16 where it
says that it has it, all of the host's cores).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from inference.errors import ModelError, last_line
from inference.plan import Plan
from inference.precision import best_float
from inference.resample import Float32Array

Logits = NDArray[np.floating[Any]]
Progress = Callable[[float], None]


class Runner(Protocol):
    """What `predict` needs of a network; training's evaluation passes one of PyTorch."""

    def run(self, volume: Float32Array) -> Float32Array:
        """Logits (C, z, y, x) of a normalised volume (z, y, x)."""


class Network:
    """An OpenVINO network for volumes, compiled for one input shape at a time.

    Static shapes are faster than dynamic ones and let OpenVINO reuse memory. The last one stays
    compiled, so that windows and cases of the same size share it. Compiling takes a good part of
    a second on one core, so it can be begun before the input is there (`expect`).

    Args:
        path: the IR's ``.xml``; input (1, inputs, z, y, x), output (1, C, z, y, x), float32.
        precision: "f32", "bf16" or "int8". In the last two, what is not int8 is computed in bf16
            where that is faster than f32 (`inference.precision`).
        threads: how many threads a pass uses.
        channels: the number of output channels that is expected.
        inputs: the number of input channels.

    Attributes:
        passes: how often it has run.

    Raises:
        ModelError: the IR cannot be read or is not such a network.
    """

    def __init__(
        self, path: Path, precision: str, threads: int, channels: int, inputs: int = 1
    ) -> None:
        self._core = ov.Core()
        self._path = path
        try:
            self._model = self._core.read_model(path)
        except RuntimeError as error:
            raise ModelError(f"{path}: OpenVINO cannot read it ({last_line(error)})") from None
        if len(self._model.inputs) != 1 or len(self._model.outputs) != 1:
            raise ModelError(f"{path}: has not one input and one output")
        made = self._model.output(0).partial_shape
        if made.rank.is_static and made.rank.get_length() != 5:
            raise ModelError(f"{path}: its output is not (1, C, z, y, x) but {made}")
        if made.rank.is_static and made[1].is_static and made[1].get_length() != channels:
            raise ModelError(
                f"{path}: {made[1].get_length()} channels, but the plan has {channels}"
            )
        self._channels = channels
        self._inputs = inputs
        self.passes = 0
        self._precision = precision
        self._only_f32 = False
        self._threads = threads
        self._shape: tuple[int, ...] = ()
        self._task: Future[ov.InferRequest] | None = None
        self._compiler = ThreadPoolExecutor(1, "compile")
        if precision != "f32":
            self._compiler.submit(best_float)  # measured once, long before it is asked for

    @property
    def arithmetic(self) -> str:
        """What is not int8 is computed in: "f32" or "bf16"."""
        return "f32" if self._precision == "f32" or self._only_f32 else best_float()

    def expect(self, shape: Sequence[int]) -> None:
        """Begin to compile for an input of this shape (z, y, x), if that is not done yet.

        Does not wait. `compile` says what went wrong.
        """
        if self._task is not None:
            if self._shape == tuple(shape):
                return
            self._task.cancel()
        self._task = None  # frees the memory of the one before
        self._shape = tuple(shape)
        self._task = self._compiler.submit(self._compile, self._shape)

    def compile(self, shape: Sequence[int]) -> ov.InferRequest:
        """Compile for an input of this shape (z, y, x), if that is not done yet.

        Raises:
            ModelError: OpenVINO cannot.
        """
        self.expect(shape)
        assert self._task is not None
        try:
            return self._task.result()
        except RuntimeError as error:
            self._task = None
            raise ModelError(
                f"{self._path}: OpenVINO cannot compile it for {tuple(shape)} voxels"
                f" ({last_line(error)})"
            ) from None

    def _compile(self, shape: tuple[int, ...]) -> ov.InferRequest:
        self._model.reshape([1, self._inputs, *shape])
        try:
            return self._compile_as(self.arithmetic)
        except RuntimeError:
            # OpenVINO has no bf16 kernel beside every int8 one (depthwise convolutions, say).
            if self.arithmetic == "f32":
                raise
            self._only_f32 = True
            return self._compile_as(self.arithmetic)

    def _compile_as(self, arithmetic: str) -> ov.InferRequest:
        settings = cpu_settings(arithmetic, self._threads)
        return self._core.compile_model(self._model, "CPU", settings).create_infer_request()

    def run(self, volume: Float32Array) -> Float32Array:
        """One pass over a volume.

        Args:
            volume: float32 array (z, y, x), or (inputs, z, y, x), normalised; each size a
                multiple of the network's total stride.

        Returns:
            Logits (C, z, y, x): OpenVINO's own memory, which the next pass overwrites.
        """
        shape = volume.shape[-3:]
        request = self.compile(shape)
        image = np.ascontiguousarray(volume, np.float32).reshape(1, self._inputs, *shape)
        tensor = ov.Tensor(image, shared_memory=True)
        request.set_input_tensor(tensor)
        request.start_async()
        try:
            # In slices of time, so that Python sees Ctrl-C and SIGTERM during a long pass.
            while not request.wait_for(100):
                pass
        except BaseException:
            request.cancel()
            # The input must live until the pass has really ended.
            with contextlib.suppress(RuntimeError):
                request.wait()
            raise
        self.passes += 1
        logits: Float32Array = request.get_output_tensor().data[0]
        if logits.shape != (self._channels, *shape):
            raise ModelError(f"{self._path}: gives {logits.shape} for an input of {volume.shape}")
        return logits


def cpu_settings(arithmetic: str, threads: int) -> dict[str, Any]:
    """How OpenVINO is told to compile for the CPU; the benchmark measures its peak so too.

    Args:
        arithmetic: what is not int8 is computed in: "f32" or "bf16".
        threads: how many threads a pass uses.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": arithmetic,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_HYPER_THREADING": True,  # `threads` already says how many there are
        "ENABLE_CPU_PINNING": False,  # other containers may be pinned to the same cores
    }


def predict(
    network: Runner,
    volume: Float32Array,
    plan: Plan,
    outside: float,
    memory: int,
    progress: Progress | None = None,
) -> Logits:
    """Logits of a whole volume, in one pass where that is possible, else in windows.

    Args:
        network: the network.
        volume: float32 array (z, y, x), or (inputs, z, y, x), normalised.
        plan: its tiling, patch, multiple and bytes per voxel.
        outside: value around the volume where it must be padded.
        memory: bytes that may be used.
        progress: is called with the finished share.

    Returns:
        Logits (C, z, y, x) on the volume's grid. They may be the network's own memory.
    """
    window = window_for(volume.shape[-3:], plan, memory)
    padded, inside = pad(volume, window, outside)
    grown = padded.shape[-3:]
    starts = [window_starts(n, size, plan.overlap) for n, size in zip(grown, window, strict=True)]
    count = math.prod(len(s) for s in starts)
    if count == 1:
        logits: Logits = network.run(padded)
        if progress:
            progress(1.0)
        return logits[inside]

    channels = len(plan.label_values)
    needed = channels * math.prod(grown) * 4
    total: Logits = np.zeros(
        (channels, *grown), np.float32 if needed <= memory // 2 else np.float16
    )
    shares = [window_shares(n, size, s) for n, size, s in zip(grown, window, starts, strict=True)]
    done = 0
    for z, share_z in zip(starts[0], shares[0], strict=True):
        for y, share_y in zip(starts[1], shares[1], strict=True):
            for x, share_x in zip(starts[2], shares[2], strict=True):
                here = box_at((z, y, x), window)
                share = share_z[:, None, None] * share_y[:, None] * share_x
                for channel, values in enumerate(network.run(padded[here])):
                    total[channel][here] += values * share
                done += 1
                if progress:
                    progress(done / count)
    return total[inside]


def pad(
    volume: Float32Array, least: Sequence[int], outside: float
) -> tuple[Float32Array, tuple[Any, ...]]:
    """Grow a volume to a size at least, evenly on both sides.

    Args:
        volume: float32 array (..., z, y, x).
        least: voxels (z, y, x); axes that are longer stay as they are.
        outside: value of what is added.

    Returns:
        The grown volume (the volume itself where it is large enough), and the index of what was
        given in it.
    """
    shape = volume.shape[-3:]
    grown = [max(n, size) for n, size in zip(shape, least, strict=True)]
    before = [(size - n) // 2 for n, size in zip(shape, grown, strict=True)]
    inside = box_at(before, shape)
    if list(shape) == grown:
        return volume, inside
    padded = np.full((*volume.shape[:-3], *grown), outside, np.float32)
    padded[inside] = volume
    return padded, inside


def box_at(start: Sequence[int], size: Sequence[int]) -> tuple[Any, ...]:
    """The index of a box of a size (z, y, x) in an array (..., z, y, x)."""
    return (..., *(slice(s, s + n) for s, n in zip(start, size, strict=True)))


def window_for(shape: Sequence[int], plan: Plan, memory: int) -> tuple[int, ...]:
    """The input (z, y, x) of each pass over a volume.

    Args:
        shape: voxels (z, y, x) of the volume on the network's grid.
        plan: its tiling, patch, multiple and bytes per voxel.
        memory: bytes that may be used.
    """
    if plan.tiling != "whole":
        return plan.patch
    whole = tuple(math.ceil(n / step) * step for n, step in zip(shape, plan.multiple, strict=True))
    return largest_window(whole, plan, memory)


def largest_window(whole: tuple[int, ...], plan: Plan, memory: int) -> tuple[int, ...]:
    """The whole volume if it fits into memory, else a part of it.

    The axis that is longest, in patches, is halved until the window fits or is a patch. Few
    large windows overlap less than many patches.

    Args:
        whole: voxels (z, y, x) of the volume, multiples of ``plan.multiple``.
        plan: its patch, multiple and bytes per voxel.
        memory: bytes that may be used.
    """
    window = list(whole)
    while math.prod(window) * plan.bytes_per_voxel > memory:
        ratios = [n / size for n, size in zip(window, plan.patch, strict=True)]
        axis = ratios.index(max(ratios))
        if ratios[axis] <= 1:
            break
        step = plan.multiple[axis]
        window[axis] = max(plan.patch[axis], math.ceil(window[axis] / 2 / step) * step)
    return tuple(window)


def window_starts(n: int, size: int, overlap: float) -> list[int]:
    """Where windows begin along an axis: evenly spread, overlapping at least so much.

    This is nnU-Net's rule (Isensee et al. 2021), its roundings too.

    Args:
        n: voxels of the axis, at least ``size``.
        size: voxels of a window.
        overlap: the share of a window that the next one covers again; windows of one voxel, the
            slices of a 2D network, lie side by side.
    """
    steps = math.ceil((n - size) / max(1.0, size * (1 - overlap)))
    distance = (n - size) / steps if steps else 0.0
    return [round(distance * i) for i in range(steps + 1)]


def window_shares(n: int, size: int, starts: Sequence[int]) -> list[Float32Array]:
    """The weight of every voxel of every window along an axis.

    A Gaussian around the window's centre with nnU-Net's sigma, an eighth of the window, scaled
    so that at each voxel the weights of all windows that hold it add up to 1. Windows stand on
    a grid, so the product of three axes' weights does so too.

    Args:
        n: voxels of the axis.
        size: voxels of a window.
        starts: where the windows begin.

    Returns:
        One float32 array of ``size`` weights per window.
    """
    distance = np.arange(size) - (size - 1) / 2
    gaussian = np.exp(-0.5 * (distance / (size / 8)) ** 2)
    total = np.zeros(n)
    for start in starts:
        total[start : start + size] += gaussian
    return [(gaussian / total[s : s + size]).astype(np.float32) for s in starts]
