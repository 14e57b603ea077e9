"""Mean Hounsfield units of every tissue, for one patient in one phase of contrast."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.organs import LABEL_OF
from training.data.tissues import TISSUE_COUNT, Tissue
from training.sampling.chance import Chance


def draw_phase(chance: Chance) -> tuple[float, float]:
    """Arterial and venous enhancement, each 0 to 1: plain, arterial, portal or late.

    Args:
        chance: source of chance.
    """
    kind = chance.uniform(0, 1)
    if kind < 0.35:
        return 0.0, 0.0
    if kind < 0.5:
        return chance.uniform(0.5, 1.0), chance.uniform(0.0, 0.5)
    if kind < 0.88:
        return chance.uniform(0.2, 0.5), chance.uniform(0.5, 1.0)
    return chance.uniform(0.1, 0.3), chance.uniform(0.2, 0.6)


def draw_mean_hu(chance: Chance, a: float, v: float) -> Tensor:
    """Mean Hounsfield units of every tissue for one patient in one phase.

    Args:
        chance: source of chance.
        a: arterial enhancement, as of `draw_phase`.
        v: venous enhancement.

    Returns:
        float32 (`TISSUE_COUNT`,), on the CPU.
    """
    liver = chance.uniform(-5, 45) if chance.happens(0.15) else chance.normal(56, 7)
    bile = chance.uniform(20, 70) if chance.happens(0.12) else chance.normal(8, 6)
    aorta = chance.normal(40, 5) + chance.uniform(240, 480) * a
    blood = chance.normal(40, 5)
    fatty = chance.uniform(5, 30) if chance.happens(0.35) else 0.0
    organ = {
        "liver": liver + 12 * a + chance.uniform(40, 65) * v,
        "right_kidney": 0.0,
        "left_kidney": 0.0,
        "spleen": chance.normal(47, 5) + 60 * a + 55 * v,
        "pancreas": chance.normal(34, 9)
        + chance.uniform(45, 95) * a
        + chance.uniform(35, 85) * v
        - fatty,
        "aorta": aorta + 20 * v,
        "inferior_vena_cava": blood + 45 * a + chance.uniform(25, 125) * v,  # liver's or less
        "right_adrenal_gland": chance.normal(22, 12) + 40 * a + 35 * v,
        "left_adrenal_gland": 0.0,
        "gallbladder": bile,
        "esophagus": chance.normal(36, 6) + 18 * a + 25 * v,
        "stomach": _bowel_wall(chance, a, v),
        "duodenum": _bowel_wall(chance, a, v),
    }
    organ["right_kidney"] = chance.normal(32, 4) + 100 * a + 110 * v
    organ["left_kidney"] = organ["right_kidney"] + chance.normal(0, 4)
    organ["left_adrenal_gland"] = organ["right_adrenal_gland"] + chance.normal(0, 4)
    mean_hu = torch.full((TISSUE_COUNT,), 30.0)
    for name, value in organ.items():
        mean_hu[LABEL_OF[name]] = value + chance.normal(0, 4)
    muscle = chance.normal(52, 9)
    mean_hu[Tissue.NONE] = chance.normal(-104, 8)
    mean_hu[Tissue.MUSCLE] = muscle + 5 * a + 8 * v
    mean_hu[Tissue.BONE] = chance.uniform(90, 280)
    mean_hu[Tissue.LUNG] = chance.uniform(-920, -720)
    mean_hu[Tissue.AIRWAY] = -980
    mean_hu[Tissue.HEART] = blood + chance.uniform(100, 350) * a + 90 * v
    mean_hu[Tissue.VEIN] = blood + 25 * a + chance.uniform(90, 150) * v
    mean_hu[Tissue.ARTERY] = aorta + 20 * v
    mean_hu[Tissue.SMALL_BOWEL] = _bowel_wall(chance, a, v)
    mean_hu[Tissue.COLON] = _bowel_wall(chance, a, v)
    excreted = chance.happens(0.08)
    mean_hu[Tissue.BLADDER] = chance.uniform(100, 500) if excreted else chance.normal(6, 5)
    mean_hu[Tissue.NERVE] = chance.normal(34, 6)
    mean_hu[Tissue.CARTILAGE] = chance.normal(95, 35)
    mean_hu[Tissue.SOFT] = chance.normal(42, 8) + 20 * v
    return mean_hu


def _bowel_wall(chance: Chance, a: float, v: float) -> float:
    """As bright as the pancreas in either phase, or darker: thin walls are half their content."""
    return chance.normal(35, 7) + chance.uniform(20, 90) * a + chance.uniform(25, 80) * v
