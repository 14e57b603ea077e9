"""YAML files as people edit them: of a key that is given twice YAML keeps the last, in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


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
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None


class _TwiceError(Exception):
    pass


class _EachOnce(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader, but every key of a mapping must be another."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = str(self.construct_object(key, deep=True))
            if name in seen:
                raise _TwiceError(f"{name!r} is given twice (line {key.start_mark.line + 1})")
            seen.add(name)
        return super().construct_mapping(node, deep)
