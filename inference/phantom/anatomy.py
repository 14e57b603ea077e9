"""A patient's anatomy: which solids there are, of what HU and label, and in which order.

Places and sizes, in mm, follow anatomy atlases; the origin lies in front of the first lumbar
vertebra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from inference.organs import LABEL_OF
from inference.phantom.intensities import Intensity, bone, gut, patchy, renal, vertebra
from inference.phantom.patient import Patient
from inference.phantom.solids import (
    Distance,
    Float32Array,
    Point,
    Solid,
    above,
    cut,
    ellipsoid,
    melt,
    outside,
    point_of,
    tube,
)

_SPINE = (
    (-245, -200, -150, -110, -60, 0, 80, 160, 260, 330, 400),
    (92, 84, 62, 52, 50, 56, 68, 76, 64, 44, 34),
)
"""Height of the spine's middle, and how far back it lies there."""


@dataclass(frozen=True)
class Paint:
    """One brush stroke.

    Attributes:
        solid: what is painted.
        hu: its HU.
        label: its label, 0 for none.
        halo: millimetres of fat around the solid, painted first.
        in_abdomen: whether the solid ends at the diaphragm and the abdominal wall.
    """

    solid: Solid
    hu: Intensity
    label: int = 0
    halo: float = 0.0
    in_abdomen: bool = False


