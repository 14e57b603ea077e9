"""What several looks at a CT agree on, and which of it is anatomically plausible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference.grid import Spacing, voxel_millilitres
from inference.organs import ORGANS
from training.agreement import dice
from training.data.tissues import UNKNOWN, on_wrong_sides
from training.pseudolabels.corrections import largest_part

_PLAUSIBLE_ML: dict[str, tuple[float, float]] = {
    "liver": (400, 4500),
    "right_kidney": (40, 600),
    "spleen": (30, 1500),
    "pancreas": (15, 250),
    "aorta": (15, 500),
    "inferior_vena_cava": (15, 250),
    "right_adrenal_gland": (1, 20),
    "left_adrenal_gland": (1, 20),
    "gallbladder": (3, 250),
    "esophagus": (3, 80),
    "stomach": (30, 2000),
    "duodenum": (15, 250),
    "left_kidney": (40, 600),
}


@dataclass(frozen=True)
class PseudoLabels:
    """What was kept of one CT.

    Attributes:
        labels: uint8 (z, y, x), 255 where unknown; nothing in what
            `training.pseudolabels.pseudolabel.pseudolabel` returns.
        kept: organs that passed the filter.
        agreement: lowest DSC between two looks, per organ that was seen at all.
    """

    labels: np.ndarray
    kept: tuple[int, ...]
    agreement: dict[int, float]

    def described(self, organ: int) -> str:
        """The organ's name, with the agreement on it if it was seen: "liver (0.97)"."""
        seen = organ in self.agreement
        return f"{ORGANS[organ]} ({self.agreement[organ]:.2f})" if seen else ORGANS[organ]


def judge(
    looks: list[np.ndarray],
    spacing: Spacing,
    least: float,
    trusted: Sequence[int] = (),
    doubted: Sequence[int] = (),
) -> PseudoLabels:
    """Decide what several label maps (z, y, x) of one CT agree on.

    An organ is kept if every two looks agree on it (DSC at least ``least``), its volume is
    plausible unless it touches the scan's first or last slice, and liver and spleen, the two
    kidneys and the two adrenal glands lie on their sides. Of a kept organ only its largest
    connected part counts; other parts, and voxels on which looks differ, are unknown.

    Args:
        looks: at least one.
        spacing: mm per axis (z, y, x).
        least: DSC that an organ needs.
        trusted: organs that are kept as the first look has them, whatever the rules say.
        doubted: organs that are not kept.
    """
    first = looks[0]
    same = np.all([look == first for look in looks], axis=0) | np.isin(first, trusted)
    agreement: dict[int, float] = {}
    kept = []
    for organ, name in ORGANS.items():
        masks = [look == organ for look in looks]
        if not any(mask.any() for mask in masks):
            continue
        pairs = [dice(a, b) or 0.0 for i, a in enumerate(masks) for b in masks[:i]]
        agreement[organ] = min(pairs, default=1.0)
        mask = largest_part(masks[0])
        low, high = _PLAUSIBLE_ML[name]
        volume = mask.sum() * voxel_millilitres(spacing)
        cut = mask[0].any() or mask[-1].any()
        if agreement[organ] >= least and volume <= high and (cut or volume >= low):
            kept.append(organ)
    wrong = {*on_wrong_sides(first), *doubted}
    kept = sorted({*(organ for organ in kept if organ not in wrong), *trusted})
    labels = np.where(same, first, UNKNOWN).astype(np.uint8)
    for organ in ORGANS:
        seen = np.any([look == organ for look in looks], axis=0)
        if organ not in kept:
            labels[seen & ~np.isin(labels, trusted)] = UNKNOWN
        else:
            labels[(labels == organ) & ~largest_part(first == organ)] = UNKNOWN
    return PseudoLabels(labels, tuple(kept), agreement)
