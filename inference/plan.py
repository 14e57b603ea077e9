"""`plan.json`: all that inference must know about a model, read and checked.

A model is a folder: ``plan.json``, the OpenVINO IR it names and a model card. No number of any
model stands in the code. Axis order everywhere in a plan is (z, y, x), as in nnU-Net's plans and
in numpy arrays made by SimpleITK.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from inference.errors import ModelError

FORMAT = 1
"""Version of the plan's format that this code reads and writes."""


@dataclass(frozen=True)
class Plan:
    """How a network wants its input and what its output means.

    Attributes:
        name: the model's name, that of its folder.
        version: the version of the weights.
        orientation: three letters, the sense of the image's x, y and z axes ("LPS").
        spacing: millimetres per axis (z, y, x) of the network's grid; ``None`` keeps the
            image's own spacing along that axis.
        size: a fixed number of voxels per axis instead of a spacing, where not ``None``.
        crop: "body" (the box around the patient) or "none".
        clip: the HU range to which intensities are limited.
        subtract: taken from the clipped intensities.
        divide: then they are divided by this.
        patch: voxels (z, y, x) of a window.
        multiple: input sizes must be multiples of these (z, y, x), the network's total stride.
        tiling: "whole" (one pass where memory allows, else windows) or "window".
        overlap: share of a window that the next one covers again (0.5 is nnU-Net's).
        bytes_per_voxel: peak memory of one pass per input voxel, measured at export.
        networks: precision ("f32", "bf16" or "int8") to the IR's file name in the folder.
        precision: which of ``networks`` is used unless the caller asks for another.
        labels: name to label value; the network's channel 0 is background, channel ``i`` the
            ``i``-th of these in ascending order of their values.
        postprocessing: steps of `inference.postprocess`, in order.
    """

    name: str
    version: str
    spacing: tuple[float | None, float | None, float | None]
    clip: tuple[float, float]
    subtract: float
    divide: float
    patch: tuple[int, int, int]
    multiple: tuple[int, int, int]
    networks: Mapping[str, str]
    precision: str
    labels: Mapping[str, int]
    bytes_per_voxel: float
    orientation: str = "LPS"
    size: tuple[int | None, int | None, int | None] = (None, None, None)
    crop: str = "body"
    tiling: str = "whole"
    overlap: float = 0.5
    postprocessing: tuple[Mapping[str, Any], ...] = field(default=())

    def __post_init__(self) -> None:
        problems = []
        if self.divide == 0:
            problems.append("divide is 0")
        if not self.clip[0] < self.clip[1]:
            problems.append(f"clip {list(self.clip)} is not a range")
        if any(step is not None and step <= 0 for step in self.spacing):
            problems.append(f"spacing {list(self.spacing)} is not positive")
        if any(p % m for p, m in zip(self.patch, self.multiple, strict=True)):
            problems.append(f"patch {self.patch} is no multiple of {self.multiple}")
        if self.tiling not in ("whole", "window"):
            problems.append(f"tiling {self.tiling!r} is neither 'whole' nor 'window'")
        if self.crop not in ("body", "none"):
            problems.append(f"crop {self.crop!r} is neither 'body' nor 'none'")
        if not 0 <= self.overlap < 1:
            problems.append(f"overlap {self.overlap} is not in [0, 1)")
        if self.precision not in self.networks:
            problems.append(f"precision {self.precision!r} has no network")
        if len(set(self.labels.values())) != len(self.labels) or not all(
            0 < value < 256 for value in self.labels.values()
        ):
            problems.append("labels are not different numbers from 1 to 255")
        if problems:
            raise ModelError(f"plan of {self.name!r}: " + "; ".join(problems))

    @property
    def label_values(self) -> tuple[int, ...]:
        """Label value of every output channel, background first."""
        return (0, *sorted(self.labels.values()))

    @staticmethod
    def load(folder: Path) -> Plan:
        """Read ``plan.json`` of a model folder.

        Raises:
            ModelError: no such folder or file, not JSON, of another format, or keys that are
                missing, unknown or contradict each other.
        """
        path = folder / "plan.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{folder}: no model here (plan.json is missing)") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read ({error})") from None
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ModelError(f"{path}: not a plan of format {FORMAT}")
        known = {f.name for f in fields(Plan)}
        if unknown := sorted(set(content) - known):
            raise ModelError(f"{path}: unknown keys {', '.join(unknown)}")
        for key, value in content.items():
            if isinstance(value, list):
                content[key] = tuple(value)
        try:
            plan = Plan(**content)
        except TypeError as error:
            raise ModelError(f"{path}: {str(error).replace('Plan.__init__() ', '')}") from None
        for file in plan.networks.values():
            if not (folder / file).is_file():
                raise ModelError(f"{folder / file}: missing, though plan.json names it")
        return plan

    def save(self, folder: Path) -> None:
        """Write ``plan.json`` into a model folder."""
        content = {"format": FORMAT, **asdict(self)}
        (folder / "plan.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
