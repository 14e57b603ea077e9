"""Neighbours of the organs that label maps leave out, drawn into a tissue map.

A network that never saw them calls them what they touch: the diaphragm's crura become aorta or
adrenal gland, so do the aorta's branches and the nodes beside it, the veins behind the pancreas
become pancreas, a wide renal pelvis kidney. They are drawn only where nothing is labelled, so no
organ's label changes.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from inference.organs import LABEL_OF
from training.data.tissues import Tissue
from training.sampling.chance import Chance
from training.synthetic.tubes import Point, distance, tube

_LEAST_PANCREAS = 4000.0  # mm3, below which a patch shows too little of one to tell its course
_NEAR = 15.0  # mm between its neck and where the veins meet
_HALF_A_KIDNEY = 55.0  # mm


def add_neighbours(tissues: Tensor, spacing: float, chance: Chance) -> Tensor:
    """Draw crura, veins, arteries, nodes and what drains the kidneys, in most calls.

    Args:
        tissues: integer (z, y, x) in LPS orientation, values of `training.data.tissues`.
        spacing: isotropic spacing in mm.
        chance: source of chance, on the tissues' device.

    Returns:
        The tissues, more of them muscle, vessel, soft tissue and urine.
    """
    tissues = tissues.clone()
    free = tissues == Tissue.NONE
    if chance.happens(0.85):
        tissues[_crura(tissues, spacing, chance) & free] = Tissue.MUSCLE
    for veins in (_portal_veins, _renal_veins):
        if chance.happens(0.85):
            tissues[veins(tissues, spacing, chance) & free] = Tissue.VEIN
    if chance.happens(0.6):
        urine = _renal_pelves(tissues, spacing, chance)
        tissues[urine & (tissues == Tissue.NONE)] = Tissue.BLADDER  # behind the veins
    if chance.happens(0.75):
        arteries = _arteries(tissues, spacing, chance)
        tissues[arteries & (tissues == Tissue.NONE)] = Tissue.ARTERY
    if chance.happens(0.6):
        nodes = _nodes(tissues, spacing, chance)
        tissues[nodes & (tissues == Tissue.NONE)] = Tissue.SOFT
    return tissues


def _crura(tissues: Tensor, spacing: float, chance: Chance) -> Tensor:
    """The diaphragm's two legs: bands beside the aorta that run back along the spine.

    They meet in front of it where it enters the abdomen, and end beside the lumbar vertebrae.
    """
    mask = torch.zeros_like(tissues, dtype=torch.bool)
    aorta = tissues == LABEL_OF["aorta"]
    glands = _heights(_any_of(tissues, "right_adrenal_gland", "left_adrenal_gland"))
    kidneys = _heights(_any_of(tissues, "right_kidney", "left_kidney"))
    upper, lower = glands or kidneys, kidneys or glands
    if upper is None or lower is None:
        return mask
    if glands is None and upper[1] == len(tissues) - 1:
        return mask  # kidneys that go on above the patch: it may lie below the crura
    top = upper[1] + chance.uniform(-10, 25) / spacing
    cut = lower is kidneys and lower[0] == 0
    lowest = lower[1] - _HALF_A_KIDNEY / spacing if cut else sum(lower) / 2
    bottom = min(lowest + chance.uniform(-35, 10) / spacing, top - 1)
    slices = torch.nonzero(aorta.any(dim=2).any(dim=1)).flatten()
    slices = slices[(slices >= bottom) & (slices <= top)]
    if not len(slices):
        return mask

    # Each slice by itself, in mm from the aorta's middle.
    part = aorta[slices].float()
    area = part.sum(dim=(1, 2))
    y, x = (torch.arange(n, device=part.device) * 1.0 for n in part.shape[1:])
    middle_y = (part.sum(dim=2) @ y / area)[:, None, None]
    middle_x = (part.sum(dim=1) @ x / area)[:, None, None]
    radius = (area / math.pi).sqrt()[:, None, None] * spacing
    behind = (y[None, :, None] - middle_y) * spacing
    left = (x[None, None, :] - middle_x) * spacing
    height = ((slices - bottom) / (top - bottom))[:, None, None]
    for side in (-1, 1):
        gap, thickness = chance.uniform(0, 3), chance.uniform(3, 10)
        away = radius + gap + thickness / 2
        # Where it begins, as an angle from the front: at the side below, nearly in front above.
        angle = chance.uniform(0.9, 1.5) * (1 - height) + chance.uniform(0.0, 0.8) * height
        further = chance.uniform(2, 14), chance.uniform(5, 25)
        course = [
            (-away * angle.cos(), side * away * angle.sin()),
            (-away * (0.5 * angle + 0.8).cos(), side * away * (0.5 * angle + 0.8).sin()),
            (0.2 * away, side * away),
            (radius + further[1], side * (away + further[0])),
        ]
        uneven = 1 + 0.4 * chance.field(part.shape, 15 / spacing)
        for one, other in pairwise(course):
            mask[slices] |= distance((behind, left), one, other) < uneven * thickness / 2
    return mask


def _portal_veins(tissues: Tensor, spacing: float, chance: Chance) -> Tensor:
    """The splenic vein behind the pancreas, the mesenteric one up to its neck, the portal vein.

    Bodies may have such veins already, but seldom where they belong: those of another patient.
    """
    pancreas = tissues == LABEL_OF["pancreas"]
    if pancreas.sum() * spacing**3 < _LEAST_PANCREAS:
        return torch.zeros_like(pancreas)
    columns = torch.nonzero(pancreas.any(dim=1).any(dim=0)).flatten()
    # The veins meet behind its neck, to the right of the aorta.
    vessels = torch.nonzero(_any_of(tissues, "aorta", "inferior_vena_cava").any(dim=1).any(dim=0))
    if not len(vessels):
        return torch.zeros_like(pancreas)
    wanted = float(vessels.float().mean()) + chance.uniform(-6, 8) / spacing
    neck = int((columns - wanted).abs().argmin())
    if abs(float(columns[neck]) - wanted) * spacing > _NEAR:
        return torch.zeros_like(pancreas)  # the patch shows the tail alone, or the head
    reach = max(1, round(4 / spacing))

    def behind(number: int, share: float = 0.5) -> Point:
        """A place at its back near one of its columns, at a share of its height there."""
        column = int(columns[min(number, len(columns) - 1)])
        near = pancreas[:, :, max(0, column - reach) : column + reach + 1]
        z, y, _ = torch.nonzero(near).unbind(dim=1)
        height = float(z.float().quantile(share, interpolation="nearest"))
        return height, float(y[(z - height).abs() <= reach].max()), float(column)

    mask = torch.zeros_like(pancreas)
    radius = chance.uniform(3.5, 7.5) / spacing
    per_mm = 1 / spacing
    z0, y0, x0 = behind(neck, 0.7)
    confluence = (z0, y0 + 0.5 * radius, x0)
    # Where they meet they are wider than each: seen without contrast, as thick as a pancreas.
    reach_left = (z0, confluence[1] + chance.uniform(0, 3) * per_mm, x0 + radius)
    mask |= tube(mask, [confluence, reach_left], chance.uniform(0.9, 1.4) * radius)
    # Splenic vein, to the tail and a little beyond.
    above = chance.uniform(-6, 6) * per_mm
    course = [confluence]
    for share in (0.33, 0.67, 0.95):
        height, back, column = behind(round(neck + share * (len(columns) - neck)))
        course.append((height + above, back + chance.uniform(0.0, 3.0) * per_mm, column))
    height, back, column = course[-1]
    higher = height + chance.uniform(0, 15) * per_mm
    course.append((higher, back + 4 * per_mm, column + 12 * per_mm))
    mask |= tube(mask, course, chance.uniform(0.6, 0.95) * radius)
    # Superior mesenteric vein, from below.
    length = chance.uniform(30, 80) * per_mm
    course = [
        confluence,
        (z0 - length / 2, y0 - chance.uniform(0, 8) * per_mm, x0 + chance.uniform(-5, 5) * per_mm),
        (z0 - length, y0 - chance.uniform(0, 18) * per_mm, x0 + chance.uniform(-8, 8) * per_mm),
    ]
    mask |= tube(mask, course, chance.uniform(0.8, 1.2) * radius)
    # Portal vein, up and to the right.
    length = chance.uniform(25, 55) * per_mm
    right_by = chance.uniform(0.3, 0.9) * length
    end = (z0 + length, y0 + chance.uniform(-8, 8) * per_mm, x0 - right_by)
    mask |= tube(mask, [confluence, end], chance.uniform(0.9, 1.3) * radius)
    return mask


def _renal_veins(tissues: Tensor, spacing: float, chance: Chance) -> Tensor:
    """From each kidney to the vena cava, the left one in front of the aorta."""
    mask = torch.zeros_like(tissues, dtype=torch.bool)
    cava = tissues == LABEL_OF["inferior_vena_cava"]
    aorta = tissues == LABEL_OF["aorta"]
    for name in ("right_kidney", "left_kidney"):
        kidney = tissues == LABEL_OF[name]
        at = _hilum(kidney, (-8, 15), spacing, chance)
        if at is None or not (cava[at].any() and aorta[at].any()):
            continue
        inside, end = _middle(kidney[at]), _middle(cava[at])
        rows = torch.nonzero(aorta[at].any(dim=1)).flatten()
        radius = chance.uniform(2.5, 7) / spacing
        course = [(at - chance.uniform(0, 6) / spacing, *inside)]
        if name == "left_kidney":
            course.append((at, float(rows[0]) - radius, _middle(aorta[at])[1]))
        course.append((at + chance.uniform(0, 8) / spacing, *end))
        mask |= tube(mask, course, radius)
    return mask


def _renal_pelves(tissues: Tensor, spacing: float, chance: Chance) -> Tensor:
    """Urine between the kidney's lips and medially of them, wide in some, and the ureter below."""
    mask = torch.zeros_like(tissues, dtype=torch.bool)
    per_mm = 1 / spacing
    for name, medial in (("right_kidney", 1), ("left_kidney", -1)):  # x runs to the left
        kidney = tissues == LABEL_OF[name]
        at = _hilum(kidney, (-12, 8), spacing, chance)
        if at is None:
            continue
        y, _ = _middle(kidney[at])
        columns = torch.nonzero(kidney[at, round(y)]).flatten()
        if not len(columns):
            continue
        lip = float(columns[-1] if medial > 0 else columns[0])
        radius = chance.uniform(3, 12) * per_mm
        front = y - chance.uniform(0, 12) * per_mm
        end = lip + medial * radius * chance.uniform(0.2, 1.2)
        mask |= tube(mask, [(at, y, lip - medial * 6 * per_mm), (at, front, end)], radius)
        length = chance.uniform(15, 60) * per_mm
        lower = (at - length, front + 5 * per_mm, end + medial * chance.uniform(0, 12) * per_mm)
        mask |= tube(mask, [(at, front, end), lower], chance.uniform(1.5, 3.5) * per_mm)
    return mask


