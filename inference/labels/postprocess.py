"""Anatomical clean-up of the network's answer, as far as the plan asks for it.

It works on the network's grid and edits the logits, so that the upsampled labels follow. A voxel
that loses its organ becomes background, as in nnU-Net: the next best class would often be another
organ, in a place where that one is just as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from inference.grid import Box, Mask, Spacing, voxel_millilitres
from inference.hounsfield import NO_TISSUE
from inference.network.logits import Logits, above, below, comparable, floats
from inference.network.winners import Channels, all_winners
from inference.plan import Plan
from inference.preprocess.morphology import closed, grown
from inference.preprocess.resample import nearest_voxels

_BESIDE = 40.0  # mm around an organ in which a pocket of gas is looked at
_USUAL = 60.0  # mm of a vessel's lower end that its usual cross-section is measured in
_SPECK = 0.1  # of a vessel's largest part: what is smaller does not tell where it ends
_EDGE = 2  # voxels that a pocket's blurred edge is thick


def postprocess(
    logits: Logits,
    spacing: Spacing,
    plan: Plan,
    threads: int = 1,
    ct: NDArray[Any] | None = None,
    offset: float = 0.0,
) -> Channels | None:
    """Apply ``plan.postprocessing`` to logits, in place.

    The steps, each for the organs in its ``labels`` (label values):

    - ``{"step": "keep_largest", "labels": [...]}``: all connected parts but the largest go. With
      ``"cut_millilitres": x``, parts from x on stay if the first or the last slice of the logits
      cuts them and the largest one alike: outside the field of view they may be one, as the
      ascending and the descending aorta are in the arch.
    - ``{"step": "remove_small", "labels": [...], "millilitres": x}``: parts below x go.
    - ``{"step": "close", "labels": [...]}``: holes and notches of up to one voxel that are
      background are filled (morphological closing, 3 x 3 x 3).
    - ``{"step": "foreign_gas", "labels": [...], "hu": h, "share": s}``: gas fills one organ, so a
      pocket of it (voxels below h that are connected through faces) of which less than the share
      s is labelled as an organ is not that organ's: its label goes from there, from the pocket's
      blurred edge and from one voxel around them, its wall. Meant for colon beside the stomach, and
      for the airways beside the esophagus (an h below the lung's). With ``"wall": false`` that
      voxel stays: meant for lung beside the esophagus (an h above the lung's), where the nearest
      wall is the organ's own. With an h as low as -800 a wall of 2 mm keeps pockets apart, and from
      the lung, in slices of up to 8 mm. What lies further than 40 mm from the organ is not looked
      at.
    - ``{"step": "cut_necks", "labels": [...], "millimetres": m, "share": s}``: what hangs on an
      organ by a neck. Where a part of it, eroded by m millimetres, falls into pieces, those smaller
      than the share s of the largest go, with all that lies nearer to them. Meant for bowel
      that is taken for stomach; a gallbladder has a neck of its own. A grid coarser than 2 m
      along an axis is not eroded along it.
    - ``{"step": "cut_tail", "labels": [...], "share": s, "millimetres": m}``: below its fork a
      vessel's label may run on into one of the branches. Its lowest slices go as long as their
      cross-section is below the share s of the usual one: the median over its lowest 60 mm, or
      over all of it where that is less (below an aneurysm). Where that is more than m
      millimetres, none does. Parts of less than a tenth of the largest are not looked at. A
      vessel that the first slice cuts has no end there. The first axis must run upwards, as it
      does in LPS orientation.
    - ``{"step": "sides", "labels": [middle, right, left, right, left, ...]}``: a part of a right
      organ that lies to the left of the middle organ (the aorta, say) is the left organ's, and
      the reverse. The last axis must run to the patient's left, as it does in LPS orientation;
      without the middle organ nothing is done.

    Parts are connected through faces, edges and corners: parts that are not, share no cell of
    the interpolation, so removing one leaves the others' surface as it is. "foreign_gas",
    "cut_necks" and "cut_tail" cut through parts: the surface of what touches the cut may move.

    Args:
        logits: shape (C, z, y, x).
        spacing: millimetres per axis (z, y, x).
        plan: the steps, and which label each channel stands for.
        threads: how many slices are worked on at once.
        ct: what the logits cover, edge to edge, shape (Z, Y, X); only "foreign_gas" needs it.
        offset: what has to be added to the CT's values to make them HU.

    Returns:
        The channels (z, y, x) that win after it; ``None`` if the plan asks for no step.

    Raises:
        ValueError: a step needs the CT, and there is none.
    """
    if not plan.postprocessing:
        return None
    winning = all_winners(logits, threads)
    answer = _Answer(logits, winning, spacing, ct, offset)
    for step in plan.postprocessing:
        channels = [plan.label_values.index(value) for value in step["labels"]]
        _STEPS[step["step"]](answer, channels, step)
    return winning


_Voxels = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class _Parts:
    """The connected parts of all classes but the background.

    Attributes:
        voxels: where a class wins, indices along z, y, x.
        part: the part that each of these voxels belongs to, from 0.
        sizes: voxels of each part.
        channels: the class of each part; 0 once it has become background.
    """

    voxels: _Voxels
    part: NDArray[np.int64]
    sizes: NDArray[np.int64]
    channels: NDArray[np.uint8]

    @staticmethod
    def of(winning: Channels) -> _Parts:
        numbered = cc3d.connected_components(winning, connectivity=26)
        there = np.flatnonzero(winning != 0)  # of truth values it is twice as fast
        part = numbered.ravel()[there].astype(np.int64) - 1
        sizes = np.bincount(part)
        channels = np.zeros(len(sizes), np.uint8)
        channels[part] = winning.ravel()[there]
        z, y, x = np.unravel_index(there, winning.shape)
        return _Parts((z, y, x), part, sizes, channels)

    def cut_by(self, z: int) -> NDArray[np.bool_]:
        """Whether each part has voxels in a slice."""
        there = np.zeros(len(self.sizes), bool)
        there[self.part[self.voxels[0] == z]] = True
        return there

    def voxels_of(self, chosen: NDArray[np.bool_]) -> _Voxels:
        """The voxels of some parts."""
        z, y, x = (along[chosen[self.part]] for along in self.voxels)
        return z, y, x


@dataclass
class _Answer:
    """The network's answer, which the steps edit in place.

    Attributes:
        logits: shape (C, z, y, x).
        winning: the channels that win, (z, y, x).
        spacing: millimetres per axis (z, y, x).
        ct: what they cover, shape (Z, Y, X).
        offset: what has to be added to the CT's values to make them HU.
    """

    logits: Logits
    winning: Channels
    spacing: Spacing
    ct: NDArray[Any] | None
    offset: float
    _parts: _Parts | None = None

    def parts(self) -> _Parts:
        """The connected parts, sought once as long as only whole ones are removed."""
        if self._parts is None:
            self._parts = _Parts.of(self.winning)
        return self._parts

    def hu(self, box: Box) -> NDArray[Any]:
        """Hounsfield units of a part of the grid: of the CT's voxels at its voxels' middles."""
        if self.ct is None:
            raise ValueError("gas cannot be sought without the CT")
        at = [
            nearest_voxels(m, n)[part]
            for part, n, m in zip(box, self.winning.shape, self.ct.shape, strict=True)
        ]
        return self.ct[np.ix_(*at)] + self.offset

    def forget_parts(self) -> None:
        """Say that something else has changed."""
        self._parts = None

    def remove(self, gone: NDArray[np.bool_]) -> None:
        """Turn parts into background."""
        parts = self.parts()
        self.clear(parts.voxels_of(gone))
        parts.channels[gone] = 0

    def clear(self, there: _Voxels) -> None:
        """Turn voxels into background; their class becomes the least likely one there."""
        values = floats(self.logits[(slice(None),) + there])
        self.logits[(self.winning[there],) + there] = below(values.min(axis=0), self.logits.dtype)
        self.logits[(0,) + there] = above(values.max(axis=0), self.logits.dtype)
        self.winning[there] = 0


def _keep_largest(answer: _Answer, channels: list[int], step: Mapping[str, Any]) -> None:
    parts = answer.parts()
    gone = np.isin(parts.channels, channels)
    least = float(step.get("cut_millilitres", np.inf))
    large = parts.sizes * voxel_millilitres(answer.spacing) >= least
    ends = [parts.cut_by(z) for z in (0, len(answer.winning) - 1)] if large.any() else []
    for channel in channels:
        mine = np.flatnonzero(parts.channels == channel)
        if not len(mine):
            continue
        largest = mine[parts.sizes[mine].argmax()]
        gone[largest] = False
        for cut in ends:
            if cut[largest]:
                gone[mine[cut[mine] & large[mine]]] = False
    answer.remove(gone)


def _remove_small(answer: _Answer, channels: list[int], step: Mapping[str, Any]) -> None:
    parts = answer.parts()
    small = parts.sizes * voxel_millilitres(answer.spacing) < float(step["millilitres"])
    answer.remove(small & np.isin(parts.channels, channels))


def _close(answer: _Answer, channels: list[int], step: Mapping[str, Any]) -> None:
    logits, winning = answer.logits, answer.winning
    for channel in channels:
        box = _box(winning, channel)
        if box is None:
            continue
        here = winning[box]
        added = closed(here == channel) & (here == 0)
        if added.any():
            part = logits[(slice(None),) + box]
            best = floats(part[:, added]).max(axis=0)
            part[channel][added] = above(best, logits.dtype)
            here[added] = channel
    answer.forget_parts()


def _foreign_gas(answer: _Answer, channels: list[int], step: Mapping[str, Any]) -> None:
    winning = answer.winning
    for channel in channels:
        box = _box(winning, channel, [max(1, round(_BESIDE / mm)) for mm in answer.spacing])
        if box is None:
            continue
        mine = winning[box] == channel
        hu = answer.hu(box)
        pockets = cc3d.connected_components(hu < float(step["hu"]), connectivity=6)
        sizes = np.bincount(pockets.ravel())
        inside = np.bincount(pockets[mine], minlength=len(sizes))
        is_foreign = inside < float(step["share"]) * sizes
        is_foreign[0] = False  # no gas
        own = (pockets > 0) & ~is_foreign[pockets]
        foreign = is_foreign[pockets] & mine
        # Edges belong to the pocket that they are nearest to.
        edges = (hu < NO_TISSUE) & (pockets == 0)
        foreign, own = _grown_apart(foreign, own, edges, _EDGE)
        gone = mine & (grown(foreign) if step.get("wall", True) else foreign) & ~own
        z, y, x = (at + part.start for at, part in zip(np.nonzero(gone), box, strict=True))
        answer.clear((z, y, x))
    answer.forget_parts()


def _grown_apart(one: Mask, other: Mask, into: Mask, times: int) -> tuple[Mask, Mask]:
    """Two masks that grow into a third, each where it is first; where they meet, both."""
    for _ in range(times):
        one, other = one | (grown(one) & into & ~other), other | (grown(other) & into & ~one)
    return one, other


def _cut_necks(answer: _Answer, channels: list[int], step: Mapping[str, Any]) -> None:
    winning = answer.winning
    times = [int(float(step["millimetres"]) / mm + 0.5) for mm in answer.spacing]
    for channel in channels:
        box = _box(winning, channel)
        if box is None or not any(times):
            continue
        mine = winning[box] == channel
        cores = cc3d.connected_components(~grown(~mine, times), connectivity=26)
        sizes = np.bincount(cores.ravel())
        sizes[0] = 0
        # Each is measured by the largest of its own part: parts apart are other steps' matter.
        parts = cc3d.connected_components(mine, connectivity=26)
        part_of = np.zeros(len(sizes), np.int64)
        part_of[cores.ravel()] = parts.ravel()
        largest = np.zeros(int(parts.max()) + 1, np.int64)
        np.maximum.at(largest, part_of, sizes)
        hangs = sizes < float(step["share"]) * largest[part_of]
        hangs[0] = False
        foreign, own = hangs[cores], (cores > 0) & ~hangs[cores]
        foreign, own = _grown_apart(foreign, own, mine, max(times) + _EDGE)
        gone = foreign & ~own
        z, y, x = (at + part.start for at, part in zip(np.nonzero(gone), box, strict=True))
        answer.clear((z, y, x))
    answer.forget_parts()


def _cut_tail(answer: _Answer, channels: list[int], step: Mapping[str, Any]) -> None:
    parts = answer.parts()
    height = answer.spacing[0]
    most = int(float(step["millimetres"]) / height)
    for channel in channels:
        own = parts.channels == channel
        own &= parts.sizes >= _SPECK * parts.sizes[own].max(initial=0)
        mine = parts.voxels_of(own)
        if not len(mine[0]) or mine[0].min() == 0:
            continue
        lowest = mine[0].min()
        areas = np.bincount(mine[0] - lowest)
        usual = min(np.median(areas[: max(1, round(_USUAL / height))]), np.median(areas))
        wide = np.flatnonzero(areas[: most + 1] >= float(step["share"]) * usual)
        if len(wide):
            below_it = mine[0] < lowest + wide[0]
            z, y, x = (along[below_it] for along in mine)
            answer.clear((z, y, x))
    answer.forget_parts()


def _sides(answer: _Answer, channels: list[int], step: Mapping[str, Any]) -> None:
    logits, winning = answer.logits, answer.winning
    middle, pairs = channels[0], channels[1:]
    if not (winning == middle).any():
        return
    x = np.nonzero(winning == middle)[2].mean()
    parts = answer.parts()
    beyond = np.bincount(parts.part, parts.voxels[2]) / parts.sizes - x  # to the patient's left
    for right, left in zip(pairs[::2], pairs[1::2], strict=True):
        for channel, other, wrong in ((right, left, beyond > 0), (left, right, beyond < 0)):
            there = parts.voxels_of(wrong & (parts.channels == channel))
            here, mirrored = (channel, *there), (other, *there)
            logits[here], logits[mirrored] = logits[mirrored], logits[here]
            # Of equal logits the first channel's would win.
            values = logits[(slice(None),) + there]
            tied = comparable(values).argmax(axis=0) != other
            best = floats(values[:, tied]).max(axis=0)
            z, y, x = (along[tied] for along in there)
            logits[other, z, y, x] = above(best, logits.dtype)
            winning[there] = other
    answer.forget_parts()


_STEPS: dict[str, Callable[[_Answer, list[int], Mapping[str, Any]], None]] = {
    "keep_largest": _keep_largest,
    "remove_small": _remove_small,
    "close": _close,
    "foreign_gas": _foreign_gas,
    "cut_necks": _cut_necks,
    "cut_tail": _cut_tail,
    "sides": _sides,
}


def _box(winning: Channels, channel: int, margin: Sequence[int] = (1, 1, 1)) -> Box | None:
    """The smallest box around a class, wider by some voxels; ``None`` where there is none of it."""
    slices = [z for z, plane in enumerate(winning) if (plane == channel).any()]
    if not slices:
        return None
    mask = (winning[slices[0] : slices[-1] + 1] == channel).any(axis=0)  # seen from above
    hits = (slices, *(np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (1, 0)))
    z, y, x = (
        slice(max(0, there[0] - wider), there[-1] + 1 + wider)
        for there, wider in zip(hits, margin, strict=True)
    )
    return z, y, x
