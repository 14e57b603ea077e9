"""What machine this is, in words for a model card."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from inference.machine import usable_threads


def machine_in_words() -> str:
    """The GPU's name, else the CPU's with the number of cores that may be used."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return cpu_in_words()


def cpu_in_words() -> str:
    """The CPU's name with the number of cores that may be used."""
    cores = usable_threads()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{cores} cores of a CPU ({name})"