def anatomy(p: Patient) -> list[Paint]:
    """All solids of a patient, in the order in which they are painted: later ones win."""
    hu, rng, label = p.hu, p.rng, LABEL_OF
    wall = hu["gut_wall"]
    paints: list[Paint] = []

    def add(
        solid: Solid, value: Intensity, organ: str = "", halo: float = 0, in_abdomen: bool = False
    ) -> None:
        paints.append(Paint(solid, value, label[organ] if organ else 0, halo, in_abdomen))

    # --- chest, pelvis, bones: nothing here is labelled -----------------------------------------
    add(ellipsoid(p.near((20, -32, 138)), p.about(60, 48, 56), (0, 25, 20)), -90)
    add(ellipsoid(p.near((20, -32, 138)), p.about(55, 43, 51), (0, 25, 20)), hu["heart"])
    add(tube([(0, 8, 215), (0, 2, 260), (0, -8, 340)], [9, 9, 9]), -990)
    for side in (-1, 1):
        add(tube([(side * 12, 14, 200), (0, 8, 218)], [6, 8]), -990)
        add(
            tube(
                [
                    (side * 34, 42, -10),
                    (side * 44, 38, -80),
                    (side * 58, 22, -160),
                    (side * 78, -12, -250),
                ],
                [9, 21, 24, 18],
            ),
            hu["muscle"],
        )
        add(ellipsoid((side * 82, 55, -60), (28, 9, 60), (0, 0, side * 25)), hu["muscle"])
        ilium = ellipsoid((side * 92, 32, -185), (9, 62, 66), (0, side * 22, -side * 32))
        add(ilium, bone())
        add(ellipsoid((side * 84, 12, -272), (36, 36, 38)), bone())
        add(ellipsoid((side * 84, 12, -272), (27, 27, 27)), 60)
        add(ellipsoid((side * 84, 10, -272), (24, 24, 24)), bone())
        add(
            tube(
                [
                    (side * 84, 10, -272),
                    (side * 118, 16, -300),
                    (side * 112, 12, -370),
                    (side * 84, 10, -900),
                ],
                [13, 19, 15, 13],
                25,
            ),
            bone(),
        )
        add(tube([(side * 70, -30, -275), (side * 12, -58, -290)], [12, 10]), bone())
        add(tube([(side * 60, 30, -290), (side * 48, 45, -322)], [15, 13]), bone())
    skull = ellipsoid((0, 5, 460), (70, 89, 98))
    add(skull, 900)
    add(ellipsoid((0, 5, 462), (63, 82, 90)), 35)
    add(_spine_solid(23, 17, 0), vertebra(165, 75))
    arch = cut(_spine_solid(20, 16, 24), _arch(11.5))
    add(arch, 330)
    add(cut(ellipsoid((0, 60, 40), (46, 12, 400)), _arch(7), above(-145), _near_spine(22)), 260)
    add(cut(ellipsoid((0, 92, 60), (4.5, 30, 400)), _arch(8.5), above(-145)), 330)
    add(_spine_solid(9.5, 8, 25), 22)
    add(_spine_solid(5.5, 5, 25), 38)
    add(tube([(0, -100, 190), (0, -106, 110)], [11, 9]), bone())

    # --- bowel ------------------------------------------------------------------------------------
    add(
        tube(_coils(rng), [float(r) for r in rng.uniform(10.5, 13.5, 90)], 12),
        patchy(wall, p.oral, 2.2, float(rng.uniform(0, 6))),
        in_abdomen=True,
    )
    colon = p.path(
        (-92, 8, -168), (-108, 18, -128), (-110, 18, -92), (-98, -8, -78), (-82, -52, -92),
        (-35, -74, -108), (25, -78, -100), (75, -62, -72), (104, -22, -28), (115, 18, -30),
        (116, 26, -75), (112, 26, -130), (92, 8, -178), (45, 8, -196), (20, 38, -222),
        (2, 50, -250), (0, 42, -290), spread=4)  # fmt: skip
    girth = [24, 23, 21, 19, 20, 19, 18, 19, 19, 17, 15, 15, 15, 15, 17, 20, 14]
    add(_haustra(colon, girth), patchy(wall, float(rng.uniform(10, 60)), 2.5, 1.0), in_abdomen=True)
    add(
        ellipsoid(p.near((0, -22, -262), 4), p.about(42, 34, 32, spread=0.15)),
        gut(wall, 6, 3, None),
    )
    add(ellipsoid((0, 14, -292), (24, 18, 20)), hu["muscle"])

    # --- the 13 organs and the vessels between them ---------------------------------------------
    stomach = p.path((62, 14, 52), (74, -8, 36), (78, -32, 12), (66, -52, -10), (40, -60, -28),
                     (10, -54, -28), (-10, -46, -20))  # fmt: skip
    add(
        tube(stomach, p.about(31, 33, 29, 25, 20, 16, 10, spread=0.1)),
        gut(wall, p.oral, 4, float(rng.uniform(-70, -30))),
        "stomach",
        in_abdomen=True,
    )

    spleen = ellipsoid(p.near((100, 38, 28)), p.about(34, 52, 56, spread=0.1), (18, 10, -28))
    add(
        cut(spleen, outside(ellipsoid((60, 6, 24), (37, 46, 60)))),
        hu["spleen"],
        "spleen",
        in_abdomen=True,
    )

    right = ellipsoid(p.near((-70, -6, 22)), p.about(76, 92, 98), (0, 0, 8))
    left = ellipsoid(p.near((0, -52, 48)), p.about(78, 36, 34), (-8, 14, 6))
    tilt = float(rng.uniform(0.52, 0.62))
    # The visceral surface: from the low right edge up to the left, higher at the back.
    under = above(float(rng.uniform(10, 20)), tilt, 0.2)
    liver = cut(melt(right, left, 26), under, outside(ellipsoid((6, 30, 20), (30, 28, 90))))
    add(liver, hu["liver"], "liver", in_abdomen=True)
    caudate = ellipsoid(p.near((-14, 4, 44)), (15, 13, 24))
    add(caudate, hu["liver"], "liver", in_abdomen=True)
    cleft = ellipsoid((6, -52, 26), (1.6, 26, 22), (0, 0, 8))
    add(cleft, -70.0)
    veins = (
        ([(-26, 8, 84), (-62, -2, 66), (-98, 4, 40)], [5, 4, 2]),
        ([(-26, 6, 84), (-44, -34, 64), (-58, -62, 34)], [5, 4, 2]),
        ([(-24, 4, 84), (2, -34, 66), (16, -58, 54)], [5, 3.5, 2]),
        ([(-28, -14, 16), (-58, -8, 22), (-88, 12, 14)], [6, 5, 2.5]),
        ([(-58, -8, 22), (-84, -38, 18)], [5, 2.5]),
        ([(-28, -14, 16), (-10, -36, 34), (20, -52, 44)], [6, 4, 2]),
    )
    for points, radii in veins:
        add(tube(p.path(*points, spread=2), radii), hu["portal_vein"], "liver", in_abdomen=True)

    bladder = p.path((-50, -26, 2), (-58, -44, -14), (-64, -58, -32))
    add(tube(bladder, p.about(6, 13, 15, spread=0.15)), gut(wall, 9, 1.5, None), "gallbladder")

    duodenum = p.path(
        (-14, -44, -20),
        (-36, -34, -16),
        (-46, -14, -34),
        (-47, 2, -62),
        (-34, 10, -84),
        (-6, 0, -88),
        (20, 0, -80),
        (36, -6, -58),
        spread=1.5,
    )
    add(
        tube(duodenum, p.about(10, 12, 12, 11.5, 11, 9.5, 10, 10)),
        gut(wall, p.oral, 2.5, -38),
        "duodenum",
        halo=1.5,
    )

    pancreas = p.path((-22, -2, -50), (-25, -14, -30), (-6, -26, -14), (18, -22, -2), (46, -8, 8),
                      (80, 12, 18), spread=1.5)  # fmt: skip
    lobules = p.about(11, 13.5, 8.5, 9, 9.5, 8.5, spread=0.08)
    add(tube(pancreas, lobules), hu["pancreas"], "pancreas", halo=1.2)
    splenic = [(x, y + 9, z) for x, y, z in pancreas[2:]]
    add(tube(splenic, [4] * 4), hu["portal_vein"])
    add(tube([splenic[0], (-24, -12, 14)], [6.5, 7]), hu["portal_vein"])
    add(tube([(-4, -16, -14), (4, -14, -70), (0, -30, -120)], [5.5, 5, 3]), hu["portal_vein"])

    for organ, centre, side in (
        ("right_kidney", (-66, 40, -32), -1),
        ("left_kidney", (64, 40, -16), 1),
    ):
        place = np.asarray(p.near(centre, 3))
        kidney = ellipsoid(point_of(place), p.about(28, 25.5, 54), (-10, -side * 11, side * 28))
        hollow = point_of(place + (-side * 19, -9, 0))
        sinus = ellipsoid(hollow, (15, 9, 21), (-10, -side * 11, side * 28))
        add(kidney, renal(hu["cortex"], hu["medulla"], float(place[2])), organ, halo=6)
        add(sinus, -85.0)
        add(ellipsoid(hollow, (9, 5, 13), (-10, -side * 11, side * 28)), hu["renal_pelvis"])
        pelvis = point_of(place + (-side * 22, -4, -8))
        ureter = [pelvis, (side * 42, 22, -90), (side * 48, 10, -160), (side * 38, 20, -240)]
        add(tube(ureter, [3.5, 2.5, 2.5, 2.5], 12), hu["renal_pelvis"])

    for organ, (cx, cy, cz), side in (
        ("right_adrenal_gland", p.near((-33, 34, 30), 1.5), -1),
        ("left_adrenal_gland", p.near((33, 26, 22), 1.5), 1),
    ):
        body = ellipsoid((cx, cy - 5, cz), p.about(3.4, 8, 13), (8, 0, side * 8))
        inner = ellipsoid((cx - side * 2.5, cy + 6, cz - 3), p.about(2.8, 10, 14),
                           (8, 0, side * 12))  # fmt: skip
        outer = ellipsoid((cx + side * 4.5, cy + 5, cz - 4), p.about(2.8, 10.5, 14),
                           (8, 0, -side * 28))  # fmt: skip
        add(body | inner | outer, hu["adrenal"], organ, halo=2)

    aorta = p.path(
        (-8, -22, 246),
        (4, 2, 262),
        (20, 36, 244),
        (24, 46, 180),
        (22, 46, 120),
        (13, 37, 66),
        (9, 27, 10),
        (8, 21, -50),
        (5, 21, -116),
        spread=1.5,
    )
    width = p.about(14, 14, 13, 12.5, 12, 11.5, 10.5, 9.5, 8.5, spread=0.1)
    add(tube(aorta, width), hu["artery"], "aorta", halo=1.5)
    end = aorta[-1]
    for side in (-1, 1):
        add(tube([(end[0] + side * 6, end[1], end[2] - 9), (side * 38, 28, -170),
                   (side * 64, -14, -250)], [6, 5.5, 5], 12), hu["artery"])  # fmt: skip
        add(tube([(side * 8, 22, -14), (side * 42, 30, -24)], [3.5, 3]), hu["artery"])
    add(
        tube([(9, 18, 14), (8, 2, 2), (10, -12, -60), (6, -28, -120)], [4.2, 4, 3.8, 2.5]),
        hu["artery"],
    )
    add(tube([(10, 20, 26), (12, 0, 26), (52, 2, 20)], [4.5, 4, 3]), hu["artery"])

    cava = p.path((-20, 28, -120), (-23, 23, -60), (-25, 18, 0), (-27, 14, 50), (-24, 2, 92),
                  (-18, -12, 118), spread=1.5)  # fmt: skip
    add(
        tube(cava, p.about(9, 9.5, 10.5, 11.5, 11.5, 11, spread=0.1)),
        hu["vena_cava"],
        "inferior_vena_cava",
    )
    for side in (-1, 1):
        add(tube([(-20 + side * 8, 30, -128), (side * 44, 36, -180), (side * 58, -2, -250)],
                  [8, 7, 6], 12), hu["vena_cava"])  # fmt: skip
    add(tube([(-16, 12, -10), (8, 9, -14), (42, 26, -16)], [4, 4, 4.5]), hu["vena_cava"])

    gullet = p.path((4, 30, 300), (6, 28, 230), (8, 26, 160), (10, 20, 110), (18, 14, 76),
                    (36, 8, 56), spread=1.5)  # fmt: skip
    add(tube(gullet, p.about(7, 7, 8, 8.5, 9, 9)),
        gut(hu["esophagus"], float(rng.choice([-300, 20, 30])), 5.5, None), "esophagus",
        halo=1.0)  # fmt: skip
    return paints


