"""DSC of two masks, and how far an exported network agrees with PyTorch's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """How an exported network compares with PyTorch's fp32 on one volume.

    Attributes:
        precision: "f32", "bf16" or "int8".
        case: the volume's name.
        logits_error: root mean square difference over that of the reference logits.
        same_labels: share of voxels with the same label.
        organ_dice: DSC between the two label maps per organ; None where neither has the organ.
    """

    precision: str
    case: str
    logits_error: float
    same_labels: float
    organ_dice: dict[str, float | None]

    def __str__(self) -> str:
        organs = {name: score for name, score in self.organ_dice.items() if score is not None}
        worst = min(organs, key=lambda name: organs[name], default="no organ")
        return (
            f"{self.precision} on {self.case}: logits error {self.logits_error:.4f}, "
            f"{100 * self.same_labels:.3f} % of the labels the same, "
            f"lowest organ DSC {organs.get(worst, 1.0):.4f} ({worst})"
        )


def dice(a: np.ndarray, b: np.ndarray) -> float | None:
    """DSC of two masks; None if both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else None
