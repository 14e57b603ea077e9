"""From nnU-Net's plans to ours: what `inference.plan.Plan` has to say of an nnU-Net model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from inference.errors import ModelError
from inference.hounsfield import AIR, DENSEST
from inference.plan import NETWORK_FILES, Plan
from training.nnunet.label_map import LabelMap
from training.nnunet.results import required

_READERS = {
    "SimpleITKIO": None,
    "NibabelIO": None,
    "NibabelIOWithReorient": "RAS",
    "SimpleITKIOWithReorient": "RAS",
}
_NORMALISATIONS = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "z-score",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale",
    "RGBTo01Normalization": "rgb",
}
_PREPROCESSORS = ("DefaultPreprocessor",)
_LABEL_MANAGERS = ("LabelManager",)
_AXIS_MODES = {"nearest-exact": 0, "linear": 1}


@dataclass(frozen=True)
class Outputs:
    """What a network's output channels mean.

    Attributes:
        channels: how many there are.
        kept: those that are exported.
        values: the label value of each of these.
        regions: whether they are regions.
        labels: name to value of what is reported.
        members: name to values, where a name stands for several.
    """

    channels: int
    kept: tuple[int, ...]
    values: tuple[int, ...]
    regions: bool
    labels: Mapping[str, int]
    members: Mapping[str, tuple[int, ...]]


def outputs_of(dataset: Mapping[str, Any], label_map: LabelMap | None = None) -> Outputs:
    """The meaning of the output channels, by nnU-Net's rules (its ``LabelManager``).

    With a map, labels are merged after the decision between all classes. Regions are decided one
    by one: those that are not wanted are left out, the others painted in nnU-Net's order.

    Raises:
        ModelError: the labels are not what nnU-Net v2 writes, or are too many.
        UsageError: the map does not fit.
    """
    try:
        named = {
            name: [int(v) for v in value] if isinstance(value, list) else [int(value)]
            for name, value in required(dataset, "labels", "dataset.json").items()
            if name != "ignore"
        }
    except (AttributeError, TypeError, ValueError):
        raise ModelError('dataset.json: its labels are not "name": number') from None
    if named.get("background") != [0]:
        raise ModelError("dataset.json: no label 'background' with the value 0")
    order: list[Any] = dataset.get("regions_class_order") or []
    regions = any(len(values) > 1 for values in named.values())
    everything = sorted({value for values in named.values() for value in values})
    if everything[-1] > 255:
        raise ModelError(f"dataset.json: label {everything[-1]}; more than 255 cannot be written")
    members: dict[str, tuple[int, ...]] = {}
    channel_of: dict[str, int]
    if regions:
        names = [name for name, values in named.items() if set(values) != {0}]
        if len(order) != len(names):
            raise ModelError("dataset.json: regions without a fitting regions_class_order")
        values = [int(value) for value in order]
        labels = dict(zip(names, values, strict=True))
        members = {name: tuple(named[name]) for name in names if named[name] != [labels[name]]}
        channel_of = {name: channel for channel, name in enumerate(names)}
    else:
        if everything != list(range(len(everything))):
            raise ModelError("dataset.json: labels are not numbered 0, 1, 2, ... without a gap")
        values = everything
        labels = {name: found[0] for name, found in named.items() if found[0]}
        channel_of = labels
    kept = list(range(len(values)))
    if label_map is not None:
        new = label_map.value_of(channel_of)
        if regions:
            kept = sorted(new)
            members = _mapped_members(named, label_map)
        values = [new.get(channel, 0) for channel in kept]
        labels = dict(label_map.labels)
    return Outputs(
        len(order) if regions else len(everything),
        tuple(kept),
        tuple(values),
        regions,
        labels,
        members,
    )


def _mapped_members(
    named: Mapping[str, list[int]], label_map: LabelMap
) -> dict[str, tuple[int, ...]]:
    """Which of a map's values lie within each of its labels, where that is more than its own.

    Args:
        named: the model's regions and the values that dataset.json gives them.
        label_map: the map.
    """
    parts = {
        name: {value for source in sources for value in named[source]}
        for name, sources in label_map.sources.items()
    }
    members = {
        name: tuple(sorted(label_map.labels[other] for other in parts if parts[other] <= part))
        for name, part in parts.items()
    }
    return {name: values for name, values in members.items() if len(values) > 1}


def inputs_of(dataset: Mapping[str, Any]) -> list[str]:
    """The names of the input channels, in order."""
    names = dataset.get("channel_names") or dataset.get("modality")
    if not isinstance(names, Mapping) or not all(str(key).isdecimal() for key in names):
        raise ModelError('dataset.json: no channel_names that are "0": name, "1": name, ...')
    return [str(names[key]) for key in sorted(names, key=int)]


def plan_of(
    name: str,
    plans: Mapping[str, Any],
    configuration: Mapping[str, Any],
    dataset: Mapping[str, Any],
    outputs: Outputs,
    mirror: tuple[int, ...] = (),
) -> Plan:
    """The plan of an nnU-Net model that is run in nnU-Net's own way: its tiling, in fp32.

    How much memory a pass takes it does not say: the import measures it at last, on what it writes.

    Args:
        name: of the model folder.
        plans: nnU-Net's plans.
        configuration: the one that was trained, with what it inherits.
        dataset: nnU-Net's dataset description.
        outputs: what `outputs_of` found.
        mirror: axes of nnU-Net along which the input is mirrored.

    Raises:
        ModelError: the plans ask for something that cannot be served.
    """
    if configuration.get("previous_stage"):
        raise ModelError(
            "this is a cascade's second stage, which needs the labels of the first: not supported"
        )
    _known("preprocessor", configuration.get("preprocessor_name"), _PREPROCESSORS)
    _known("label manager", plans.get("label_manager", "LabelManager"), _LABEL_MANAGERS)
    reader = required(plans, "image_reader_writer")
    _known("image reader", reader, _READERS)
    patch = list(required(configuration, "patch_size"))
    spacing = list(required(configuration, "spacing"))
    if not len(patch) == len(spacing) or len(patch) not in (2, 3):
        raise ModelError(f"plans: patch_size {patch} and spacing {spacing} are not of 2 or 3 axes")
    if len(patch) == 2:
        patch = [1, *patch]
        mirror = tuple(axis + 1 for axis in mirror)
    if len(spacing) == 2:
        spacing = [None, *spacing]
    channels = _channels(plans, configuration, inputs_of(dataset))
    first = next((c for c in channels if c["normalisation"] == "ct"), {})
    return Plan(
        name=name,
        version=str(dataset.get("release") or "1"),
        spacing=(spacing[0], spacing[1], spacing[2]),
        # For readers of the plan; the channels say what is done.
        clip=first.get("clip", (float(AIR), float(DENSEST))),
        subtract=first.get("subtract", 0.0),
        divide=first.get("divide", 1.0) or 1.0,
        patch=(patch[0], patch[1], patch[2]),
        multiple=(patch[0], patch[1], patch[2]),
        networks={precision: NETWORK_FILES[precision] for precision in ("f32", "bf16")},
        precision="f32",
        labels=outputs.labels,
        bytes_per_voxel={},
        orientation=_READERS[reader],
        crop="nonzero",
        tiling="nnunet",
        overlap=0.5,
        channels=tuple(channels),
        transpose=tuple(required(plans, "transpose_forward")),
        resampling={
            "data": _rule(configuration, "data"),
            "logits": _rule(configuration, "probabilities", half=True),  # as its tiling sums up
        },
        outside=0.0,
        mirror=mirror,
        outputs=outputs.values,
        regions=outputs.regions,
        members={name: list(values) for name, values in outputs.members.items()},
    )


def plan_as_exported(
    exact: Plan,
    strides: tuple[int, ...] | None,
    tiling: str,
    int8: bool,
) -> Plan:
    """The plan of the form that is exported, which may be a faster one than nnU-Net's own way.

    Args:
        exact: what `plan_of` found.
        strides: the network's total stride per axis of nnU-Net's (2 or 3), if it takes sizes
            other than the patch.
        tiling: "nnunet" or "whole".
        int8: whether there is a quantised network too, which is then the one to use.
    """
    multiple = exact.multiple
    if strides:
        z, y, x = (1, *strides) if len(strides) == 2 else strides
        if not any(size % step for size, step in zip(exact.patch, (z, y, x), strict=True)):
            multiple = z, y, x
    resampling = exact.resampling
    if tiling != "nnunet" and (rule := resampling["logits"]):
        # Only nnU-Net's tiling sums logits up in half precision.
        resampling = {**resampling, "logits": {k: v for k, v in rule.items() if k != "half"}}
    return replace(
        exact,
        multiple=multiple,
        networks=NETWORK_FILES if int8 else exact.networks,
        precision="int8" if int8 else exact.precision,
        tiling=tiling,
        resampling=resampling,
    )


def _known(what: str, name: Any, known: Any) -> None:
    if name not in known:
        raise ModelError(f"plans: {what} {name!r} is not supported, only {', '.join(known)}")


def _channels(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], names: list[str]
) -> list[dict[str, Any]]:
    schemes = required(configuration, "normalization_schemes")
    masks = required(configuration, "use_mask_for_norm")
    intensities = (
        plans.get("foreground_intensity_properties_per_channel")
        or plans.get("foreground_intensity_properties_by_modality")
        or {}
    )
    if not len(names) == len(schemes) == len(masks):
        raise ModelError(
            f"plans: {len(schemes)} normalisations for {len(names)} channels of dataset.json"
        )
    channels = []
    for index, (name, scheme, mask) in enumerate(zip(names, schemes, masks, strict=True)):
        _known("normalisation", scheme, _NORMALISATIONS)
        channel: dict[str, Any] = {"name": name, "normalisation": _NORMALISATIONS[scheme]}
        if channel["normalisation"] == "ct":
            found = intensities.get(str(index))
            if found is None:
                raise ModelError(f"plans: no intensity properties of channel {index}")
            keys = ("percentile_00_5", "percentile_99_5", "mean", "std")
            low, high, mean, deviation = (float(required(found, key)) for key in keys)
            channel.update(clip=[low, high], subtract=mean, divide=deviation)
        if channel["normalisation"] == "z-score" and mask:
            channel["masked"] = True
        channels.append(channel)
    return channels


def _rule(configuration: Mapping[str, Any], kind: str, half: bool = False) -> dict[str, Any] | None:
    """What `inference.nnunet.spline.Rule` says of one of nnU-Net's resampling functions.

    Args:
        configuration: nnU-Net's.
        kind: "data" or "probabilities".
        half: whether what is resampled comes in half precision, which SciPy's way keeps and
            PyTorch's does not.
    """
    function = required(configuration, f"resampling_fn_{kind}")
    given = required(configuration, f"resampling_fn_{kind}_kwargs")
    threshold = float(given.get("separate_z_anisotropy_threshold", 3))
    if function == "resample_data_or_seg_to_shape":
        return {
            "order": int(given.get("order", 3)),
            "order_z": int(given.get("order_z", 0)),
            "separate": given.get("force_separate_z", False),
            "threshold": threshold,
            **({"half": True} if half else {}),
        }
    if function == "resample_torch_fornnunet":
        along = given.get("aniso_axis_mode", "nearest-exact")
        if given.get("mode", "linear") == "linear" and along in _AXIS_MODES:
            return {
                "order": 1,
                "order_z": _AXIS_MODES[along],
                "separate": given.get("force_separate_z"),
                "threshold": threshold,
            }
    if function == "no_resampling_hack":
        return None
    raise ModelError(f"plans: resampling by {function} with {given} is not supported")
