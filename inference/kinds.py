"""What kind of value something must be, said once: for the check and for the message.

Plans and training configurations come from files that people edit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        words: what such a value is, for "X is 3, not ...".
        fits: whether a value is of it; is called with anything.
    """

    words: str
    fits: Callable[[Any], bool]


TEXT = Kind("text", lambda value: isinstance(value, str))
NAME = Kind("text that is not empty", lambda value: isinstance(value, str) and value != "")
FLAG = Kind("true or false", lambda value: isinstance(value, bool))


def number(low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> Kind:
    """A finite number from ``low`` to ``high``, larger than ``above``."""
    limits = [
        *([f"from {low:g}"] if low > -math.inf else []),
        *([f"above {above:g}"] if above > -math.inf else []),
        *([f"to {high:g}"] if high < math.inf else []),
    ]

    def fits(value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        try:
            return math.isfinite(value) and low <= value <= high and value > above
        except OverflowError:  # a whole number beyond all floats
            return False

    return Kind(" ".join(["a number", *limits]), fits)


def whole(low: int, high: int | None = None) -> Kind:
    """A whole number from ``low`` to ``high``."""

    def fits(value: Any) -> bool:
        integer = isinstance(value, int) and not isinstance(value, bool)
        return integer and low <= value and (high is None or value <= high)

    return Kind(f"a whole number from {low}" + (f" to {high}" if high is not None else ""), fits)


def one_of(*values: str) -> Kind:
    """One of some words."""
    return Kind("one of " + ", ".join(values), lambda value: value in values)


def optional(kind: Kind) -> Kind:
    """A value of a kind, or none."""
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.fits(value))


def several(kind: Kind, count: int | None = None) -> Kind:
    """A list of values of a kind, of a certain length if that is given."""

    def fits(value: Any) -> bool:
        many = isinstance(value, (list, tuple)) and count in (None, len(value))
        return many and all(map(kind.fits, value))

    return Kind(f"a list of {count or 'values'}, each {kind.words}", fits)


def by_name(kind: Kind) -> Kind:
    """Names, of one line and not blank, with a value of a kind each."""

    def fits(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and all(isinstance(name, str) and name.strip() and name.isprintable() for name in value)
            and all(map(kind.fits, value.values()))
        )

    return Kind(f"names of one line with {kind.words} each", fits)


def with_tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds, its lists as tuples: plans and configurations are not changed."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}


def wrong(values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> list[str]:
    """What is not of its kind, in words.

    Args:
        values: by name; names that have no kind may be anything.
        kinds: by name; each must be among the values.
    """
    return [
        f"{name} is {_shown(values[name])}, not {kind.words}"
        for name, kind in kinds.items()
        if not kind.fits(values[name])
    ]


def _shown(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."
