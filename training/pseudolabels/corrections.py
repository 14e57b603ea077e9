"""Corrections of pseudo-labels by hand: what an eye sees in the pictures and no network agrees on.

A YAML file holds a list per case. Its entries, done in their order, are of six kinds::

    cort_liver:
      - trust: [pancreas, duodenum]    # as the first look drew them, whatever the others say
      - doubt: [stomach]               # unknown, whatever the looks say; with a range: there
      - doubt: all                     # what has no label here is unknown, not background; with
        z: [50, 72]                    # HU only what lies between them: not gas, say
        hu: [-500, 3000]
      - erase: [inferior_vena_cava]    # is not in this box; with HU what lies between them is
        z: [104, 168]                  # not: a bright vein, say
      - clear: all                     # no organ is in this box, or none but ...
        but: [aorta, esophagus]
        z: [136, 168]
      - grow: [left_kidney]            # all of it is this: what lies between these HU in the box,
        z: [40, 95]                    # opened, the largest piece, holes filled
        y: [80, 125]
        x: [120, 165]
        hu: [10, 90]
      - draw: [pancreas]               # this too: what lies between these HU within an outline
        z: [60, 62]                    # of corners (x, y), where no other organ is
        outline: [[195, 210], [240, 200], [320, 245], [250, 250]]
        hu: [30, 140]

Ranges count voxels of the CT turned to LPS (z to the head, y to the back, x to the left), the
second number not included; an axis without a range is taken whole. ``NAME_preview.png`` beside the
pseudo-labels shows what there is to correct.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.path import Path as Outline
from scipy import ndimage

from inference.grid import Box
from inference.organs import LABEL_OF, ORGANS
from training.data.case import Case
from training.data.tissues import UNKNOWN
from training.yaml_file import load_yaml

KINDS = ("trust", "doubt", "erase", "clear", "grow", "draw")
_AXES = ("z", "y", "x")
_BACKGROUND = 0
_RIM = 10.0  # mm
_EVERY_HU = (-math.inf, math.inf)


@dataclass(frozen=True)
class Edit:
    """One entry of the file.

    Attributes:
        kind: one of `KINDS`.
        organs: label values; 0 where all that has no label is doubted.
        box: part of the array (z, y, x).
        hu: lowest and highest Hounsfield units of what grows, or is drawn, doubted or erased.
        outline: corners (x, y) of what is drawn.
    """

    kind: str
    organs: tuple[int, ...]
    box: Box = (slice(None), slice(None), slice(None))
    hu: tuple[float, float] = _EVERY_HU
    outline: tuple[tuple[float, float], ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is said of the whole CT."""
        everywhere = all(part == slice(None) for part in self.box)
        return everywhere and self.hu == _EVERY_HU


def load_corrections(path: Path, cases: Iterable[Case] | None = None) -> dict[str, list[Edit]]:
    """Read a file of corrections.

    Args:
        path: the file.
        cases: those that there are. Corrections of others, mistyped ones, would not be made, and
            are refused.

    Raises:
        ValueError: not YAML, an entry is of no known kind, or there is no such case, in one line.
        FileNotFoundError: there is no such file.
    """
    content = load_yaml(path) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not corrections: it names no cases")
    corrections = {}
    for case, edits in content.items():
        if not isinstance(edits, list) or not all(isinstance(entry, dict) for entry in edits):
            raise ValueError(f"{path}: not a list of corrections of {case}")
        try:
            corrections[str(case)] = [_edit(entry) for entry in edits]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: not corrections of {case} ({error})") from None
    if cases is not None and (lost := sorted(set(corrections) - {case.name for case in cases})):
        raise ValueError(f"{path}: corrections of {', '.join(lost)}: there is no such case")
    return corrections


def _edit(entry: Mapping[str, Any]) -> Edit:
    kinds = [kind for kind in KINDS if kind in entry]
    more = {
        "trust": set(),  # of the whole CT alone
        "doubt": {"hu", *_AXES},
        "erase": {"hu", *_AXES},
        "clear": {"but", *_AXES},
        "grow": {"hu", *_AXES},
        "draw": {"hu", "outline", *_AXES},
    }
    if len(kinds) != 1 or set(entry) - {*kinds, *more[kinds[0]]}:
        raise ValueError(f"{dict(entry)} is not one of {', '.join(KINDS)}")
    kind = kinds[0]
    organs: tuple[int, ...]
    if kind == "doubt" and entry[kind] == "all":
        organs = (_BACKGROUND,)
    elif kind == "clear":
        if entry[kind] != "all":
            raise ValueError(f"clear: {entry[kind]}: only 'all' can be cleared, 'but' some organs")
        spared = _organs(entry.get("but", []))
        organs = tuple(organ for organ in ORGANS if organ not in spared)
    else:
        organs = _organs(entry[kind])
        if not organs:
            raise ValueError(f"{dict(entry)} names no organ")
    z, y, x = (_range(entry[axis]) if axis in entry else slice(None) for axis in _AXES)
    if kind in ("grow", "draw") and "hu" not in entry:
        raise ValueError(f"{dict(entry)} has no hu")
    low, high = map(float, entry.get("hu", _EVERY_HU))
    if not low < high:
        raise ValueError(f"{dict(entry)}: hu is not a range")
    outline = tuple((float(a), float(b)) for a, b in entry.get("outline", ()))
    if kind == "draw" and (len(outline) < 3 or len(organs) != 1):
        raise ValueError(f"{dict(entry)} does not outline one organ")
    return Edit(kind, organs, (z, y, x), (low, high), outline)


