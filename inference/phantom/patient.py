"""One random patient: sizes, contrast phase and HU, before there is any anatomy."""

from __future__ import annotations

import numpy as np

from inference.phantom.solids import Point, point_of

PHASES = ("plain", "arterial", "portal", "late")
"""Contrast phases: none, about 30 s, 70 s and 3 min after injection."""

_HU: dict[str, tuple[float, float, float, float]] = {
    "muscle": (52, 55, 62, 60),
    "liver": (58, 68, 108, 90),
    "spleen": (48, 125, 122, 95),
    "cortex": (32, 185, 180, 150),
    "medulla": (30, 65, 150, 150),
    "renal_pelvis": (8, 10, 25, 320),
    "pancreas": (40, 105, 95, 72),
    "artery": (42, 310, 160, 110),
    "vena_cava": (40, 62, 140, 110),
    "portal_vein": (42, 85, 175, 112),
    "adrenal": (25, 60, 72, 52),
    "gut_wall": (40, 62, 78, 66),
    "esophagus": (38, 52, 64, 58),
    "heart": (42, 210, 150, 108),
}
"""Hounsfield units by contrast phase, in the order of `PHASES`."""


class Patient:
    """One random patient.

    Args:
        rng: the source of all that is random. The anatomy and the noise go on drawing from it.
        phase: one of `PHASES`; ``None`` draws one.

    Attributes:
        rng: as above.
        hu: of each tissue.
        scale: of the whole patient.
        fat: mm under the skin.
        waves, lengths: phases, and wavelengths in mm, of what bends the anatomy, (axis, wave).
        dome: mm by which the right and the left dome of the diaphragm are higher.
        table: mm between the back and the table's top.
        oral: HU of what stomach, duodenum and small bowel hold.
    """

    def __init__(self, rng: np.random.Generator, phase: str | None) -> None:
        self.rng = rng
        chosen = rng.choice(4, p=(0.2, 0.15, 0.5, 0.15))
        column = int(chosen) if phase is None else PHASES.index(phase)
        strength = rng.uniform(0.85, 1.15)
        self.hu = {
            name: row[0] + (row[column] - row[0]) * strength + rng.uniform(-4, 4)
            for name, row in _HU.items()
        }
        self.scale = rng.uniform(0.94, 1.06)
        self.fat = rng.uniform(7, 26)
        self.waves = rng.uniform(0, 2 * np.pi, (3, 4))
        self.lengths = rng.uniform(90, 170, (3, 4))
        self.dome = rng.normal(0, 4, 2)
        self.table = rng.uniform(4, 12)
        self.oral = float(rng.choice([20.0, 30.0, 190.0], p=(0.45, 0.35, 0.2)))

    def near(self, point: Point, spread: float = 2.5) -> Point:
        """A point moved a little at random."""
        move = np.clip(self.rng.normal(0, spread, 3), -2 * spread, 2 * spread)
        return point_of(np.asarray(point) + move)

    def path(self, *points: Point, spread: float = 2.5) -> list[Point]:
        """Points moved a little at random, each by itself."""
        return [self.near(point, spread) for point in points]

    def about(self, *sizes: float, spread: float = 0.06) -> tuple[float, ...]:
        """Sizes that all vary by the same random factor."""
        factor = 1 + float(np.clip(self.rng.normal(0, spread), -2 * spread, 2 * spread))
        return tuple(size * factor for size in sizes)
