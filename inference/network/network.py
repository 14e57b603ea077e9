"""Running the network with OpenVINO: compiling it for a shape, and a pass over an array.

Settings are explicit: what OpenVINO would choose by itself depends on the CPU (bf16 where it
says that it has it, all of the host's cores).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov

from inference.errors import ModelError, last_line
from inference.network.logits import Logits
from inference.network.precision import best_float, cpu_settings
from inference.network.slabs import in_slabs
from inference.preprocess.resample import Float32Array


@dataclass(frozen=True)
class _Compiled:
    """A network for one shape.

    Attributes:
        request: its passes.
        logits: what they write, (C, z, y, x).
    """

    request: ov.InferRequest
    logits: Logits


class Network:
    """An OpenVINO network for volumes, compiled for one input shape at a time.

    Static shapes are faster than dynamic ones and let OpenVINO reuse memory. The last one stays
    compiled, so that windows and cases of the same size share it. Compiling takes a good part of
    a second on one core, so it can be begun before the input is there (`expect`).

    Args:
        path: the IR's ``.xml``; input (1, inputs, z, y, x), output (1, C, z, y, x), float32.
        precision: "f32", "bf16" or "int8". In the last two, what is not int8 is computed in bf16
            where that is faster than f32 (`inference.network.precision`), and the logits are bits
            of bfloat16 in any case: half of the memory, and sooner written and compared.
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
        for what, port, wanted in (
            ("input", self._model.input(0), inputs),
            ("output", self._model.output(0), channels),
        ):
            shape = port.partial_shape
            if shape.rank.is_static and shape.rank.get_length() != 5:
                raise ModelError(f"{path}: its {what} is not (1, channels, z, y, x) but {shape}")
            if shape.rank.is_static and shape[1].is_static and shape[1].get_length() != wanted:
                raise ModelError(
                    f"{path}: {what} of {shape[1].get_length()} channels, but the plan has {wanted}"
                )
            if port.element_type != ov.Type.f32:
                raise ModelError(f"{path}: its {what} is not float32 but {port.element_type}")
        self._channels = channels
        self._inputs = inputs
        self.passes = 0
        self._precision = precision
        self._only_f32 = False
        self._threads = threads
        self._shape: tuple[int, ...] = ()
        self._task: Future[_Compiled] | None = None
        self._process = os.getpid()
        self._compiler = ThreadPoolExecutor(1, "compile")
        if precision != "f32":
            self._compiler.submit(best_float)  # measured once, long before it is asked for

    @property
    def arithmetic(self) -> str:
        """What is not int8 is computed in: "f32" or "bf16"."""
        return "f32" if self._precision == "f32" or self._only_f32 else best_float()

    def release(self) -> None:
        """Let go of what is compiled, and of its memory; what is still being compiled follows."""
        if self._task is not None:
            self._task.cancel()
        self._task = None
        self._shape = ()

    def expect(self, shape: Sequence[int]) -> None:
        """Begin to compile for an input of this shape (z, y, x), if that is not done yet.

        Does not wait. `compile` says what went wrong.

        Raises:
            ModelError: this process is a fork of the one that loaded the network.
        """
        if os.getpid() != self._process:  # a fork has none of its threads: it would wait for ever
            raise ModelError(
                f"{self._path}: a loaded model cannot be used in a forked process; load it there"
            )
        if self._task is not None and self._shape == tuple(shape):
            return
        self.release()
        self._shape = tuple(shape)
        self._task = self._compiler.submit(self._compile, self._shape)

    def compile(self, shape: Sequence[int]) -> ov.InferRequest:
        """Compile for an input of this shape (z, y, x), if that is not done yet.

        Raises:
            ModelError: OpenVINO cannot.
        """
        return self._compiled(shape).request

    def _compiled(self, shape: Sequence[int]) -> _Compiled:
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

    def _compile(self, shape: tuple[int, ...]) -> _Compiled:
        try:
            return self._compile_as(self.arithmetic, shape)
        except RuntimeError:
            # OpenVINO has no bf16 kernel beside every int8 one (depthwise convolutions, say).
            if self.arithmetic == "f32":
                raise
            self._only_f32 = True
            return self._compile_as(self.arithmetic, shape)

    def _compile_as(self, arithmetic: str, shape: tuple[int, ...]) -> _Compiled:
        model, slabs = self._of_shape(shape), None
        # With bfloat16 there is half as much to save, and compiling more layers takes its time too.
        if arithmetic == "f32":
            try:
                slabs = in_slabs(model)
            except RuntimeError:  # layers of a kind that it does not know
                model = self._of_shape(shape)
        adapted = ov.preprocess.PrePostProcessor(slabs or model)
        exact = self._precision == "f32"
        for index in range(len((slabs or model).outputs)):
            adapted.output(index).tensor().set_element_type(ov.Type.f32 if exact else ov.Type.bf16)
        settings = cpu_settings(arithmetic, self._threads)
        request = self._core.compile_model(adapted.build(), "CPU", settings).create_infer_request()
        if slabs is None:
            return _Compiled(request, request.get_output_tensor().data[0])
        return _Compiled(request, _joined_outputs(request, np.float32 if exact else np.uint16))

    def _of_shape(self, shape: tuple[int, ...]) -> ov.Model:
        """A copy of the network for an input of this shape (z, y, x)."""
        model = self._model.clone()
        model.reshape([1, self._inputs, *shape])
        return model

    def release_features(self) -> None:
        """Let go of the memory between input and logits; the next pass gets it anew."""
        if self._task is not None and self._task.done():
            self._task.result().request.get_compiled_model().release_memory()

    def run(self, volume: Float32Array) -> Logits:
        """One pass over a volume.

        Args:
            volume: float32 array (z, y, x), or (inputs, z, y, x), normalised; each size a
                multiple of the network's total stride.

        Returns:
            Logits (C, z, y, x), float32 or the bits of bfloat16 (uint16): memory that the next
            pass overwrites.

        Raises:
            ModelError: they are of another shape than the plan says.
        """
        shape = volume.shape[-3:]
        compiled = self._compiled(shape)
        request = compiled.request
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
        logits = compiled.logits
        if logits.dtype != np.float32:  # what OpenVINO lends as float16 are bits of bfloat16
            logits = logits.view(np.uint16)
        if logits.shape != (self._channels, *shape):
            raise ModelError(f"{self._path}: gives {logits.shape} for an input of {volume.shape}")
        return logits


def _joined_outputs(request: ov.InferRequest, kind: type[np.generic]) -> Logits:
    """Have the outputs (d, C, y, x) of a network in slabs written one behind the other.

    Returns:
        All of them, (C, z, y, x); in memory z comes first.
    """
    outputs = request.model_outputs
    depths = [output.shape[0] for output in outputs]
    logits = np.empty((sum(depths), *tuple(outputs[0].shape)[1:]), kind)
    end = 0
    for index, (output, depth) in enumerate(zip(outputs, depths, strict=True)):
        start, end = end, end + depth
        slab = ov.Tensor(logits[start:end], output.shape, output.element_type)
        request.set_output_tensor(index, slab)
    return logits.swapaxes(0, 1)
