"""From a checkpoint to a model folder that inference runs: IR, ``plan.json``, model card."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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

from inference.decode import winners
from inference.int8 import centre_upsampling_inputs
from inference.logits import floats
from inference.machine import free_memory, usable_threads
from inference.network import Network
from inference.organs import ORGANS
from inference.pass_memory import bytes_per_voxel
from inference.plan import Plan
from inference.windows import predict as predict_in_windows
from training.checkpoint import load_average
from training.config import Config
from training.evaluate import dice, logits_of
from training.model_folder import check_place, model_folder
from training.network import multiple_of
from training.prepared_file import complete_files, opened
from training.samples import Samples
from training.tissues import UNKNOWN

_NETWORKS = {"f32": "network.xml", "bf16": "network.xml", "int8": "network_int8.xml"}
_CALIBRATED_WITH = 32  # patches of as many volumes
_CHECKED_ON = 3  # whole volumes

# A range of activations is that of all but one in 100,000 on either side: a few very bright voxels
# would leave the others few steps.
_WITHOUT_OUTLIERS = StatisticsCollectorParameters(
    statistics_type=StatisticsType.QUANTILE,
    aggregator_type=AggregatorType.MEAN,
    quantile_outlier_prob=1e-5,
)
_QUANTISATION: dict[str, Any] = {
    "preset": nncf.QuantizationPreset.MIXED,
    "fast_bias_correction": False,  # a third of the disagreement with fp32, seconds more
}
_RANGES = nncf.AdvancedQuantizationParameters(
    activations_range_estimator_params=RangeEstimatorParameters(
        _WITHOUT_OUTLIERS, _WITHOUT_OUTLIERS
    )
)


@dataclass(frozen=True)
class Agreement:
    """How an exported network compares with PyTorch's fp32 on one volume.

    Attributes:
        precision: "f32", "bf16" or "int8".
        case: the volume's name.
        logits_error: root mean square difference over that of the reference logits.
        same_labels: share of voxels with the same label.
        organ_dice: DSC between the two label maps per organ; None where neither has the organ.
    """

    precision: str
    case: str
    logits_error: float
    same_labels: float
    organ_dice: dict[str, float | None]

    def __str__(self) -> str:
        organs = {name: score for name, score in self.organ_dice.items() if score is not None}
        worst = min(organs, key=lambda name: organs[name], default="no organ")
        return (
            f"{self.precision} on {self.case}: logits error {self.logits_error:.4f}, "
            f"{100 * self.same_labels:.3f} % of the labels the same, "
            f"lowest organ DSC {organs.get(worst, 1.0):.4f} ({worst})"
        )


@dataclass(frozen=True)
class Volume:
    """A prepared volume for calibration and checks.

    Attributes:
        name: of the case.
        hu: int16 (z, y, x).
        labels: uint8 (z, y, x); zeros where there are none.
    """

    name: str
    hu: np.ndarray
    labels: np.ndarray


def export(
    checkpoint: Path,
    config: Config,
    prepared: Path,
    out: Path,
    accuracy_aware: bool = False,
    most_loss: float = 0.005,
    holdout: tuple[str, ...] = (),
    int8_only: bool = False,
    describe: Callable[[Path, list[Agreement]], None] | None = None,
) -> list[Agreement]:
    """Write a model folder (IR in fp16 storage and in int8, and the plan).

    The folder is made beside ``out`` and moved there at the end.

    Args:
        checkpoint: what `training.train.train` wrote, or a model folder.
        config: its configuration.
        prepared: prepared data; real images calibrate int8 and check the export. Where there
            are none at all, synthetic ones do.
        out: the model folder; an older one is replaced.
        accuracy_aware: keep those layers in higher precision whose quantisation costs most,
            until the loss of accuracy is at most ``most_loss``. Takes many times longer.
        most_loss: mean DSC per organ between int8's labels and fp32's that may be lost.
        holdout: cases that were kept aside, besides the configuration's.
        int8_only: leave out the network in floating point: a third of the size remains, but no
            training can begin with the folder's weights.
        describe: is called at last with the new folder and what is returned; writes the card.

    Returns:
        The agreement of every exported precision with PyTorch, per checked volume.

    Raises:
        FileNotFoundError: no checkpoint, or nothing prepared to calibrate with.
        ModelError: the checkpoint is a folder that holds no model.
        UsageError: ``out`` exists and is no model folder.
    """
    check_place(out)
    network = load_average(checkpoint, config)
    volumes = volumes_for_checks(prepared, config, holdout)
    patches = [patch_of(volume, config) for volume in volumes]

    model = to_openvino(network, config.patch)
    spared = convolutions_of(model, config.not_int8)
    quantised = _quantise(model, patches, most_loss if accuracy_aware else None, spared)
    with model_folder(out) as folder:
        floating = folder / _NETWORKS["f32"]
        ov.save_model(model, floating, compress_to_fp16=True)
        ov.save_model(quantised, folder / _NETWORKS["int8"], compress_to_fp16=True)
        per_voxel = bytes_per_voxel(floating, config.patch)
        networks = _NETWORKS
        if int8_only:
            networks = {"int8": _NETWORKS["int8"]}
            floating.unlink()
            floating.with_suffix(".bin").unlink()
        plan = config.plan(multiple_of(network), networks, per_voxel)
        plan.save(folder)
        agreements = [
            agreement
            for volume in volumes[:_CHECKED_ON]
            for agreement in _compare(network, folder, plan, config, volume)
        ]
        if describe:
            describe(folder, agreements)
    return agreements


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
    centre_upsampling_inputs(quantised)
    return quantised


def _quantise(
    model: Any, patches: list[np.ndarray], most_loss: float | None, spared: Sequence[str] = ()
) -> Any:
    if most_loss is None:
        return quantise(model, patches, spared)
    core = ov.Core()
    reference = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    truths = [winners(reference(patch)[0][0]) for patch in patches]

    def agreement(compiled: Any, data: Any) -> tuple[float, list[float]]:
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
        validation_fn=agreement,
        max_drop=most_loss,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(patches),
        ignored_scope=nncf.IgnoredScope(names=list(spared)),
        advanced_quantization_parameters=_RANGES,
        **_QUANTISATION,
    )
    centre_upsampling_inputs(quantised)
    return quantised


def volumes_for_checks(
    prepared: Path, config: Config, holdout: tuple[str, ...] = ()
) -> list[Volume]:
    """Prepared volumes: labelled ones first, then unlabelled and pseudo-labelled ones.

    Held-out cases, whose scores shall say how good the network is on others, only where there is
    nothing else. Where there is no real image, synthetic patches stand in; their names say so.

    Raises:
        FileNotFoundError: nothing is prepared.
    """
    aside = {*config.holdout, *holdout}
    found = []
    for path in (*complete_files(prepared / "images"), *complete_files(prepared / "pseudo")):
        with opened(path) as content:
            found.append((not content["labels"].any(), path))
    if others := [(empty, path) for empty, path in found if path.stem not in aside]:
        found = others
    real: dict[str, Volume] = {}
    for _, path in sorted(found):
        if path.stem not in real and len(real) < _CALIBRATED_WITH:
            with opened(path) as content:
                real[path.stem] = Volume(path.stem, content["hu"], content["labels"])
    if real:
        return list(real.values())
    samples = Samples(prepared, config, holdout)
    drawn = []
    for number in range(8):
        patch = samples[number * config.drawn_at_once]
        hu = patch.image[0].numpy() * config.divide + config.subtract
        drawn.append(
            Volume(f"synthetic_{number}", hu.round().astype(np.int16), patch.labels.numpy())
        )
    return drawn


def patch_of(volume: Volume, config: Config) -> np.ndarray:
    """A normalised patch (1, 1, z, y, x) of a volume, around its organs or from its middle."""
    hu = config.normalise(volume.hu)
    organs = np.argwhere((volume.labels > 0) & (volume.labels != UNKNOWN))
    middle = organs.mean(axis=0) if len(organs) else np.array(hu.shape) / 2
    patch = np.full(config.patch, config.air, np.float32)
    here, there = [], []
    for n, size, centre in zip(hu.shape, config.patch, middle, strict=True):
        start = min(max(0, round(float(centre)) - size // 2), max(0, n - size))
        length = min(size, n - start)
        here.append(slice((size - length) // 2, (size - length) // 2 + length))
        there.append(slice(start, start + length))
    patch[tuple(here)] = hu[tuple(there)]
    return patch[None, None]


def _compare(
    network: nn.Module, folder: Path, plan: Plan, config: Config, volume: Volume
) -> list[Agreement]:
    """Every precision against PyTorch, on a whole volume, in inference's windows."""
    expected = np.array(logits_of(network, volume.hu, config, exact=True), np.float32)
    truth = winners(expected)
    image = config.normalise(volume.hu)
    result = []
    for precision, file in plan.networks.items():
        runner = Network(folder / file, precision, usable_threads(), len(plan.label_values))
        memory = int(free_memory() * 0.7)
        logits = predict_in_windows(runner, image, plan, config.air, memory)
        labels = winners(logits)
        error = np.sqrt(np.mean((floats(logits) - expected) ** 2) / np.mean(expected**2))
        organs = {name: dice(labels == i, truth == i) for i, name in ORGANS.items()}
        same = float((labels == truth).mean())
        result.append(Agreement(precision, volume.name, float(error), same, organs))
    return result
