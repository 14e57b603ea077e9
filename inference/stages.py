"""The stages of a case, and how each says how far it is."""

from __future__ import annotations

from collections.abc import Callable

STAGES = {
    "read": 10,
    "preprocess": 10,
    "look": 0,
    "compile": 5,
    "network": 55,
    "postprocess": 2,
    "labels": 13,
    "write": 5,
}
"""The stages of a case and how many per cent of its bar each takes, about as of its time."""

OnShare = Callable[[float], None]
"""Is called with the finished share of a stage."""

StageProgress = Callable[[str, float], None]
"""Is called with a stage and its finished share."""
