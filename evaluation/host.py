"""Which machine a number was measured on: no timing means anything without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from inference.machine import usable_threads

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")


def processor() -> str:
    """The processor's name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def flags() -> set[str]:
    """The processor's instruction sets, by Linux' names; empty where they cannot be read."""
    return set(_cpuinfo().get("flags", "").split())


def describe() -> str:
    """One line: processor, its instructions that matter here, threads, memory, system."""
    telling = [flag for flag in _TELLING_FLAGS if flag in flags()]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return ", ".join(
        [
            processor(),
            *([f"with {' '.join(telling)}"] if telling else []),
            f"{usable_threads()} of {os.cpu_count()} threads",
            f"{pages / 2**30:.0f} GiB memory",
            f"{platform.system()} {platform.release()}",
        ]
    )


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of Linux' list, empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
