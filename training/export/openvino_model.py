"""A torch network as an OpenVINO model, and that in int8 (NNCF's post-training quantisation)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import nncf
import numpy as np
import openvino as ov
import torch
from nncf.quantization.range_estimator import (
    AggregatorType,
    RangeEstimatorParameters,
    StatisticsCollectorParameters,
    StatisticsType,
)
from torch import nn

from inference.network.int8 import adapt_to_openvino
from inference.network.winners import winners
from inference.organs import ORGANS
from training.agreement import dice

MOST_LOSS = 0.005
"""Mean DSC per organ between int8's labels and fp32's that may be lost."""

# A range of activations is that of all but one in 100,000 on either side: a few very bright voxels
# would leave the others few steps.
_WITHOUT_OUTLIERS = StatisticsCollectorParameters(
    statistics_type=StatisticsType.QUANTILE,
    aggregator_type=AggregatorType.MEAN,
    quantile_outlier_prob=1e-5,
)
_QUANTISATION: dict[str, Any] = {
    "preset": nncf.QuantizationPreset.MIXED,
    "fast_bias_correction": False,  # a third of the disagreement with fp32; slow for large ones
}
_RANGES = nncf.AdvancedQuantizationParameters(
    activations_range_estimator_params=RangeEstimatorParameters(
        _WITHOUT_OUTLIERS, _WITHOUT_OUTLIERS
    )
)


def to_openvino(
    network: nn.Module, patch: Sequence[int], inputs: int = 1, any_size: bool = True
) -> Any:
    """An OpenVINO model of a torch network, (1, inputs, z, y, x) to logits (1, C, z, y, x).

    Args:
        network: the network.
        patch: a size (z, y, x) that it takes.
        inputs: number of input channels.
        any_size: whether it takes other sizes too.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # Instance norm looks whether there is more than one voxel: there is, at any size.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        model = ov.convert_model(network.eval(), example_input=torch.zeros(1, inputs, *patch))
    model.reshape([1, inputs, *((-1, -1, -1) if any_size else patch)])
    model.inputs[0].get_tensor().set_names({"image"})
    model.outputs[0].get_tensor().set_names({"logits"})
    return model


def convolutions_of(model: Any, numbers: Sequence[int]) -> list[str]:
    """The names of some of a model's convolutions, counted in the order in which they run.

    Args:
        model: an OpenVINO model.
        numbers: which; negative ones count from the last.

    Raises:
        ValueError: it has fewer.
    """
    kinds = ("Convolution", "ConvolutionBackpropData")
    names = [
        op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in kinds
    ]
    try:
        return [names[number] for number in numbers]
    except IndexError:
        raise ValueError(f"not_int8: the network has {len(names)} convolutions") from None


def quantise(model: Any, patches: list[np.ndarray], spared: Sequence[str] = ()) -> Any:
    """An int8 version of an OpenVINO model (NNCF's post-training quantisation).

    Args:
        model: fp32; left as it is.
        patches: normalised inputs (1, inputs, z, y, x) that calibrate the activations' ranges.
        spared: names of operations that stay in floating point.
    """
    quantised = nncf.quantize(
        model,
        nncf.Dataset(patches),
        subset_size=len(patches),
        ignored_scope=nncf.IgnoredScope(names=list(spared)),
        advanced_parameters=_RANGES,
        **_QUANTISATION,
    )
    adapt_to_openvino(quantised)
    return quantised


def quantise_by_accuracy(model: Any, patches: list[np.ndarray], spared: Sequence[str] = ()) -> Any:
    """As `quantise`, but layers stay in floating point until at most `MOST_LOSS` is lost.

    Args:
        model: fp32; left as it is.
        patches: normalised inputs (1, inputs, z, y, x) to calibrate with and to compare on.
        spared: names of operations that stay in floating point in any case.
    """
    core = ov.Core()
    reference = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    truths = [winners(reference(patch)[0][0]) for patch in patches]

    def scores_of(compiled: Any, data: Any) -> tuple[float, list[float]]:
        """Mean DSC per organ with fp32's labels, over all patches and for each."""
        scores = []
        for number in data:
            labels, truth = winners(compiled(patches[number])[0][0]), truths[number]
            organs = [dice(labels == value, truth == value) for value in ORGANS]
            seen = [score for score in organs if score is not None]
            scores.append(float(np.mean(seen)) if seen else 1.0)
        return float(np.mean(scores)), scores

    quantised = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(patches),
        nncf.Dataset(list(range(len(patches)))),
        validation_fn=scores_of,
        max_drop=MOST_LOSS,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(patches),
        ignored_scope=nncf.IgnoredScope(names=list(spared)),
        advanced_quantization_parameters=_RANGES,
        **_QUANTISATION,
    )
    adapt_to_openvino(quantised)
    return quantised
