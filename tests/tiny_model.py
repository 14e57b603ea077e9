"""A model folder with a real OpenVINO network that needs no training, and a CT for it.

The network labels by intensity: its logits are triangles around given HU values, so that what
it answers can be predicted (the class whose value lies nearest wins). A 3 x 3 x 3 mean filter in
front gives it a neighbourhood, so that windows, padding and crops matter as they do for a
trained network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import SimpleITK as sitk
from numpy.typing import NDArray
from openvino import opset13 as ops

from inference.model import Model
from inference.network.windows import predict_in_windows
from inference.plan import Plan

PLENTY = 10**10
"""More memory than a test needs, in bytes."""

LEVELS = {0: -1000.0, 1: 100.0, 2: 200.0, 3: 300.0, 13: 400.0}
"""The HU value around which each label is the answer; between -450 and 50 it is background."""

LABELS = {"liver": 1, "right_kidney": 2, "spleen": 3, "left_kidney": 13}


def make_tiny_model(folder: Path, smooth: bool = True, inputs: int = 1, **changes: Any) -> Plan:
    """Write a tiny model into ``folder`` and return its plan.

    Args:
        folder: where to; made if it is missing.
        smooth: whether to average over 3 x 3 x 3 voxels first.
        inputs: input channels; of several the mean is taken.
        changes: fields of the plan that shall be other than the defaults here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    levels = [LEVELS[0], 0.0, *(LEVELS[value] for value in sorted(LABELS.values()))]
    source = ops.parameter([1, inputs, -1, -1, -1], np.float32, name="image")
    values = source if inputs == 1 else ops.reduce_mean(source, np.array([1]), keep_dims=True)
    if smooth:
        kernel = np.full((1, 1, 3, 3, 3), 1 / 27, np.float32)
        values = ops.convolution(values, ops.constant(kernel), [1] * 3, [1] * 3, [1] * 3, [1] * 3)
    centres = np.asarray(levels, np.float32).reshape(1, -1, 1, 1, 1) / 100
    nearness = ops.negative(ops.abs(ops.subtract(values, ops.constant(centres))))
    # Air and water are both background: the larger of the two.
    air = ops.slice(nearness, [0], [2], [1], [1])
    background = ops.reduce_max(air, ops.constant(np.array([1])), keep_dims=True)
    organs = ops.slice(nearness, [2], [len(levels)], [1], [1])
    network = ov.Model([ops.concat([background, organs], 1)], [source], "tiny")
    ov.save_model(network, folder / "network.xml", compress_to_fp16=False)
    plan = Plan(
        **{
            "name": folder.name,
            "version": "1",
            "spacing": (3.0, 2.0, 2.0),
            "clip": (-1000.0, 1000.0),
            "subtract": 0.0,
            "divide": 100.0,
            "patch": (16, 32, 32),
            "multiple": (4, 4, 4),
            "networks": {"f32": "network.xml"},
            "precision": "f32",
            "labels": LABELS,
            "bytes_per_voxel": dict.fromkeys(changes.get("networks", ["f32"]), 100.0),
            **changes,
        }
    )
    plan.save(folder)
    return plan


def make_ct(shape: tuple[int, int, int] = (20, 40, 44), seed: int = 0) -> sitk.Image:
    """A small body in air with four 'organs', boxes of 100 to 400 HU, without any symmetry."""
    rng = np.random.default_rng(seed)
    depth, height, width = shape
    volume = np.full(shape, -1000.0)
    volume[:, height // 8 : -height // 8, width // 10 : -width // 8] = 0
    for number, hu in enumerate((100, 200, 300, 400)):
        z = 2 + number * (depth - 8) // 6
        y = height // 4 + (number % 2) * height // 4
        x = width // 5 + (number // 2) * width // 3
        volume[z : z + depth // 3, y : y + height // 5, x : x + width // 5 + number] = hu
    volume += rng.normal(0, 3, shape)
    image = sitk.GetImageFromArray(volume.round().astype(np.int16))
    image.SetSpacing((1.5, 1.4, 2.5))
    image.SetOrigin((-30.5, 12.25, 700.0))
    return image


def volume_of(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """A normalised volume of noise."""
    return np.random.default_rng(1).uniform(-10, 5, shape).astype(np.float32)


def run(model: Model, volume: NDArray[np.float32], memory: int = PLENTY, **plan: Any) -> Any:
    """Logits of a volume, with some fields of the model's plan changed."""
    return predict_in_windows(model.network, volume, replace(model.plan, **plan), memory).copy()
