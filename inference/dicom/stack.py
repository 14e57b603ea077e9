"""A DICOM series' slices in their order along the body; what is no regular stack is refused.

SimpleITK's own series reader takes slices that are missing, doubled or shifted against each other
without an error. Here each slice's header is looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inference.dicom.header import Slice
from inference.errors import CaseError

SAME_PLACE = 0.01
"""Millimetres within which two slices lie in one place."""

_SAME_DIRECTION = 1e-3  # of unit vectors, as headers round
_PERPENDICULAR = 0.05  # from here on axes make no sense
_SAME_SPACING = 1e-3  # relative
_UNEVEN = 0.1  # of the distance between slices; from here on it is said
_GAP = 0.75  # of the least distance; headers of thin slices round, a lost slice doubles it
_OFF = 0.5  # of the distance; from here on labels would lie in another slice than their organ
_SHIFTED = 1.0  # pixels; from here on a stack leans


def stack(slices: Sequence[Slice]) -> tuple[list[Slice], float, tuple[str, ...]]:
    """Put slices into their order along the body.

    Returns:
        The slices along their normal, the distance between them in mm, and what a user should
        know about it.

    Raises:
        CaseError: they are no regular stack. The message names slices, not the folder.
    """
    check_alike(slices)
    axes, perpendicular = axes_of(slices[0])
    normal = np.cross(*axes)
    ordered = sorted(slices, key=lambda one: float(np.dot(one.position, normal)))
    positions = np.array([one.position for one in ordered])
    heights = positions @ normal
    steps = np.diff(heights)
    closest, widest = int(steps.argmin()), int(steps.argmax())

    def names(index: int) -> str:
        return f"({ordered[index].name}, {ordered[index + 1].name})"

    if steps[closest] < SAME_PLACE:
        raise CaseError(f"has slices in one place, of several phases perhaps {names(closest)}")
    step = float(heights[-1] - heights[0]) / len(steps)
    off = np.abs(heights - heights[0] - step * np.arange(len(heights))).max()
    span = f"{steps[closest]:.4g} to {steps[widest]:.4g} mm apart"
    if steps[widest] > (1 + _GAP) * steps[closest] or off > _OFF * step:
        raise CaseError(f"has slices {span}: some are missing perhaps {names(widest)}")
    if _mixed([one.acquisition for one in ordered]):
        raise CaseError("has slices of several acquisitions among each other")
    if _mixed([one.kernel for one in ordered]):
        raise CaseError("has slices of several reconstructions among each other")
    beside = np.ptp((positions - positions[0]) @ axes.T, axis=0)
    if (beside > _SHIFTED * np.array(slices[0].spacing)).any():
        raise CaseError(
            "has slices that are shifted against each other, by a tilted gantry perhaps"
        )
    warnings = []
    if off > _UNEVEN * step:
        warnings.append(f"its slices are {span}; taken as {step:.4g} mm")
    if not perpendicular:
        warnings.append("its axes are not perpendicular; taken as if they were")
    return ordered, step, tuple(warnings)


def axes_of(one: Slice) -> tuple[NDArray[np.float64], bool]:
    """A slice's axes (2, 3), made perpendicular, and whether they were, as well as headers say.

    Raises:
        CaseError: they are far from it.
    """
    axes = np.reshape(one.axes, (2, 3))
    off = np.abs(axes @ axes.T - np.eye(2)).max()
    if off > _PERPENDICULAR:
        raise CaseError("has impossible axis directions")
    row = axes[0] / np.linalg.norm(axes[0])
    column = axes[1] - (axes[1] @ row) * row
    return np.array([row, column / np.linalg.norm(column)]), bool(off < _SAME_DIRECTION)


def check_alike(slices: Sequence[Slice]) -> None:
    """Raise CaseError where slices do not belong to one volume."""
    if len(slices) < 2:
        raise CaseError("is a single slice")
    first = slices[0]
    for one in slices:
        names = f"({first.name}, {one.name})"
        if one.inverted:
            raise CaseError(f"has a slice with inverted values (MONOCHROME1): {one.name}")
        if one.size != first.size:
            a, b = ("{} x {}".format(*each.size) for each in (first, one))
            raise CaseError(f"has slices of {a} and of {b} pixels {names}")
        if not np.allclose(one.spacing, first.spacing, rtol=_SAME_SPACING, atol=0):
            raise CaseError(f"has slices of different pixel spacing {names}")
        if not np.allclose(one.axes, first.axes, atol=_SAME_DIRECTION):
            raise CaseError(f"has slices in different directions {names}")


def _mixed(values: Sequence[str]) -> bool:
    """Whether values come back after others, where they are known at all."""
    known = [value for value in values if value]
    return sum(1 for _ in itertools.groupby(known)) > len(set(known))
