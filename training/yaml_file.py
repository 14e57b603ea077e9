"""YAML files as people edit them: of a key that is given twice YAML keeps the last, in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from inference.errors import first_line

# PyYAML's own, and what its constructors raise of "2024-13-01", "!!bool x" and the like.
_REASONS = (
    yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError,
)  # fmt: skip


def load_yaml(path: Path) -> Any:
    """Read a YAML or JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is not YAML, or a key is given twice, in one line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_EachOnce)
    except _TwiceError as error:
        raise ValueError(f"{path}: {error}") from None
    except _REASONS as error:
        raise ValueError(f"{path}: not YAML ({first_line(error)})") from None


class _TwiceError(Exception):
    pass


class _EachOnce(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader, but every key of a mapping must be another."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise _TwiceError(f"{key.value!r} is given twice (line {line})")
                seen.add(key.value)
        return node
