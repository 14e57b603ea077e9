"""What machine this is, in words for a model card."""

from __future__ import annotations

import torch

from inference.machine import usable_threads
from inference.processor import processor_name


def machine_in_words() -> str:
    """The GPU's name, else the CPU's with the number of cores that may be used."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return cpu_in_words()


def cpu_in_words() -> str:
    """The CPU's name with the number of cores that may be used."""
    return f"{usable_threads()} cores of a CPU ({processor_name()})"
