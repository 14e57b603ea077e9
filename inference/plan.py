"""`plan.json`: all that inference must know about a model, read and checked.

A model is a folder: ``plan.json``, the OpenVINO IR it names and a model card. No number of any
model stands in the code. Axis order everywhere in a plan is (z, y, x), as in nnU-Net's plans and
in numpy arrays made by SimpleITK.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from inference.errors import ModelError
from inference.grid import Shape
from inference.kinds import with_tuples
from inference.paths import is_file
from inference.plan_check import problems_of

FORMAT = 2
"""Version of the plan's format that this code reads and writes."""

NETWORK_FILES = {"f32": "network.xml", "bf16": "network.xml", "int8": "network_int8.xml"}
"""The names by which a model's IR is written, by precision; a plan may name others."""

# Keys that only some plans show, most of them those of imported models.
_OPTIONAL = (
    "bytes_per_pass", "clip_first", "look", "channels", "transpose", "resampling", "outside",
    "mirror", "outputs", "regions", "members",
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
        clip_first: a wider range, to which they are limited before the volume is resized; then
            ``clip`` comes after that. ``None`` for ``clip`` before, nnU-Net's order.
        subtract: taken from the clipped intensities.
        divide: then they are divided by this.
        patch: voxels (z, y, x) of a window, and of any pass at least: what is smaller is padded.
        multiple: input sizes must be multiples of these (z, y, x), the network's total stride.
        tiling: "whole" (one pass where memory allows, else windows), "window", or "nnunet"
            (windows as nnU-Net sums them up, in half precision: `inference.nnunet.patches`).
        overlap: share of a patch that neighbouring windows have in common, at least; patches are
            half covered again by the next at 0.5, nnU-Net's.
        bytes_per_voxel: the peak memory of one pass per input voxel, measured at export
            (`inference.network.pass_memory`), for every precision of ``networks``; empty where it
            is not known, and no pass is cut into windows for want of memory.
        bytes_per_pass: what it needs beside that, whatever its size, by precision.
        networks: precision ("f32", "bf16" or "int8") to the IR's file name in the folder.
        precision: which of ``networks`` is used unless the caller asks for another.
        labels: name to label value; the network's channel 0 is background, channel ``i`` the
            ``i``-th of these in ascending order of their values.
        postprocessing: steps of `inference.labels.postprocess`, in order.
        look: "model", the name of a model beside this one, whose first look tells which part is
            segmented (`inference.network.locate`), and the "margin" around what it finds,
            millimetres per axis; empty for none.
        channels: for an imported nnU-Net model, one `inference.nnunet.normalisation.Channel` per
            input channel; they take the place of ``clip``, ``subtract`` and ``divide``.
        transpose: the axis (of z, y, x) that becomes each axis after turning to ``orientation``;
            all else in a plan is said of the axes after it.
        resampling: with ``channels``, how "data" and "logits" are resampled, each a
            `inference.nnunet.spline.Rule` or ``None`` (not at all).
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
    patch: Shape
    multiple: Shape
    networks: Mapping[str, str]
    precision: str
    labels: Mapping[str, int]
    bytes_per_voxel: Mapping[str, float]
    bytes_per_pass: Mapping[str, float] = field(default_factory=dict)
    orientation: str | None = "LPS"
    size: tuple[int | None, int | None, int | None] = (None, None, None)
    clip_first: tuple[float, float] | None = None
    crop: str = "body"
    tiling: str = "whole"
    overlap: float = 0.5
    postprocessing: tuple[Mapping[str, Any], ...] = field(default=())
    look: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[Mapping[str, Any], ...] = field(default=())
    transpose: tuple[int, int, int] = (0, 1, 2)
    resampling: Mapping[str, Any] = field(default_factory=dict)
    outside: float | None = None
    mirror: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    regions: bool = False
    members: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problems := problems_of(self):
            raise ModelError("; ".join(problems))

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

    def pass_bytes(self, voxels: int) -> float:
        """Peak memory of one pass over so many voxels in ``precision``; 0 where it is unknown."""
        per_voxel = self.bytes_per_voxel.get(self.precision, 0.0)
        return voxels * per_voxel + self.bytes_per_pass.get(self.precision, 0.0)

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return max(1, len(self.channels))

    @property
    def air(self) -> float:
        """The normalised value around the volume: ``outside``, or that of air."""
        if self.outside is not None:
            return self.outside
        return (self.clip[0] - self.subtract) / self.divide

    @staticmethod
    def load(folder: Path) -> Plan:
        """Read ``plan.json`` of a model folder.

        Raises:
            ModelError: no such folder or file, not JSON, of another format, or keys that are
                missing, unknown, given twice, or have values that cannot be.
        """
        path = folder / "plan.json"
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text, parse_constant=_no_number, object_pairs_hook=_each_once)
        except FileNotFoundError:
            raise ModelError(f"{folder}: no model here (plan.json is missing)") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: cannot be read ({error})") from None
        found = content.pop("format", None) if isinstance(content, dict) else None
        if found != FORMAT:
            older = f" but {found}: export or import the model again"
            known = found in range(1, FORMAT)
            raise ModelError(f"{path}: not a plan of format {FORMAT}{older if known else ''}")
        keys = {f.name: f.default is f.default_factory is MISSING for f in fields(Plan)}
        for what, names in (
            ("unknown", set(content) - set(keys)),
            ("missing", {key for key, needed in keys.items() if needed} - set(content)),
        ):
            if names:
                raise ModelError(f"{path}: {what} keys {', '.join(sorted(names))}")
        try:
            plan = Plan(**with_tuples(content))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        for file in plan.networks.values():
            if not is_file(folder / file):
                raise ModelError(f"{folder / file}: missing, though plan.json names it")
        return plan

    def save(self, folder: Path) -> None:
        """Write ``plan.json`` into a model folder."""
        content: dict[str, Any] = {"format": FORMAT}
        for f in fields(self):
            value = getattr(self, f.name)
            usual = f.default if f.default_factory is MISSING else f.default_factory()
            if f.name not in _OPTIONAL or value != usual:
                content[f.name] = value
        (folder / "plan.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
    return content
