"""Reducing a model of many classes to a few: ``--map-labels``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.errors import UsageError, os_error_line
from inference.kinds import whole, wrong
from inference.organs import LABEL_OF
from training.yaml_file import load_yaml


@dataclass(frozen=True)
class LabelMap:
    """Which classes of a model become which labels; all others become background.

    Attributes:
        labels: name of each label that is wanted to its value.
        sources: the same names to the model's classes that become it.
    """

    labels: Mapping[str, int]
    sources: Mapping[str, tuple[str, ...]]

    @staticmethod
    def load(path: Path) -> LabelMap:
        """Read a map, in YAML or JSON.

        One entry per label: ``name: class``, ``name: [class, class]`` or
        ``name: {value: 7, from: [class, class]}``. Without values, labels count from 1 in the
        file's order; but where all names are `inference.ORGANS`, those have their usual values.

        Raises:
            UsageError: it cannot be read or is no such map.
        """
        try:
            content = load_yaml(path)
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file") from None
        except OSError as error:
            raise UsageError(os_error_line(error)) from None
        except ValueError as error:
            raise UsageError(str(error)) from None
        if not isinstance(content, dict) or not content:
            raise UsageError(f"{path}: no map of names to classes")
        organs = all(name in LABEL_OF for name in content)
        labels, sources = {}, {}
        for number, (name, entry) in enumerate(content.items(), start=1):
            value: Any = LABEL_OF[name] if organs else number
            if isinstance(entry, dict):
                if unknown := set(entry) - {"value", "from"}:
                    raise UsageError(f"{path}: {name}: unknown {', '.join(map(str, unknown))}")
                value, entry = entry.get("value", value), entry.get("from")
            names = [entry] if isinstance(entry, (str, int)) else entry
            if not isinstance(names, list) or not names:
                raise UsageError(f"{path}: {name}: no class is named")
            if problem := wrong({"value": value}, {"value": whole(1, 255)}):
                raise UsageError(f"{path}: {name}: {problem[0]}")
            labels[str(name)] = value
            sources[str(name)] = tuple(str(source) for source in names)
        if len(set(labels.values())) != len(labels):
            raise UsageError(f"{path}: two names have the same value")
        return LabelMap(labels, sources)

    def value_of(self, classes: Mapping[str, int]) -> dict[int, int]:
        """The new value of every value of the model's classes that is wanted.

        Args:
            classes: the model's class names to their values.

        Raises:
            UsageError: a class that the model does not have, or one that is to become two labels.
        """
        values: dict[int, int] = {}
        for name, sources in self.sources.items():
            for source in sources:
                if source not in classes:
                    there = ", ".join(classes)
                    raise UsageError(f"--map-labels: the model has no class {source!r}: {there}")
                if values.setdefault(classes[source], self.labels[name]) != self.labels[name]:
                    raise UsageError(f"--map-labels: {source!r} is to become two labels")
        return values
