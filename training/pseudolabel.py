"""Labels for unlabelled CTs from a network's own predictions, kept only where it is sure.

The network looks at each CT several times: at its own spacing, and enlarged and shrunk a little,
with shifted intensities. A voxel is kept where the looks agree, an organ only where they agree
as a whole and it is anatomically plausible; everything else is unknown to the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from inference.organs import LABEL_OF, ORGANS
from inference.resample import resize
from training.bodies import anchored
from training.config import Config
from training.export import load_average
from training.samples import UNKNOWN
from training.train import dice, logits_of

_LOOKS = ((1.0, 0.0), (0.92, 15.0), (1.08, -15.0))
"""Relative voxel size and HU shift of each look."""

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
        labels: uint8 (z, y, x), 255 where unknown.
        kept: organs that passed the filter.
        agreement: lowest DSC between two looks, per organ that was seen at all.
    """

    labels: np.ndarray
    kept: tuple[int, ...]
    agreement: dict[int, float]


def pseudolabel(
    checkpoint: Path, config: Config, prepared: Path, least: float = 0.85
) -> dict[str, PseudoLabels]:
    """Label the prepared CTs that have no labels; writes ``pseudo/NAME.npz`` beside ``images/``.

    Args:
        checkpoint: the network's checkpoint.
        config: its configuration.
        prepared: folder that `training.prepare.prepare` wrote.
        least: DSC between looks that an organ needs to be kept.

    Returns:
        What was kept, by case; a case without any organ is not written.
    """
    network = load_average(checkpoint, config)
    (prepared / "pseudo").mkdir(exist_ok=True)
    result = {}
    for path in sorted((prepared / "images").glob("*.npz")):
        with np.load(path) as content:
            hu, annotated = content["hu"], content["annotated"]
        if annotated.size or path.stem in config.holdout:
            continue
        found = judge([_look(network, hu, config, *look) for look in _LOOKS], config.spacing, least)
        result[path.stem] = found
        if found.kept:
            np.savez_compressed(
                prepared / "pseudo" / path.name,
                hu=hu,
                labels=found.labels,
                annotated=np.array(found.kept, np.uint8),
            )
    return result


def judge(looks: list[np.ndarray], spacing: float, least: float) -> PseudoLabels:
    """Decide what several label maps (z, y, x) of one CT agree on.

    An organ is kept if every two looks agree on it (DSC at least ``least``), its volume is
    plausible unless it touches the scan's first or last slice, and liver and spleen, the two
    kidneys and the two adrenal glands lie on their sides. Of a kept organ only its largest
    component counts. Voxels on which the looks differ are unknown.
    """
    first = looks[0]
    same = np.all([look == first for look in looks[1:]], axis=0)
    agreement, kept = {}, []
    for organ, name in ORGANS.items():
        masks = [look == organ for look in looks]
        if not any(mask.any() for mask in masks):
            continue
        pairs = [dice(a, b) or 0.0 for i, a in enumerate(masks) for b in masks[:i]]
        agreement[organ] = min(pairs)
        mask = _largest(masks[0])
        low, high = _PLAUSIBLE_ML[name]
        volume = mask.sum() * spacing**3 / 1000
        cut = mask[0].any() or mask[-1].any()
        if agreement[organ] >= least and volume <= high and (cut or volume >= low):
            kept.append(organ)
    kept = [organ for organ in kept if organ not in _misplaced(first)]
    labels = np.where(same, first, UNKNOWN).astype(np.uint8)
    for organ in ORGANS:
        seen = np.any([look == organ for look in looks], axis=0)
        if organ not in kept:
            labels[seen] = UNKNOWN
        else:
            labels[(labels == organ) & ~_largest(first == organ)] = UNKNOWN
    return PseudoLabels(labels, tuple(kept), agreement)


def _look(
    network: torch.nn.Module, hu: np.ndarray, config: Config, size: float, shift: float
) -> np.ndarray:
    shape = [max(1, round(n / size)) for n in hu.shape]
    seen = resize(hu, shape) if size != 1 else hu.astype(np.float32)
    logits: Tensor = logits_of(network, seen + shift, config)
    if size != 1:
        logits = torch.nn.functional.interpolate(logits[None], size=hu.shape, mode="trilinear")[0]
    return logits.argmax(0).to(torch.uint8).numpy()


def _largest(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    if count <= 1:
        return mask
    largest: np.ndarray = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return largest


def _misplaced(labels: np.ndarray) -> set[int]:
    """Organs that lie on the wrong side of their counterpart (x runs to the patient's left)."""
    wrong = set()
    for right, left in (
        ("right_kidney", "left_kidney"),
        ("right_adrenal_gland", "left_adrenal_gland"),
    ):
        a, b = LABEL_OF[right], LABEL_OF[left]
        if a in labels and b in labels:
            x = [float(np.nonzero(labels == v)[2].mean()) for v in (a, b)]
            if x[0] > x[1]:
                wrong |= {a, b}
    if not anchored(labels):
        wrong |= {LABEL_OF["liver"], LABEL_OF["spleen"]}
    return wrong