def _arteries(tissues: Tensor, spacing: float, chance: Chance) -> Tensor:
    """What leaves the aorta to the front.

    The superior mesenteric artery, and above it the celiac trunk with its branches to the spleen
    and the liver.
    """
    mask = torch.zeros_like(tissues, dtype=torch.bool)
    aorta = tissues == LABEL_OF["aorta"]
    side = "left_kidney" if chance.happens(0.5) else "right_kidney"
    at = _hilum(tissues == LABEL_OF[side], (5, 30), spacing, chance)
    if at is None or not aorta[at].any():
        return mask
    per_mm = 1 / spacing

    def jitter(mm: float) -> float:
        return chance.uniform(-mm, mm) * per_mm

    def front(height: int) -> Point:
        rows = torch.nonzero(aorta[height].any(dim=1)).flatten()
        return float(height), float(rows[0]), _middle(aorta[height])[1]

    # Superior mesenteric artery: forwards a little, then down before the aorta.
    z, y, x = front(at)
    forwards, length = chance.uniform(6, 16) * per_mm, chance.uniform(40, 90) * per_mm
    bend = (z - chance.uniform(2, 8) * per_mm, y - forwards, x + jitter(3))
    below = (z - length, y - forwards - chance.uniform(0, 12) * per_mm, x + jitter(10))
    mask |= tube(mask, [(z, y, x), bend, below], chance.uniform(2.5, 4.5) * per_mm)

    above = at + round(chance.uniform(8, 20) * per_mm)
    if above >= len(aorta) or not aorta[above].any():
        return mask
    z, y, x = front(above)
    end = (z + jitter(6), y - chance.uniform(10, 25) * per_mm, x + jitter(5))
    mask |= tube(mask, [(z, y, x), end], chance.uniform(2.5, 4.0) * per_mm)
    # Splenic artery, in windings; with no spleen in sight, to the left and back.
    hilum = (end[0] + jitter(15), end[1] + 30 * per_mm, end[2] + 80 * per_mm)
    spleen = torch.nonzero(tissues == LABEL_OF["spleen"])
    if len(spleen):
        middle = spleen.float().mean(dim=0)
        hilum = (float(middle[0]), float(middle[1]), float(spleen[:, 2].min()))
    course = [end]
    for share in (0.2, 0.4, 0.6, 0.8):
        z, y, x = (a + share * (b - a) for a, b in zip(end, hilum, strict=True))
        course.append((z + jitter(8), y + jitter(8), x + jitter(8)))
    mask |= tube(mask, [*course, hilum], chance.uniform(1.8, 3.5) * per_mm)
    # Common hepatic artery.
    right = chance.uniform(30, 70) * per_mm
    halfway = (end[0] + jitter(8), end[1] + jitter(6), end[2] - right / 2)
    last = (end[0] + jitter(15), end[1] + jitter(12), end[2] - right)
    mask |= tube(mask, [end, halfway, last], chance.uniform(1.8, 3.0) * per_mm)
    return mask


