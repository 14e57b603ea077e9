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

# Keys that only some plans show, most of them those of imported models.
_OPTIONAL = (
    "look", "channels", "transpose", "resampling", "outside", "mirror", "outputs", "regions",
    "members",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How a network wants its input and what its output means.

    Attributes:
        name: the model's name, that of its folder.
        version: the version of the weights.
        orientation: three letters, the sense of the image's x, y and z axes ("LPS"); ``None``
            leaves the volume as it is stored.
        spacing: millimetres per axis (z, y, x) of the network's grid; ``None`` keeps the
            image's own spacing along that axis.
        size: a fixed number of voxels per axis instead of a spacing, where not ``None``.
        crop: "body" (the box around the patient), "nonzero" (the box around what is not zero in
            any channel) or "none".
        clip: the HU range to which intensities are limited.
        subtract: taken from the clipped intensities.
        divide: then they are divided by this.
        patch: voxels (z, y, x) of a window.
        multiple: input sizes must be multiples of these (z, y, x), the network's total stride.
        tiling: "whole" (one pass where memory allows, else windows), "window", or "nnunet"
            (windows as nnU-Net sums them up, in half precision: `inference.patches`).
        overlap: share of a patch that neighbouring windows have in common, at least; patches are
            half covered again by the next at 0.5, nnU-Net's.
        bytes_per_voxel: peak memory of one pass per input voxel, measured at export.
        networks: precision ("f32", "bf16" or "int8") to the IR's file name in the folder.
        precision: which of ``networks`` is used unless the caller asks for another.
        labels: name to label value; the network's channel 0 is background, channel ``i`` the
            ``i``-th of these in ascending order of their values.
        postprocessing: steps of `inference.postprocess`, in order.
        look: "spacing" of a coarse grid and "margin", both in millimetres, for a first look that
            tells which part is segmented (`inference.locate`); empty for none.
        channels: for an imported nnU-Net model, one `inference.channels.Channel` per input
            channel; they take the place of ``clip``, ``subtract`` and ``divide``.
        transpose: the axis (of z, y, x) that becomes each axis after turning to ``orientation``;
            all else in a plan is said of the axes after it.
        resampling: with ``channels``, how "data" and "logits" are resampled, each a
            `inference.spline.Rule` or ``None`` (not at all).
        outside: normalised value around the volume; ``None`` for that of air.
        mirror: axes (0, 1, 2) along which the input is reflected too; logits are averaged.
        outputs: the label value of each output channel, where several may be the same;
            empty for background and ``labels``, ascending.
        regions: whether each channel is a region of its own, and ``outputs`` are painted in
            order where its logit is positive; else the largest logit wins.
        members: name to label values, where a region is made of several.
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
    orientation: str | None = "LPS"
    size: tuple[int | None, int | None, int | None] = (None, None, None)
    crop: str = "body"
    tiling: str = "whole"
    overlap: float = 0.5
    postprocessing: tuple[Mapping[str, Any], ...] = field(default=())
    look: Mapping[str, float] = field(default_factory=dict)
    channels: tuple[Mapping[str, Any], ...] = field(default=())
    transpose: tuple[int, int, int] = (0, 1, 2)
    resampling: Mapping[str, Any] = field(default_factory=dict)
    outside: float | None = None
    mirror: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    regions: bool = False
    members: Mapping[str, Any] = field(default_factory=dict)

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
        if self.tiling not in ("whole", "window", "nnunet"):
            problems.append(f"tiling {self.tiling!r} is none of 'whole', 'window', 'nnunet'")
        if self.crop not in ("body", "nonzero", "none"):
            problems.append(f"crop {self.crop!r} is none of 'body', 'nonzero', 'none'")
        if self.channels and set(self.resampling) != {"data", "logits"}:
            problems.append("channels need a resampling of 'data' and 'logits'")
        if self.crop == ("body" if self.channels else "nonzero"):
            problems.append(f"crop {self.crop!r} is not for this kind of plan")
        if self.look and not (
            set(self.look) == {"spacing", "margin"} and all(n > 0 for n in self.look.values())
        ):
            problems.append("look needs a spacing and a margin, both positive")
        if self.look and (self.channels or self.tiling != "whole" or None in self.spacing):
            problems.append("a look is only for tiling 'whole', a spacing and one CT channel")
        if sorted(self.transpose) != [0, 1, 2]:
            problems.append(f"transpose {list(self.transpose)} is no order of 0, 1, 2")
        if not set(self.mirror) <= {0, 1, 2}:
            problems.append(f"mirror {list(self.mirror)} has other axes than 0, 1, 2")
        if self.regions and not self.outputs:
            problems.append("regions need outputs")
        if self.regions and self.postprocessing:
            problems.append("regions cannot be post-processed")
        if not all(0 <= value < 256 for value in self.outputs):
            problems.append("outputs are not numbers from 0 to 255")
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
        """Label value of every output channel; background first unless they are regions."""
        return self.outputs or (0, *sorted(self.labels.values()))

    def choose(self, precision: str | None) -> str:
        """The precision that is asked for, or the model's own.

        Raises:
            ModelError: the model has no network of it.
        """
        precision = precision or self.precision
        if precision not in self.networks:
            raise ModelError(
                f"model {self.name!r} has no {precision!r} network, only "
                + ", ".join(sorted(self.networks))
            )
        return precision

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return max(1, len(self.channels))

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
        except (TypeError, ValueError) as error:  # too few numbers, say
            raise ModelError(f"{path}: {str(error).replace('Plan.__init__() ', '')}") from None
        for file in plan.networks.values():
            if not (folder / file).is_file():
                raise ModelError(f"{folder / file}: missing, though plan.json names it")
        return plan

    def save(self, folder: Path) -> None:
        """Write ``plan.json`` into a model folder."""
        content = {"format": FORMAT, **asdict(self)}
        for key in _OPTIONAL:
            if not content[key] or (key == "transpose" and content[key] == (0, 1, 2)):
                del content[key]
        if self.outside is not None:
            content["outside"] = self.outside
        (folder / "plan.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
