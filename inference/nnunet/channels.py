"""From one or several channels to a network's input, as nnU-Net v2 prepares them.

A plan with ``channels`` is prepared here, another one in `inference.preprocess.preprocess`. The
order is nnU-Net's: crop to what is not zero, normalise, resample. nnU-Net: Isensee et al., Nature
Methods 18, 203-211 (2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cc3d
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.grid import Box, Mask, Spacing, bounding_box, whole_box
from inference.nnunet.normalisation import Channel
from inference.nnunet.spline import Rule, resample
from inference.plan import Plan
from inference.preprocess.preprocess import Prepared, check_memory
from inference.preprocess.resample import shape_at_spacing


def channels_of(plan: Plan) -> list[Channel]:
    """The channels that a plan describes."""
    return [Channel.of(content) for content in plan.channels]


def check_channels(images: Sequence[sitk.Image], plan: Plan) -> tuple[str, ...]:
    """Check that a case's images are what a plan with channels wants, on one grid.

    Args:
        images: the channels, each checked by `inference.read.checks.check_geometry`.
        plan: the plan.

    Returns:
        What a user should know about them.

    Raises:
        CaseError: another number of channels, other sizes or spacings, voxels that are NaN or
            infinite.
    """
    if len(images) != plan.inputs:
        raise CaseError(f"{len(images)} channel(s) were given, the model wants {plan.inputs}")
    first = images[0]
    warnings = []
    for index, image in enumerate(images):
        name = plan.channels[index]["name"]
        if image.GetSize() != first.GetSize():
            sizes = (" x ".join(map(str, size)) for size in (image.GetSize(), first.GetSize()))
            raise CaseError("channel {!r} has {} voxels, the first one {}".format(name, *sizes))
        if not np.allclose(image.GetSpacing(), first.GetSpacing(), rtol=1e-4):
            raise CaseError(f"channel {name!r} has another spacing than the first one")
        if not (
            np.allclose(image.GetOrigin(), first.GetOrigin(), atol=1e-2)
            and np.allclose(image.GetDirection(), first.GetDirection(), atol=1e-3)
        ):
            warnings.append(f"channel {name!r} lies elsewhere than the first one; taken as if not")
        stored = sitk.GetArrayViewFromImage(image)
        if stored.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in stored):
            raise CaseError(f"channel {name!r} has voxels that are NaN or infinite")
    return tuple(warnings)


def preprocess_channels(
    volumes: Sequence[NDArray[Any]],
    spacing: Spacing,
    plan: Plan,
    threads: int = 1,
) -> Prepared:
    """Prepare a case's channels for the network.

    Args:
        volumes: one array (z, y, x) per channel, already turned to the plan's axes; any real
            type.
        spacing: millimetres per axis (z, y, x).
        plan: how the network wants its input; it has ``channels``.
        threads: how many parts of a volume are resampled at once.

    Returns:
        The network's input, ``values`` of shape (C, z, y, x), and where it lies in the volume.

    Raises:
        CaseError: every voxel is zero, a channel is not what the plan says, or there is not
            enough memory for it.
    """
    channels = channels_of(plan)
    masked = any(channel.masked for channel in channels)
    box, inside = _nonzero(volumes, masked) if plan.crop == "nonzero" else (None, None)
    if box is None:
        box = whole_box(volumes[0].shape)
    shape = tuple(part.stop - part.start for part in box)
    wanted = tuple(to or now for to, now in zip(plan.spacing, spacing, strict=True))
    rule = Rule.of(plan.resampling["data"])
    new_shape = shape_at_spacing(shape, spacing, wanted) if rule else shape
    # One channel more: a volume of its own while it is resampled.
    check_memory((1 + len(channels)) * math.prod(new_shape), shape, spacing)
    values = np.empty((len(channels), *new_shape), np.float32)
    for index, (volume, channel) in enumerate(zip(volumes, channels, strict=True)):
        part = np.array(volume[box], np.float32, order="C")
        channel.apply(part, inside)
        if rule:
            axis = rule.separate_axis(spacing, wanted)
            part = resample(part, new_shape, rule, axis, threads)
        values[index] = part
    z, y, x = wanted if rule else spacing
    return Prepared(values, box, (z, y, x))


def _nonzero(volumes: Sequence[NDArray[Any]], masked: bool) -> tuple[Box, Mask | None]:
    """The box around what is not zero in any channel, and that with its holes if ``masked``."""
    mask = volumes[0] != 0
    for volume in volumes[1:]:
        mask |= volume != 0
    box = bounding_box(mask)
    if box is None:
        raise CaseError("is zero everywhere")
    if not masked:
        return box, None
    # Holes are what cannot be reached from outside through voxels' faces (as in SciPy); the
    # frame makes sure that there is an outside.
    outside = np.pad(~mask[box], 1, constant_values=True)
    reached = cc3d.connected_components(outside, connectivity=6)
    return box, (reached != reached[0, 0, 0])[1:-1, 1:-1, 1:-1]
