"""Which processor this is: no seconds mean anything without it."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The processor's name as it gives it itself, or at least its kind ("x86_64")."""
    return _entries().get("model name") or platform.processor() or platform.machine()


def instruction_sets() -> set[str]:
    """The processor's instruction sets, by Linux' names; empty where they cannot be read."""
    return set(_entries().get("flags", "").split())


def _entries() -> dict[str, str]:
    """What Linux lists of the first processor; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
