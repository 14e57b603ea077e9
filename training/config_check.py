"""What can be wrong with a training configuration, found before anything is prepared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
from inference.organs import LABEL_OF
from inference.plan_check import PLAN_KINDS
from training.preparation.prepared_file import FOLDER_OF

if TYPE_CHECKING:
    from training.config import Config

_SHARE = _PROBABILITY = number(0, 1)
_AXES = several(whole(0, 2))
_MAPPING = Kind("names and values, {} for none", lambda value: isinstance(value, Mapping))


def _range(low: float = 0, above: float | None = None) -> Kind:
    """A lowest and a highest number, in this order."""
    each = number(low) if above is None else number(above=above)
    both = several(each, 2)
    return Kind(
        f"the lowest and the highest, each {each.words}",
        lambda value: both.fits(value) and value[0] <= value[1],
    )


_OF_THE_PLAN = (
    "name", "version", "spacing", "size", "crop", "clip", "subtract", "divide", "patch", "overlap",
    "precision", "look",
)  # fmt: skip
_KINDS = {
    **{name: PLAN_KINDS[name] for name in _OF_THE_PLAN},
    **dict.fromkeys(("drawn_at_once", "batch", "iterations"), whole(1)),
    **dict.fromkeys(("folds", "evaluate_every", "checkpoint_every"), whole(1)),
    "warmup": whole(0),
    "seed": whole(0, 2**32 - 1),  # what is drawn has seeds of its own, made of it
    **dict.fromkeys(("learning_rate", "gradient_clip"), number(above=0)),
    **dict.fromkeys(("weight_decay", "pseudo_weight"), number(0)),
    **dict.fromkeys(("ema", "freeze_norm"), _SHARE),
    **dict.fromkeys(("holdout", "empty"), several(NAME)),
    "stored": several(number(), 2),
    "synthesis_spacing": number(0.1),
    "tiling": one_of("whole", "window"),  # nnU-Net's own is for imported models
    "optimiser": one_of("adamw", "muon", "sgd"),
    "schedule": one_of("cosine", "polynomial"),
    "class_weights": several(number(0)),
    "batch_dice": FLAG,
    "not_int8": several(whole(-1000, 1000)),
    "shares": by_name(number(0)),
    **dict.fromkeys(
        ("network", "placement", "coarse_first", "self_training", "augmentation"), _MAPPING
    ),
}
# What networks may have (`training.networks.unets`).
_NETWORK = {
    "features": several(whole(1)),
    **dict.fromkeys(("kernels", "strides"), several(several(whole(1), 3))),
    "pooling": several(whole(1), 3),
    **dict.fromkeys(("bias", "deep_supervision", "light_finest", "separable", "attention"), FLAG),
}
_COARSE_FIRST = {
    "share": _SHARE,
    "spacing": several(optional(number(above=0)), 3),
    "patch": several(whole(1), 3),
}
_SELF_TRAINING = {
    "rounds": whole(1),
    "iterations": whole(1),
    "learning_rate": number(above=0),
}
# Rules of `training.patches.samples` for where patches lie, and what each needs.
_PLACEMENTS: dict[str, dict[str, Kind]] = {
    "anywhere": {"foreground": _PROBABILITY},
    "labelled_slices": {},
}
# Entries of `training.patches.augment`, and what each needs.
_AUGMENTATIONS: dict[str, dict[str, Kind]] = {
    "warp": {"strength": number(0)},
    "turn": {"probability": _PROBABILITY, "degrees": several(number(0), 3)},
    "scale": {"probability": _PROBABILITY, "range": _range(above=0), "axes": _AXES},
    "scan": {"slice": _range(above=0), "pixel": _range(above=0)},
    "cropped": {"probability": _PROBABILITY},
    "phase": {},
    "slab": {"probability": _PROBABILITY},
    "noise": {"probability": _PROBABILITY, "deviation": _range()},
    "blur": {"probability": _PROBABILITY, "sigma": _range()},
    "brightness": {"probability": _PROBABILITY, "factor": _range()},
    "contrast": {"probability": _PROBABILITY, "factor": _range()},
    "low_resolution": {"probability": _PROBABILITY, "factor": _range(above=0), "axes": _AXES},
    "gamma": {"probability": _PROBABILITY, "exponent": _range(above=0)},
    "inverted_gamma": {"probability": _PROBABILITY, "exponent": _range(above=0)},
    "mirror": {"axes": _AXES},
}


def problems_of(config: Config) -> list[str]:
    """What is wrong with a configuration, in words; nothing if it can be used."""
    # Whether values fit together can only be asked of values that are what they must be.
    return _wrong_values(vars(config), _KINDS) or [*_wrong_parts(config), *_contradictions(config)]


def _contradictions(config: Config) -> list[str]:
    """What cannot be together."""
    problems = []
    if unknown := set(config.shares) - set(FOLDER_OF):
        problems.append(f"shares of unknown kinds: {', '.join(sorted(unknown))}")
    if config.stored[0] > config.clip[0] or config.stored[1] < config.clip[1]:
        problems.append(f"stored {list(config.stored)} does not hold clip {list(config.clip)}")
    if "phase" in config.augmentation and config.stored == config.clip:
        problems.append("stored must be wider than clip where the phase is varied before clipping")
    if config.batch % config.drawn_at_once and config.drawn_at_once % config.batch:
        problems.append("neither of batch and drawn_at_once is a multiple of the other")
    if config.class_weights and len(config.class_weights) != 1 + len(LABEL_OF):
        problems.append(f"class_weights are not {1 + len(LABEL_OF)} numbers")
    for name, axes in (("scan", config.spacing), ("cropped", config.spacing[1:])):
        if name in config.augmentation and None not in axes:
            problems.append(f"augmentation: {name} changes nothing where all spacings are set")
    return problems


def _wrong_parts(config: Config) -> list[str]:
    """What is wrong within the values that are names and values themselves."""
    options = {name: kind for name, kind in _NETWORK.items() if name in config.network}
    problems = [f"network: {problem}" for problem in _wrong_values(config.network, options)]
    for name, kinds in (("coarse_first", _COARSE_FIRST), ("self_training", _SELF_TRAINING)):
        if part := getattr(config, name):
            problems += _wrong_part(name, part, kinds)
    placement = dict(config.placement)
    rule = placement.pop("rule", None)
    if rule not in _PLACEMENTS:
        problems.append(f"placement: there is no rule {rule!r}")
    else:
        problems += _wrong_part(f"placement: the rule {rule!r}", placement, _PLACEMENTS[rule])
    for name, options in config.augmentation.items():
        what = f"augmentation: {name}"
        if name not in _AUGMENTATIONS:
            problems.append(f"augmentation: there is no {name}")
        elif not isinstance(options, Mapping):
            problems.append(f"{what} is {options!r}, not names and values, {{}} for none")
        else:
            problems += _wrong_part(what, options, _AUGMENTATIONS[name])
    return problems


def _wrong_part(what: str, part: Mapping[str, Any], kinds: Mapping[str, Kind]) -> list[str]:
    if missing := [name for name in kinds if name not in part]:
        return [f"{what} needs {' and '.join(missing)}"]
    if unknown := sorted(map(str, set(part) - set(kinds))):
        return [f"{what} has no {', '.join(unknown)}"]
    return [f"{what}: {problem}" for problem in _wrong_values(part, kinds)]


def _wrong_values(values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> list[str]:
    """What is not of its kind, in words; of numbers that YAML takes for text, how to write them."""
    problems = []
    for name, kind in kinds.items():
        value = values[name]
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value):
            if kind is not NAME:
                problems.append(f"{name}: YAML takes {value} for text; write {float(value)!r}")
        else:
            problems += wrong({name: value}, {name: kind})
    return problems