def _spine_solid(half_x: float, half_y: float, dy: float) -> Solid:
    """A column that follows the spine from the sacrum to the neck."""
    low, high = -250.0, 400.0

    def distance(x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        middle = np.interp(z, *_SPINE).astype(np.float32) + np.float32(dy)
        u, v = x / np.float32(half_x), (y - middle) / np.float32(half_y)
        k = np.sqrt(u * u + v * v) - 1
        return np.maximum(k * np.float32(min(half_x, half_y)), low - z)

    return Solid((((-half_x, 20 + dy - half_y, low), (half_x, 95 + dy + half_y, high), distance),))


def _near_spine(dy: float) -> Distance:
    """A tool for `cut`: keeps what lies within 9 mm before or behind a line along the spine."""

    def distance(x: Float32Array, y: Float32Array, z: Float32Array) -> Float32Array:
        middle = np.interp(z, *_SPINE).astype(np.float32) + np.float32(dy)
        return np.abs(y - middle) - np.float32(9)

    return distance


def _arch(half_height: float) -> Distance:
    """A tool for `cut`: one vertebral arch per vertebra."""
    return lambda x, y, z: np.abs(z / 34 - np.floor(z / 34) - 0.5) * 34 - np.float32(half_height)


def _coils(rng: np.random.Generator) -> list[Point]:
    """The small bowel's course: to and fro through the middle of the lower abdomen."""
    points: list[Point] = []
    for row, height in enumerate(np.linspace(-58, -205, 6)):
        for column, depth in enumerate((-66, -42, -18)):
            sides = np.linspace(-72, 88, 5) * (0.8 if depth > -30 else 1)
            for side in sides if (row + column) % 2 else sides[::-1]:
                points.append(point_of(np.array([side, depth, height]) + rng.normal(0, 7, 3)))
    return points


def _haustra(points: Sequence[Point], radii: Sequence[float]) -> Solid:
    """The colon: a tube whose girth swells and narrows along its way."""
    dense_points: list[Point] = []
    dense_radii: list[float] = []
    for (a, ra), (b, rb) in pairwise(zip(points, radii, strict=True)):
        for t in (0.0, 1 / 3, 2 / 3):
            dense_points.append(point_of(np.asarray(a) + t * (np.asarray(b) - np.asarray(a))))
            dense_radii.append((ra + t * (rb - ra)) * (1.0 if len(dense_radii) % 2 else 0.84))
    return tube([*dense_points, points[-1]], [*dense_radii, radii[-1]], 8)
