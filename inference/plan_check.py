"""What can be wrong with a plan, found before anything is segmented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inference.hounsfield import NO_TISSUE
from inference.kinds import (
    FLAG,
    NAME,
    Kind,
    by_name,
    number,
    one_of,
    optional,
    several,
    whole,
    wrong,
)
from inference.nnunet.normalisation import Channel
from inference.nnunet.spline import Rule
from inference.preprocess.orientation import turn_to

if TYPE_CHECKING:
    from inference.plan import Plan

PRECISIONS = ("f32", "bf16", "int8")
"""What a network may compute in."""

# Steps of post-processing (`inference.labels.postprocess`), and what each has beside its labels.
_STEPS: dict[str, dict[str, Kind]] = {
    "keep_largest": {},
    "remove_small": {"millilitres": number(0)},
    "close": {},
    "foreign_gas": {"hu": number(high=NO_TISSUE), "share": number(0, 1)},
    "cut_necks": {"share": number(0, 1), "millimetres": number(above=0)},
    "cut_tail": {"share": number(0, 1), "millimetres": number(above=0)},
    "sides": {},
}
# What a step may have besides.
_STEP_OPTIONS: dict[str, dict[str, Kind]] = {
    "keep_largest": {"cut_millilitres": number(above=0)},
    "foreign_gas": {"wall": FLAG},
}


def _fits_orientation(value: Any) -> bool:
    if value is None:
        return True
    try:
        turn_to((1, 0, 0, 0, 1, 0, 0, 0, 1), value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


_LOOK = {"model": NAME, "margin": several(number(0, 10_000), 3)}


def _is_look(value: Any) -> bool:
    if not isinstance(value, Mapping) or (value and set(value) != set(_LOOK)):
        return False
    return all(_LOOK[name].fits(entry) for name, entry in value.items())


_LABEL = whole(0, 255)
_MOST = 1e9  # float32 computes with it, whatever it is divided by
_VALUE = number(-_MOST, _MOST)
_SIZE = whole(1, 4096)
_ANYTHING = Kind("any value", lambda value: True)  # it is looked at where it belongs
PLAN_KINDS: dict[str, Kind] = {
    "name": NAME,
    "version": NAME,
    "spacing": several(optional(number(0.001, 10_000)), 3),
    "clip": several(_VALUE, 2),
    "clip_first": optional(several(_VALUE, 2)),
    "subtract": _VALUE,
    "divide": number(1e-6, _MOST),
    "patch": several(_SIZE, 3),
    "multiple": several(_SIZE, 3),
    "networks": by_name(NAME),
    "precision": one_of(*PRECISIONS),
    "labels": by_name(whole(1, 255)),
    "bytes_per_voxel": by_name(number(0)),
    "bytes_per_pass": by_name(number(0)),
    "orientation": Kind("three letters as LPS, or null", _fits_orientation),
    "size": several(optional(_SIZE), 3),
    "crop": one_of("body", "none"),
    "tiling": one_of("whole", "window", "nnunet"),
    "overlap": number(0, 0.99),
    "postprocessing": several(by_name(_ANYTHING)),
    "look": Kind('{"model": a name, "margin": three numbers}, or empty', _is_look),
    "channels": several(by_name(_ANYTHING)),
    "transpose": several(whole(0, 2), 3),
    "resampling": by_name(optional(by_name(_ANYTHING))),
    "outside": optional(_VALUE),
    "mirror": several(whole(0, 2)),
    "outputs": several(_LABEL),
    "regions": FLAG,
    "members": by_name(several(_LABEL)),
}
"""What each value of a plan must be."""

_OF_CHANNELS: dict[str, Kind] = {
    "clip_first": Kind("null, as it is beside channels", lambda value: value is None),
    "crop": one_of("nonzero", "none"),
    "size": Kind(
        "three times null, as it is beside channels", lambda value: value == (None, None, None)
    ),
}


def problems_of(plan: Plan) -> list[str]:
    """What is wrong with a plan, in words; nothing if it can be used."""
    kinds = PLAN_KINDS | (_OF_CHANNELS if plan.channels else {})
    # Whether values fit together can only be asked of values that are what they must be.
    return wrong(vars(plan), kinds) or [*_contradictions(plan), *_wrong_parts(plan)]


def _contradictions(plan: Plan) -> list[str]:
    """What cannot be together."""
    problems = []
    if plan.clip[0] >= plan.clip[1] and not plan.channels:
        problems.append(f"clip {list(plan.clip)} is not a range")
    first = plan.clip_first or plan.clip
    if first[0] > plan.clip[0] or first[1] < plan.clip[1]:
        problems.append(f"clip_first {list(first)} does not hold clip {list(plan.clip)}")
    if any(p % m for p, m in zip(plan.patch, plan.multiple, strict=True)):
        problems.append(f"patch {list(plan.patch)} is no multiple of {list(plan.multiple)}")
    for name in ("networks", "bytes_per_voxel", "bytes_per_pass"):
        if unknown := set(getattr(plan, name)) - {*PRECISIONS}:
            problems.append(f"{name} of no precision: {', '.join(sorted(unknown))}")
    if plan.bytes_per_voxel and (unknown := set(plan.networks) - set(plan.bytes_per_voxel)):
        problems.append(f"bytes_per_voxel says nothing of {', '.join(sorted(unknown))}")
    if plan.bytes_per_pass and set(plan.bytes_per_pass) != set(plan.bytes_per_voxel):
        problems.append("bytes_per_pass is not of the precisions of bytes_per_voxel")
    if plan.precision not in plan.networks:
        problems.append(f"precision {plan.precision!r} has no network")
    if not plan.labels or len(set(plan.labels.values())) != len(plan.labels):
        problems.append("labels are not different numbers")
    for name, axes in (("transpose", plan.transpose), ("mirror", plan.mirror)):
        if len(set(axes)) < len(axes):
            problems.append(f"{name} {list(axes)} names an axis twice")
    if plan.look and (plan.channels or any(plan.size)):
        problems.append("a look is only for one CT channel and no fixed size")
    if plan.regions and not plan.outputs:
        problems.append("regions need outputs")
    if nameless := set(plan.outputs) - {0, *plan.labels.values()}:
        problems.append(f"outputs {sorted(nameless)} are values of no label")
    if plan.outputs and not plan.regions and plan.outputs[0] != 0:
        problems.append(f"outputs {list(plan.outputs)} do not begin with background, 0")
    steps = {str(step.get("step")) for step in plan.postprocessing}
    # Letters are said of (x, y, z), the transpose of (z, y, x).
    directions = [(plan.orientation or "---")[2 - axis] for axis in plan.transpose]
    if "sides" in steps and directions[2] != "L":
        problems.append("'sides' needs a last axis that runs to the left, as in LPS")
    if "cut_tail" in steps and directions[0] != "S":
        problems.append("'cut_tail' needs a first axis that runs upwards, as in LPS")
    if plan.channels and "foreign_gas" in steps:
        problems.append("'foreign_gas' needs a CT in HU, not channels")
    if plan.regions and plan.postprocessing:
        problems.append("regions cannot be post-processed")
    if plan.channels and set(plan.resampling) != {"data", "logits"}:
        problems.append("channels need a resampling of 'data' and 'logits'")
    return problems


def _wrong_parts(plan: Plan) -> list[str]:
    """What is wrong with post-processing, channels and resampling."""
    problems = []
    organs = {value for value in plan.label_values if value}
    for step in plan.postprocessing:
        name = str(step.get("step"))
        keys, options = _STEPS.get(name), _STEP_OPTIONS.get(name, {})
        if (
            keys is None
            or set(step) - set(options) != {"step", "labels", *keys}
            or not several(_LABEL).fits(step["labels"])
            or not organs.issuperset(step["labels"])
            or (name == "sides" and len(step["labels"]) not in range(3, 256, 2))
            or any(
                not kind.fits(step[key]) for key, kind in {**keys, **options}.items() if key in step
            )
        ):
            problems.append(f"bad postprocessing {dict(step)}")
    for what, of, contents in (
        ("channels", Channel.of, plan.channels),
        ("resampling", Rule.of, plan.resampling.values()),
    ):
        for content in contents:
            try:
                of(content)
            except ValueError as error:
                problems.append(f"{what}: {error}")
    return problems
