"""What the words after an option mean: numbers, sizes, organs, choices."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Sequence

from evaluation.challenge import SHORT_NAMES
from inference.organs import label_of


def choice(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads some of the known words, which come out in the order that they are known in."""

    def some(text: str) -> tuple[str, ...]:
        words = [word.strip() for word in text.split(",") if word.strip()]
        if unknown := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return tuple(word for word in known if word in words)

    return some


def words(text: str) -> list[str]:
    """Words as a shell splits them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def organs(text: str) -> tuple[int, ...]:
    """Labels of organs by their names, sorted."""
    labels = set()
    for name in filter(str.strip, text.split(",")):
        label = label_of(name)
        if label is None:
            known = ", ".join(SHORT_NAMES.values())
            raise argparse.ArgumentTypeError(f"{name!r} is no organ; known are {known}")
        labels.add(label)
    if not labels:
        raise argparse.ArgumentTypeError("no organ is named")
    return tuple(sorted(labels))


def size(text: str) -> str:
    """A size as Docker takes it, as it is."""
    if size_in_bytes(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 8g or 512m")
    return text


def size_in_bytes(text: str) -> int:
    """A size as Docker takes it ("8g", "1.5GiB", "512m"), in bytes; 0 where it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.strip().lower())
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " ")) if match else 0


def amount(text: str) -> float:
    """A positive number."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1."""
    return tuple(positive(word) for word in text.split(","))


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = count(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def count(text: str) -> int:
    """A whole number of at least 0."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number
