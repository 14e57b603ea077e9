"""HU of what is not uniform: hollow organs and their contents, kidneys, bone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from inference.phantom.solids import Float32Array

Intensity: TypeAlias = (
    float | Callable[[Float32Array, Float32Array, Float32Array, Float32Array], Float32Array]
)
"""HU: one number, or as it follows from the signed distance and x, y, z in mm."""


def gut(wall: float, content: float, thickness: float, gas_above: float | None) -> Intensity:
    """HU of a hollow organ: a wall, its content, and gas in front of a level (patients lie)."""

    def hu(d: Float32Array, x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        inner = np.clip((-d - thickness) / 1.5 + 0.5, 0, 1)
        filling: Any = np.float32(content)
        if gas_above is not None:
            gas = np.clip((gas_above - y) / 1.5 + 0.5, 0, 1)
            filling = content + gas * (-950 - content)
        return (wall + inner * (filling - wall)).astype(np.float32)

    return hu


def patchy(wall: float, content: float, thickness: float, phase: float) -> Intensity:
    """HU of bowel: a wall around content with bubbles of gas, here more, there none."""

    def hu(d: Float32Array, x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        inner = np.clip((-d - thickness) / 1.5 + 0.5, 0, 1)
        where = np.sin(x / 17 + phase) + np.sin(z / 21 + 2 * phase) + np.sin(y / 9) - y / 40
        gas = np.clip((where - 1.6) * 4, 0, 1)
        crumbs = 25 * np.sin(x / 2.1) * np.sin(y / 1.9) * np.sin(z / 2.3)
        filling = content + crumbs + gas * (-900 - content)
        return (wall + inner * (filling - wall)).astype(np.float32)

    return hu


def renal(cortex: float, medulla: float, phase: float) -> Intensity:
    """HU of a kidney: cortex outside and between the pyramids of the medulla."""

    def hu(d: Float32Array, x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        columns = 3.5 * np.sin(z / 3.2 + phase) * np.sin((x + y) / 4.0)
        deep = np.clip((-d - 7 + columns) / 3 + 0.5, 0, 1)
        return (cortex + deep * (medulla - cortex)).astype(np.float32)

    return hu


def vertebra(spongy: float, disc: float) -> Intensity:
    """HU of the spine's column: spongy bone in a shell, with a disc every 34 mm."""

    def hu(d: Float32Array, x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        step = np.abs(z / 34 - np.floor(z / 34) - 0.5) * 34  # 17 in a disc's middle
        shell = np.clip(1 - np.minimum(np.abs(d + 1), np.abs(step - 11.5)) / 1.2, 0, 1)
        value = spongy + shell * (430 - spongy)
        value = np.where(step > 12.5, disc, value)
        return np.where(z < -170, spongy + 40, value).astype(np.float32)

    return hu


def bone() -> Intensity:
    """HU of a flat or long bone: spongy inside, hard outside."""

    def hu(d: Float32Array, x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        hard = np.clip((d + 4) / 1.5 + 0.5, 0, 1)
        return (130 + hard * 420).astype(np.float32)

    return hu
