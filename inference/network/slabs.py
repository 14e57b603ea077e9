"""The finest stage of a network, slab by slab: the same logits in less memory.

What the last layers of a pass compute lies in memory for all of its voxels at once: 16 channels in
float32 are 64 bytes per voxel before a convolution and 64 behind it, 14 logits are 56. Memory costs
time, too: the system clears each page when it is first touched.

So the layers from the last upsampling on are put into the network once for each of a few slabs
along z, one after the other, which use the same memory. Each reads as many slices more of what
comes before as its convolutions reach, so that its logits are the same. It is still one network,
which is compiled once and run once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from openvino import Model
from openvino import opset13 as ops

SLAB_VOXELS = 3_000_000
"""About the most voxels of a slab. Smaller ones need less memory, but compile for longer."""

_LEAST = 16  # slices of a slab: what it reads of its neighbours is computed twice
_Z = 2  # its axis in (1, C, z, y, x)
_BY_VOXEL = {"Add", "Clamp", "Convert", "FakeQuantize", "Multiply", "PRelu", "Relu", "Subtract"}
_CONVOLUTIONS = {"Convolution", "GroupConvolution"}
_UPSAMPLING = "ConvolutionBackpropData"
_OF_WEIGHTS = {"Convert", "FakeQuantize", "Multiply", "Reshape", "Subtract"}


def in_slabs(model: Any) -> Any | None:
    """A network with several outputs, each of them a slab of a model's logits.

    Args:
        model: an OpenVINO model; input (1, inputs, z, y, x) of a static shape, output
            (1, C, z, y, x). It is taken apart.

    Returns:
        The network, whose outputs are (d, C, y, x), so that in memory one follows the other:
        (z, C, y, x). ``None`` where one slab is all, or where the last layer is no convolution of
        single voxels: then the model is as it was.

    Raises:
        RuntimeError: the layers cannot be taken apart. The model is of no more use then.
    """
    shape = tuple(model.input(0).shape)[_Z:]
    depth = shape[0]
    count = min(math.ceil(math.prod(shape) / SLAB_VOXELS), depth // _LEAST)
    logits = model.get_results()[0].input_value(0)
    if count < 2 or tuple(logits.shape)[_Z:] != shape:
        return None
    if (head := _head(logits.get_node())) is None:
        return None
    sources, stage = _cut_off(logits, head, depth)
    # So that all slabs begin with a new voxel of what is upsampled by two.
    odd = _reach(stage.get_results()[0]) % 2
    inner = (round(depth * i / count / 2) * 2 + odd for i in range(1, count))
    slabs = [
        _slab(stage, sources, first, end, depth)
        for first, end in itertools.pairwise((0, *inner, depth))
    ]
    divided = Model(slabs, model.get_parameters(), model.get_friendly_name())
    divided.validate_nodes_and_infer_types()
    return divided


def _head(last: Any) -> Any | None:
    """The convolution of single voxels that makes the logits, perhaps with a bias; else none."""
    if last.get_type_name() == "Add" and _is_constant(last.input_value(1)):
        one, _, *rest = _aligned(last.input_value(1))  # a number for each channel
        if {one, *rest} != {1}:
            return None
        last = last.input_value(0).get_node()
    if last.get_type_name() != "Convolution" or set(last.input_value(1).shape[_Z:]) != {1}:
        return None
    return last if set(last.get_attributes()["strides"]) == {1} else None


def _cut_off(logits: Any, head: Any, depth: int) -> tuple[list[Any], Any]:
    """Take the last layers out of a network.

    Args:
        logits: the network's output.
        head: the convolution that makes it.
        depth: slices of its input and its output.

    Returns:
        What the layers read, and a model of them, which has a parameter for each of these and gives
        the logits as (z, C, y, x).
    """
    sources, parameters = [], []
    for port in list(_edges(head, depth)):
        source = port.get_source_output()
        parameter = ops.parameter(source.get_partial_shape(), source.get_element_type())
        port.replace_source_output(parameter.output(0))
        sources.append(source)
        parameters.append(parameter)
    features, weights = head.input_value(0), head.input_value(1)
    channels, inputs = tuple(weights.shape)[:2]
    height, width = tuple(logits.shape)[-2:]
    # The product of matrices writes the logits of a slice beside each other, channel by channel.
    rows = ops.transpose(features, ops.constant([0, 2, 3, 4, 1]))
    rows = ops.reshape(rows, ops.constant([-1, height * width, inputs]), False)
    matrix = ops.reshape(weights, ops.constant([1, channels, inputs]), False)
    product = ops.matmul(matrix, rows, False, True)
    result = ops.reshape(product, ops.constant([-1, channels, height, width]), False)
    if logits.get_node() is not head:
        bias = logits.get_node().input_value(1)
        result = ops.add(result, ops.reshape(bias, ops.constant([1, -1, 1, 1]), False))
    return sources, Model([result], parameters, "stage")


def _edges(layer: Any, depth: int) -> Iterator[Any]:
    """The inputs through which a tree of layers that can be cut into slabs gets what it reads.

    What others read as well does not belong to it, nor what lies before an upsampling.
    """
    for port in layer.inputs():
        source = port.get_source_output()
        before = source.get_node()
        if _is_constant(source):
            continue
        last = layer.get_type_name() == _UPSAMPLING or len(source.get_target_inputs()) > 1
        if last or not _has_slices(before, depth):
            yield port
        else:
            yield from _edges(before, depth)


def _has_slices(layer: Any, depth: int) -> bool:
    """Whether a layer's output has so many slices, each of which follows from some of its input."""
    shape = layer.get_output_partial_shape(0)
    if shape.rank.get_length() != 5 or shape[_Z].get_length() != depth:
        return False
    kind, known = layer.get_type_name(), layer.get_attributes()
    constants = [source for source in layer.input_values() if _is_constant(source)]
    others = [source for source in layer.input_values() if not _is_constant(source)]
    if any(source.get_partial_shape().rank.get_length() != 5 for source in others):
        return False
    if kind in _BY_VOXEL:
        return all(_aligned(source)[_Z] == 1 for source in constants)
    if kind == "Concat":
        return bool(known["axis"] == 1 and not constants)
    if (kind not in _CONVOLUTIONS and kind != _UPSAMPLING) or known["auto_pad"] != "explicit":
        return False
    kernel, stride, (before, after) = _kernel(layer), known["strides"][0], _padding(layer)
    if kind == _UPSAMPLING:
        plain = len(layer.inputs()) == 2 and known["output_padding"][0] == 0
        plain &= known["dilations"][0] == 1
        return plain and kernel == stride and before == after == 0
    return stride == 1 and before + after == known["dilations"][0] * (kernel - 1)