def _organs(names: Any) -> tuple[int, ...]:
    if not isinstance(names, list) or set(names) - set(LABEL_OF):
        raise ValueError(f"{names} is no list of organs")
    return tuple(LABEL_OF[name] for name in names)


def _range(ends: Any) -> slice:
    first, last = ends
    if not (isinstance(first, int) and isinstance(last, int) and 0 <= first < last):
        raise ValueError(f"{ends} is no range of voxels")
    return slice(first, last)


def of_kind(edits: Sequence[Edit], *kinds: str) -> tuple[int, ...]:
    """The organs of all edits of these kinds; of doubts only those of the whole CT."""
    said = [edit for edit in edits if edit.kind in kinds and (edit.kind != "doubt" or edit.whole)]
    return tuple(organ for edit in said for organ in edit.organs if organ != _BACKGROUND)


def correct(
    labels: np.ndarray, hu: np.ndarray, spacing: Sequence[float], edits: Sequence[Edit]
) -> None:
    """Doubt in boxes, erase, clear, grow and draw, in place.

    Args:
        labels: uint8 (z, y, x), 255 where unknown.
        hu: of the same shape.
        spacing: mm per axis (z, y, x).
        edits: those of other kinds are passed over.

    Raises:
        ValueError: nothing grows in a box, or a box lies outside the CT.
    """
    for edit in edits:
        if any((part.start or 0) >= n for part, n in zip(edit.box, labels.shape, strict=True)):
            raise ValueError(f"{edit.kind}: its box lies outside the CT's {labels.shape} voxels")
        part = labels[edit.box]
        if edit.kind in ("doubt", "erase"):
            everywhere = edit.hu == _EVERY_HU
            within = everywhere or tissue(hu[edit.box], spacing, *edit.hu)
            meant = np.isin(part, edit.organs) & within
            part[meant] = UNKNOWN if edit.kind == "doubt" else _BACKGROUND
        elif edit.kind == "clear":
            part[np.isin(part, edit.organs) | _unknown_beyond_rims(part, edit.organs, spacing)] = 0
        elif edit.kind == "grow":
            for organ in edit.organs:
                labels[labels == organ] = 0
                part[_largest_piece(hu[edit.box], _free(part), spacing, *edit.hu)] = organ
        elif edit.kind == "draw":
            within = tissue(hu[edit.box], spacing, *edit.hu) & _drawn(labels, edit)
            part[_free(part) & within] = edit.organs[0]


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask that is connected through faces."""
    parts, count = ndimage.label(mask)
    if count <= 1:
        return mask
    largest: np.ndarray = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return largest


def _unknown_beyond_rims(
    labels: np.ndarray, cleared: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """What is unknown and not near an organ that is spared, of which it may be the rim."""
    spared = (labels > 0) & (labels != UNKNOWN) & ~np.isin(labels, cleared)
    unknown: np.ndarray = labels == UNKNOWN
    if spared.any() and unknown.any():
        unknown &= ndimage.distance_transform_edt(~spared, sampling=spacing) > _RIM
    return unknown


def _largest_piece(
    hu: np.ndarray, free: np.ndarray, spacing: Sequence[float], low: float, high: float
) -> np.ndarray:
    """The largest piece of a tissue where no other organ is, without bridges to its neighbours."""
    steps = np.indices((7, 7, 7)) - 3
    ball = sum((steps[i] * spacing[i] / 3.0) ** 2 for i in range(3)) <= 1.0
    inside = free & tissue(hu, spacing, low, high)
    largest = largest_part(ndimage.binary_opening(inside, ball))
    if not largest.any():
        raise ValueError(f"nothing between {low:g} and {high:g} HU grows in its box")
    # What opening took off the edges comes back; what hung on a bridge does not.
    whole = ndimage.binary_dilation(largest, ball) & inside
    filled: np.ndarray = free & ndimage.binary_fill_holes(whole)
    return filled


def _free(labels: np.ndarray) -> np.ndarray:
    """Where no organ is."""
    free: np.ndarray = np.isin(labels, (_BACKGROUND, UNKNOWN))
    return free


def tissue(hu: np.ndarray, spacing: Sequence[float], low: float, high: float) -> np.ndarray:
    """Where a CT, smoothed by 1.5 mm against noise, lies between two Hounsfield units.

    Args:
        hu: (z, y, x).
        spacing: mm per axis.
        low: lowest HU.
        high: highest HU.

    Returns:
        bool (z, y, x).
    """
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), [1.5 / step for step in spacing])
    between: np.ndarray = (smooth >= low) & (smooth <= high)
    return between


def _drawn(labels: np.ndarray, edit: Edit) -> np.ndarray:
    """The voxels (y, x) of the edit's box whose centres lie within its outline."""
    rows, columns = (range(n)[part] for n, part in zip(labels.shape[1:], edit.box[1:], strict=True))
    y, x = np.meshgrid(rows, columns, indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    inside: np.ndarray = Outline(edit.outline).contains_points(points).reshape(y.shape)
    return inside