def _nodes(tissues: Tensor, spacing: float, chance: Chance) -> Tensor:
    """Lymph nodes and ganglia beside the aorta: beans and bands a few millimetres thick."""
    mask = torch.zeros_like(tissues, dtype=torch.bool)
    aorta = tissues == LABEL_OF["aorta"]
    slices = torch.nonzero(aorta.any(dim=2).any(dim=1)).flatten()
    if not len(slices):
        return mask
    per_mm = 1 / spacing
    for _ in range(1 + chance.integer(8)):
        height = int(slices[chance.integer(len(slices))])
        y, x = _middle(aorta[height])
        radius = chance.uniform(2, 5)
        vessel = spacing * float(aorta[height].sum() / math.pi) ** 0.5
        away = (vessel + radius + chance.uniform(0, 20)) * per_mm
        angle = chance.uniform(-0.65, 0.65) * math.pi  # from the front, not into the spine
        centre = (float(height), y - away * math.cos(angle), x + away * math.sin(angle))
        z, y, x = (c + chance.uniform(-16, 16) * per_mm for c in centre)
        mask |= tube(mask, [centre, (z, y, x)], radius * per_mm)
    return mask


def _any_of(tissues: Tensor, *names: str) -> Tensor:
    mask = torch.zeros_like(tissues, dtype=torch.bool)
    for name in names:
        mask |= tissues == LABEL_OF[name]
    return mask


