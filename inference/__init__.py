"""Fast CPU segmentation of 13 abdominal organs in CT.

>>> import inference
>>> labels = inference.segment("ct.nii.gz")  # a SimpleITK image

Names are imported when they are first used: ``import inference`` alone loads neither OpenVINO
nor SimpleITK.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.api import segment
    from inference.errors import AbdosegError, CaseError, CaseWarning, ModelError, UsageError
    from inference.model import Model
    from inference.organs import ORGANS
    from inference.plan import Plan

# Where the package openvino_telemetry is installed (openvino asks for it), OpenVINO reports over
# the network that it was imported. What reads patients' images reports nothing to anybody.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__version__ = "0.26.0"

__all__ = [
    "ORGANS",
    "AbdosegError",
    "CaseError",
    "CaseWarning",
    "Model",
    "ModelError",
    "Plan",
    "UsageError",
    "segment",
]

_HOME = {
    "ORGANS": "organs",
    "AbdosegError": "errors",
    "CaseError": "errors",
    "CaseWarning": "errors",
    "Model": "model",
    "ModelError": "errors",
    "Plan": "plan",
    "UsageError": "errors",
    "segment": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'inference' has no attribute {name!r}")
    value = getattr(import_module(f"inference.{_HOME[name]}"), name)
    globals()[name] = value
    return value