def _slab(stage: Any, sources: list[Any], first: int, end: int, depth: int) -> Any:
    """The output of a copy of the last layers that makes the slices from ``first`` to ``end``."""
    copy = stage.clone()  # its weights too: OpenVINO fuses less of layers that share them
    output = copy.get_results()[0].input_value(0)
    parameters = dict(zip(copy.get_parameters(), sources, strict=True))
    _narrow(output.get_node(), first, end, depth, parameters)
    return output


def _narrow(layer: Any, first: int, end: int, depth: int, sources: dict[Any, Any]) -> None:
    """Make a layer, and those before it, compute a range of slices alone.

    Args:
        layer: it.
        first: the first slice of its output that is wanted.
        end: the slice behind the last one.
        depth: how many there would be.
        sources: what stands for the parameters that these layers read.
    """
    kind, known = layer.get_type_name(), layer.get_attributes()
    if kind in _CONVOLUTIONS:
        before, after = _padding(layer)
        first, end = first - before, end + after
        layer.set_attribute("pads_begin", [max(0, -first), *known["pads_begin"][1:]])
        layer.set_attribute("pads_end", [max(0, end - depth), *known["pads_end"][1:]])
        first, end = max(0, first), min(depth, end)
    elif kind == _UPSAMPLING:
        factor = known["strides"][0]
        skipped, wanted, depth = first % factor, end - first, depth // factor
        first, end = first // factor, -(-end // factor)
        if (end - first) * factor != wanted:
            users = layer.output(0).get_target_inputs()
            cut = _slices(layer.output(0), skipped, skipped + wanted)
            for user in users:
                user.replace_source_output(cut)
    for port in layer.inputs():
        source = port.get_source_output()
        if _is_constant(source):
            continue
        if (read := sources.get(source.get_node())) is None:
            _narrow(source.get_node(), first, end, depth, sources)
        elif read.get_partial_shape()[_Z].get_length() == depth:
            port.replace_source_output(_slices(read, first, end))
        else:  # one value for all voxels of a channel
            port.replace_source_output(read)


def _slices(output: Any, first: int, end: int) -> Any:
    first_and_end = (ops.constant([at]) for at in (first, end))
    return ops.slice(output, *first_and_end, ops.constant([1]), ops.constant([_Z])).output(0)


def _reach(layer: Any) -> int:
    """How many slices before its own a layer needs of what is upsampled, or of what is read."""
    if layer.get_type_name() == _UPSAMPLING:
        return 0
    inputs = [s.get_node() for s in layer.input_values() if not _is_constant(s)]
    own = _padding(layer)[0] if layer.get_type_name() in _CONVOLUTIONS else 0
    return own + max(map(_reach, inputs), default=0)


def _kernel(layer: Any) -> int:
    """How many slices a convolution sums."""
    return int(layer.input_value(1).get_partial_shape()[-3].get_length())


def _padding(layer: Any) -> tuple[int, int]:
    """How many slices of zeros a convolution adds before the first and behind the last one."""
    known = layer.get_attributes()
    return known["pads_begin"][0], known["pads_end"][0]


def _aligned(output: Any) -> tuple[int, ...]:
    """A constant's shape as it meets (1, C, z, y, x): axes that are left out come first."""
    shape = tuple(output.shape)
    return (1,) * (5 - len(shape)) + shape


def _is_constant(output: Any) -> bool:
    """Whether it is a weight: a constant, perhaps stored in another type or quantised."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return True
    return node.get_type_name() in _OF_WEIGHTS and all(map(_is_constant, node.input_values()))