def _heights(mask: Tensor) -> tuple[int, int] | None:
    """The lowest and the highest slice of a mask; None of an empty one."""
    slices = torch.nonzero(mask.any(dim=2).any(dim=1)).flatten()
    return (int(slices[0]), int(slices[-1])) if len(slices) else None


def _hilum(
    kidney: Tensor, around: tuple[float, float], spacing: float, chance: Chance
) -> int | None:
    """A slice of a kidney that lies so many mm above its middle; None if that is not in the patch.

    Of a kidney of which the patch cuts off an end, the middle is told from the other one; of one
    of which it cuts off both, it is where it may be.
    """
    heights = _heights(kidney)
    if heights is None:
        return None
    bottom, top = heights
    half = _HALF_A_KIDNEY / spacing
    if bottom > 0 and top < len(kidney) - 1:
        middle = (bottom + top) / 2
    elif bottom > 0:
        middle = bottom + half
    elif top < len(kidney) - 1:
        middle = top - half
    else:
        middle = chance.uniform(*sorted((top - half, bottom + half)))
    at = round(middle + chance.uniform(*around) / spacing)
    return at if 0 <= at < len(kidney) and kidney[at].any() else None


def _middle(area: Tensor) -> tuple[float, float]:
    """The mean place (y, x) of a mask in a slice."""
    y, x = torch.nonzero(area).float().mean(dim=0).tolist()
    return y, x
