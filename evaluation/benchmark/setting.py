"""What of the benchmark can be asked for; apart, since the command's help must start at once."""

from __future__ import annotations

from typing import NamedTuple

GROUPS = {
    "nnunet": "its own predictor",
    "published": "the OpenVINO recipe",
    "ours": "with the same network",
    "models": "ours with those in weights/",
    "scaling": "ours with other numbers of threads",
    "peak": "what the machine can do",
}
"""Groups of rows, in the order of the table, and what they are."""

ISA_LEVELS = {
    "AVX2": "avx2",  # a laptop without VNNI
    "AVX512_CORE": "avx512f",  # a Xeon W-2133 (Skylake)
    "AVX512_CORE_BF16": "avx512_bf16",  # VNNI and bf16, no AMX
}
"""Values of ``ONEDNN_MAX_CPU_ISA``, and the flag of processors that have them."""


class Setting(NamedTuple):
    """How a benchmark is run.

    Attributes:
        groups: which of `GROUPS`.
        levels: which of `ISA_LEVELS` to repeat the OpenVINO rows with.
        threads: of every system that has no number of its own.
        repeats: runs of each; the systems take turns, and medians are reported.
        small: the shared network with a small patch and a small stack for the peak, for trying.
        quiet: whether no progress bar is shown.
    """

    groups: tuple[str, ...] = tuple(GROUPS)
    levels: tuple[str, ...] = tuple(ISA_LEVELS)
    threads: int = 1
    repeats: int = 3
    small: bool = False
    quiet: bool = False
