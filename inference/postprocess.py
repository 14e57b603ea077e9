"""Anatomical clean-up of the network's answer, as far as the plan asks for it.

It works on the network's grid and edits the logits, so that the upsampled labels follow. A voxel
that loses its organ becomes background, as in nnU-Net: the next best class would often be another
organ, in a place where that one is just as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.decode import Labels, all_winners
from inference.errors import ModelError
from inference.plan import Plan

Logits = NDArray[np.floating[Any]]


def postprocess(
    logits: Logits, spacing: tuple[float, float, float], plan: Plan, threads: int = 1
) -> Labels | None:
    """Apply ``plan.postprocessing`` to logits, in place.

    The steps, each for the organs in its ``labels`` (label values) one after the other:

    - ``{"step": "keep_largest", "labels": [...]}``: all connected parts but the largest go.
    - ``{"step": "remove_small", "labels": [...], "millilitres": x}``: parts below x go.
    - ``{"step": "close", "labels": [...]}``: holes and notches of up to one voxel that are
      background are filled (morphological closing, 3 x 3 x 3).
    - ``{"step": "sides", "labels": [middle, right, left, right, left, ...]}``: a part of a right
      organ that lies to the left of the middle organ (the aorta, say) is the left organ's, and
      the reverse. The last axis must run to the patient's left, as it does in LPS orientation;
      without the middle organ nothing is done.

    Parts are connected through faces, edges and corners: parts that are not, share no cell of
    the interpolation, so removing one leaves the others' surface as it is.

    Args:
        logits: shape (C, z, y, x).
        spacing: millimetres per axis (z, y, x).
        plan: the steps, and which label each channel stands for.
        threads: how many slices are worked on at once.

    Returns:
        The channels (z, y, x) that win after it; ``None`` if the plan asks for no step.

    Raises:
        ModelError: a step that does not exist, a label that the model does not have.
    """
    if not plan.postprocessing:
        return None
    labels = all_winners(logits, threads)
    millilitres = float(np.prod(spacing)) / 1000
    for step in plan.postprocessing:
        try:
            channels = [plan.label_values.index(value) for value in step["labels"]]
            if 0 in channels:
                raise ValueError
            _STEPS[step["step"]](logits, labels, channels, millilitres, step)
        except (KeyError, ValueError):
            raise ModelError(f"plan of {plan.name!r}: bad postprocessing {dict(step)}") from None
    return labels


def _keep_largest(
    logits: Logits, labels: Labels, channels: list[int], voxel: float, step: Mapping[str, Any]
) -> None:
    for channel in channels:
        box, parts, sizes = _parts(labels, channel)
        largest = max(sizes, key=lambda part: sizes[part], default=0)
        _remove(logits, labels, channel, box, parts, [part for part in sizes if part != largest])


def _remove_small(
    logits: Logits, labels: Labels, channels: list[int], voxel: float, step: Mapping[str, Any]
) -> None:
    least = float(step["millilitres"])
    for channel in channels:
        box, parts, sizes = _parts(labels, channel)
        small = [part for part, size in sizes.items() if size * voxel < least]
        _remove(logits, labels, channel, box, parts, small)


def _close(
    logits: Logits, labels: Labels, channels: list[int], voxel: float, step: Mapping[str, Any]
) -> None:
    for channel in channels:
        box = _box(labels, channel)
        if box is None:
            continue
        here = labels[box]
        mask = sitk.GetImageFromArray((here == channel).astype(np.uint8))
        closed = sitk.BinaryMorphologicalClosing(mask, [1, 1, 1], sitk.sitkBox)
        added = (sitk.GetArrayViewFromImage(closed) != 0) & (here == 0)
        if added.any():
            part = logits[(slice(None),) + box]
            part[channel][added] = part[:, added].max(axis=0) + 1
            here[added] = channel


def _sides(
    logits: Logits, labels: Labels, channels: list[int], voxel: float, step: Mapping[str, Any]
) -> None:
    middle, pairs = channels[0], channels[1:]
    if not (labels == middle).any():
        return
    x = np.nonzero(labels == middle)[2].mean()
    for right, left in zip(pairs[::2], pairs[1::2], strict=True):
        # Both are looked at before either is changed.
        found = [(_parts(labels, a), a, b) for a, b in ((right, left), (left, right))]
        for (box, parts, sizes), channel, other in found:
            for part in sizes:
                mask = parts == part
                beyond = box[2].start + np.nonzero(mask)[2].mean() - x  # to the patient's left
                if beyond > 0 if channel == right else beyond < 0:
                    here = logits[(slice(None),) + box]
                    here[channel][mask], here[other][mask] = here[other][mask], here[channel][mask]
                    labels[box][mask] = other


_STEPS: dict[str, Callable[[Logits, Labels, list[int], float, Mapping[str, Any]], None]] = {
    "keep_largest": _keep_largest,
    "remove_small": _remove_small,
    "close": _close,
    "sides": _sides,
}


def _parts(labels: Labels, channel: int) -> tuple[Any, NDArray[Any], dict[int, int]]:
    """Connected parts of a class: the box around it, the parts in the box, their sizes."""
    box = _box(labels, channel)
    if box is None:
        return (), np.empty(0), {}
    mask = sitk.GetImageFromArray((labels[box] == channel).astype(np.uint8))
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(mask, True))
    sizes = np.bincount(parts.ravel())
    return box, parts, {part: int(sizes[part]) for part in range(1, len(sizes))}


def _remove(
    logits: Logits,
    labels: Labels,
    channel: int,
    box: tuple[slice, ...],
    parts: NDArray[Any],
    gone: list[int],
) -> None:
    """Turn parts of a class into background; the class becomes the least likely one there."""
    if not gone:
        return
    mask = np.isin(parts, gone)
    here = logits[(slice(None),) + box]
    values = here[:, mask]
    here[channel][mask] = values.min(axis=0) - 1
    here[0][mask] = values.max(axis=0) + 1
    labels[box][mask] = 0


def _box(labels: Labels, channel: int) -> tuple[slice, ...] | None:
    """The smallest box around a class, one voxel wider; ``None`` where there is none of it."""
    slices = [z for z, plane in enumerate(labels) if (plane == channel).any()]
    if not slices:
        return None
    z = slice(max(0, slices[0] - 1), slices[-1] + 2)
    mask = (labels[z] == channel).any(axis=0)  # seen from above
    box = [z]
    for axis in (0, 1):
        hits = np.flatnonzero(mask.any(axis=1 - axis))
        box.append(slice(max(0, int(hits[0]) - 1), int(hits[-1]) + 2))
    return tuple(box)
