"""Which machine a number was measured on: no timing means anything without it."""

from __future__ import annotations

import os
import platform

from inference.machine import usable_threads
from inference.processor import instruction_sets, processor_name

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")


def describe() -> str:
    """One line: processor, its instructions that matter here, threads, memory, system."""
    there = instruction_sets()
    telling = [flag for flag in _TELLING_FLAGS if flag in there]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return ", ".join(
        [
            processor_name(),
            *([f"with {' '.join(telling)}"] if telling else []),
            f"{usable_threads()} of {os.cpu_count()} threads",
            f"{pages / 2**30:.0f} GiB memory",
            f"{platform.system()} {platform.release()}",
        ]
    )
