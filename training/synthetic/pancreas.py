"""Pancreases as old patients have them, made of those of the label maps."""

from __future__ import annotations

from torch import Tensor

from inference.organs import LABEL_OF
from training.data.tissues import Tissue
from training.sampling.chance import Chance
from training.sampling.separable import blur

_REACH = 3.0  # mm


def age_pancreas(tissues: Tensor, spacing: float, chance: Chance) -> Tensor:
    """A pancreas as it is in many old patients: thin, its lobes apart, with fat between them.

    The label maps at hand are of few patients, so without this most of them have a full one.

    Args:
        tissues: integer (z, y, x), values of `training.data.tissues`.
        spacing: isotropic spacing in mm.
        chance: source of chance, on the tissues' device.

    Returns:
        The tissues; in two of five calls a pancreas among them has lost its outer layer.
    """
    if not chance.happens(0.4):
        return tissues
    pancreas = tissues == LABEL_OF["pancreas"]
    depth = blur(pancreas.float(), (_REACH / spacing,) * 3)  # about 0.5 at its surface
    lobes = 0.08 * chance.field(tissues.shape, 7 / spacing)
    lost = pancreas & (depth + lobes < chance.uniform(0.5, 0.85))
    return tissues.masked_fill(lost, Tissue.NONE)
