"""Synthetic CT: Hounsfield units drawn for a tissue map.

No two draws share a scanner, a contrast phase or a habitus: every range here and in `mean_hu` is
meant to be wider than what hospitals see, so that real CT lies inside (the idea of SynthSeg,
Billot et al. 2023, with anatomy-aware priors in place of uniformly random intensities). Organ
labels are exact by construction, whatever the image looks like.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.hounsfield import AIR
from inference.organs import LABEL_OF
from training.data.tissues import Tissue
from training.sampling.chance import Chance
from training.sampling.separable import share_nearby
from training.synthetic.mean_hu import draw_mean_hu, draw_phase
from training.synthetic.scanner import add_couch, field_of_view, scanned

_FULL, _WIDE = 120_000.0, 4000.0  # mm3 of a stomach that is not empty, mm2 of its widest slice

_FAR_FROM_BOWEL = torch.tensor([Tissue.NERVE, Tissue.LUNG, Tissue.HEART])


def synthesise(
    tissues: Tensor, hull: Tensor, spacing: float, chance: Chance
) -> tuple[Tensor, Tensor]:
    """Draw a CT for a tissue map.

    Args:
        tissues: integer (z, y, x) in LPS orientation, values of `training.data.tissues`.
        hull: (z, y, x), signed distance in mm to the hull of the labelled structures.
        spacing: isotropic spacing in mm.
        chance: source of chance, on the tissues' device.

    Returns:
        float32 (z, y, x), Hounsfield units; bool (z, y, x), what lies in the field of view: no
        organ can be labelled beyond it.
    """
    shape = tissues.shape
    tissues = tissues.long()
    hull = hull.float()
    arterial, venous = draw_phase(chance)
    mean_hu = draw_mean_hu(chance, arterial, venous)  # stays where single numbers are cheap to read

    hu = mean_hu.to(tissues.device)[tissues]
    _fill_body(hu, tissues, hull, mean_hu, chance, spacing)
    soft = hu > -300
    texture = chance.field(shape, 8 / spacing) * chance.uniform(1, 8)
    texture += chance.field(shape, 30 / spacing) * chance.uniform(1, 7)
    hu += texture * soft
    _vessels_and_lesions(hu, tissues, mean_hu, chance, spacing)
    _unmixed_blood(hu, tissues, chance, spacing, arterial, venous)
    _pancreas(hu, tissues, mean_hu, chance, spacing)
    _gallbladder(hu, tissues, chance, spacing, venous)
    _kidneys(hu, tissues, chance, arterial, venous)
    _hollow_organs(hu, tissues, mean_hu, chance, spacing)
    _bones(hu, tissues, chance)
    _lungs(hu, tissues, mean_hu, chance, spacing)
    if chance.happens(0.5):
        add_couch(hu, hull, chance, spacing)
    hu = scanned(hu, chance, spacing)
    seen = field_of_view(shape, chance).to(hu.device).expand(shape)
    return hu.masked_fill(~seen, AIR), seen


def _fill_body(
    hu: Tensor, tissues: Tensor, hull: Tensor, mean_hu: Tensor, chance: Chance, spacing: float
) -> None:
    """Air, skin, fat, the abdominal wall and what lies loose in the belly, where unlabelled."""
    shape = tissues.shape
    unlabelled = tissues == Tissue.NONE
    lean = chance.uniform(0, 1)
    thickness = 3 + (1 - lean) ** 1.5 * chance.uniform(10, 50)
    variation = chance.uniform(0.1, 0.45)
    surface = (thickness * (1 + variation * chance.field(shape, 60 / spacing))).clamp_(2, 58)
    wall = chance.uniform(4, 16) * (1 + 0.3 * chance.field(shape, 40 / spacing))
    # Muscles outside the ribs too: what an organ touches is the wall, not the fat under the skin.
    outer = chance.uniform(0, 14) * (1 + 0.6 * chance.field(shape, 35 / spacing)).clamp_(min=0)
    outer = torch.minimum(outer, surface - 2)
    fat = float(mean_hu[Tissue.NONE])

    outside = unlabelled & (hull > surface)
    skin = unlabelled & ~outside & (hull > surface - chance.uniform(1.5, 4))
    muscle = unlabelled & (hull < outer) & (hull > -wall)
    deep = unlabelled & (hull <= -wall)
    # Kidneys and adrenal glands lie in fat of their own, the esophagus in the mediastinum's.
    loose = deep
    if chance.happens(0.8):
        loose = deep & (share_nearby(_in_own_fat(tissues), 13) <= chance.uniform(0, 0.05))

    # Mesentery, unlabelled bowel and vessels: little in an obese belly, nearly all of a lean one.
    share = min(0.85, 0.05 + 0.75 * lean * chance.uniform(0.4, 1.0))
    lumps = chance.field(shape, chance.uniform(12, 35) / spacing)
    packed = loose & (lumps > _exceeded_by(share))
    hu[packed] = chance.normal(30, 12)
    # Loops of bowel enhance as the pancreas does, and lie beside it: they must be told apart by
    # their shape and their folds.
    loops = packed & (chance.field(shape, chance.uniform(10, 25) / spacing) > chance.normal(0, 1))
    folds = chance.field(shape, 4 / spacing) * chance.uniform(0, 25)
    hu[loops] = float(mean_hu[Tissue.SMALL_BOWEL]) + chance.normal(0, 8) + folds[loops]
    if chance.happens(0.06):  # ascites
        hu[loose & ~packed] = chance.normal(8, 5)
    strands = deep & ~packed & chance.tubes(shape, 14 / spacing, chance.uniform(0.1, 0.35))
    hu[strands] = float(mean_hu[Tissue.VEIN]) * chance.uniform(0.4, 1.0)
    if chance.happens(0.6):
        # Not beside the spinal cord, the lungs and the heart, where there is no bowel.
        elsewhere = torch.isin(tissues, _FAR_FROM_BOWEL.to(tissues.device))
        near = share_nearby(elsewhere, 17) > 0
        _loose_colon(hu, loose & ~near, mean_hu, chance, spacing)
    hu[unlabelled & (hull >= outer)] = fat + chance.normal(0, 4)
    hu[muscle] = float(mean_hu[Tissue.MUSCLE])
    marbling = muscle & (chance.field(shape, 10 / spacing) > chance.uniform(0.8, 3))
    hu[marbling] = fat
    hu[skin] = chance.uniform(-60, 40)
    hu[outside] = -1000


def _in_own_fat(tissues: Tensor) -> Tensor:
    names = "right_kidney", "left_kidney", "right_adrenal_gland", "left_adrenal_gland", "esophagus"
    values = torch.tensor([LABEL_OF[name] for name in names], device=tissues.device)
    return torch.isin(tissues, values)


def _loose_colon(
    hu: Tensor, loose: Tensor, mean_hu: Tensor, chance: Chance, spacing: float
) -> None:
    """Stool and gas behind a thin wall, anywhere: gas beside the stomach need not be its own."""
    shape = loose.shape
    depth = chance.field(shape, chance.uniform(18, 40) / spacing) - chance.uniform(0.8, 1.7)
    wall, lumen = loose & (depth > 0), loose & (depth > chance.uniform(0.08, 0.25))
    wall_hu = float(mean_hu[Tissue.COLON]) + chance.normal(0, 8)
    hu[wall] = wall_hu
    stool = chance.uniform(-60, 50) + 45 * chance.noise(shape)
    hu[lumen] = stool[lumen]
    front = torch.linspace(1, -1, shape[1], device=hu.device)[None, :, None]
    gas = lumen & (front + _loops(shape, chance, spacing) > chance.uniform(-0.8, 0.8))
    hu[gas] = -950
    hu[gas & _folds(shape, chance, spacing)] = wall_hu


def _loops(shape: torch.Size, chance: Chance, spacing: float) -> Tensor:
    """What is added to how far to the front a voxel lies (-1 to 1) where gas is looked for.

    Gas rises within a loop, not from one to the next: the colon's flexures, which lie far back
    beside the spleen and the stomach, are as often full of it as what lies in front.
    """
    return chance.uniform(0, 0.6) * chance.field(shape, chance.uniform(40, 90) / spacing)


def _folds(shape: torch.Size, chance: Chance, spacing: float) -> Tensor:
    """Thin walls across the colon's gas, which the stomach's has not: between its haustra."""
    thickness = chance.uniform(0.02, 0.08) if chance.happens(0.7) else 0.0  # or none are seen
    return chance.field(shape, chance.uniform(25, 45) / spacing).abs() < thickness


def _vessels_and_lesions(
    hu: Tensor, tissues: Tensor, mean_hu: Tensor, chance: Chance, spacing: float
) -> None:
    shape = tissues.shape
    liver = tissues == LABEL_OF["liver"]
    tree = liver & chance.tubes(shape, 35 / spacing, chance.uniform(0.1, 0.28))
    hu[tree] = float(mean_hu[Tissue.VEIN])
    if chance.happens(0.3):
        solid = liver | (tissues == LABEL_OF["spleen"]) | (tissues == LABEL_OF["right_kidney"])
        solid |= tissues == LABEL_OF["left_kidney"]
        blobs = solid & (chance.field(shape, chance.uniform(12, 40) / spacing) > 2.2)
        if chance.happens(0.5):
            hu[blobs] = chance.normal(8, 6)
        else:
            hu[blobs] += chance.normal(-15, 30)
    spleen = tissues == LABEL_OF["spleen"]
    hu[spleen] += (chance.field(shape, 15 / spacing) * chance.uniform(0, 12))[spleen]


def _unmixed_blood(
    hu: Tensor, tissues: Tensor, chance: Chance, spacing: float, a: float, v: float
) -> None:
    """Contrast comes to each vein in its own time: first to the kidneys', last to the legs'."""
    shape = tissues.shape
    vein, cava = tissues == Tissue.VEIN, tissues == LABEL_OF["inferior_vena_cava"]
    hu[vein] += (chance.field(shape, 70 / spacing) * chance.uniform(0, 60) * a)[vein]
    unevenness = chance.uniform(0, 15 + 25 * a)
    hu[cava] += (chance.field(shape, 15 / spacing) * unevenness)[cava]
    kidney = (tissues == LABEL_OF["right_kidney"]) | (tissues == LABEL_OF["left_kidney"])
    if chance.happens(0.5):
        slices = torch.nonzero(kidney.any(dim=2).any(dim=1)).flatten()
        if len(slices):
            inflow = float(slices.float().mean()) + chance.uniform(-15, 25) / spacing
        elif (tissues == LABEL_OF["liver"]).any():
            return  # above the kidneys
        else:
            inflow = shape[0] + 20 / spacing
        height = torch.arange(shape[0], device=hu.device)[:, None, None]
        below = ((inflow - height) * spacing / 20).clamp(0, 1)  # it takes 20 mm to mix
        hu -= below * cava * (hu - 40).clamp(min=0) * chance.uniform(0, 1) * max(a, v)


def _pancreas(hu: Tensor, tissues: Tensor, mean_hu: Tensor, chance: Chance, spacing: float) -> None:
    """What lies within many and annotators leave in: cysts, masses, a wide duct, some fat.

    Little fat: where a third of the organ was, the fat around real ones became pancreas.
    """
    shape = tissues.shape
    pancreas = tissues == LABEL_OF["pancreas"]
    if not pancreas.any():
        return
    if chance.happens(0.25):
        lumps = chance.field(shape, chance.uniform(10, 30) / spacing)
        lesions = pancreas & (lumps > chance.uniform(1.2, 2.2))
        cystic = chance.happens(0.4)
        darker = float(mean_hu[LABEL_OF["pancreas"]]) - chance.uniform(10, 50)
        hu[lesions] = chance.uniform(0, 25) if cystic else darker
    if chance.happens(0.2):
        core = pancreas & (share_nearby(pancreas, 5) > chance.uniform(0.85, 0.99))
        hu[core & (chance.field(shape, 30 / spacing).abs() < 0.3)] = chance.uniform(0, 25)
    if chance.happens(0.3):
        lobules = chance.field(shape, chance.uniform(4, 8) / spacing)
        fat = lobules > _exceeded_by(chance.uniform(0.03, 0.15))
        hu[pancreas & fat] = float(mean_hu[Tissue.NONE])


def _gallbladder(hu: Tensor, tissues: Tensor, chance: Chance, spacing: float, v: float) -> None:
    """Its wall, which annotators leave in; stones, sludge or contrast, which lie at the back."""
    gallbladder = tissues == LABEL_OF["gallbladder"]
    if not gallbladder.any():
        return
    if chance.happens(0.15):
        rows = torch.nonzero(gallbladder.any(dim=2).any(dim=0)).flatten()
        first = int(rows[0]) + chance.uniform(0.4, 0.9) * float(rows[-1] - rows[0])
        behind = torch.arange(tissues.shape[1], device=hu.device)[None, :, None] >= first
        settled = gallbladder & behind
        if chance.happens(0.5):
            settled &= chance.field(tissues.shape, chance.uniform(6, 14) / spacing) > 0
        hu[settled] = chance.uniform(50, 400)
    if chance.happens(0.4):
        wall = gallbladder & (share_nearby(gallbladder, 3) < chance.uniform(0.6, 0.85))
        hu[wall] = chance.normal(35, 8) + chance.uniform(10, 60) * v


def _exceeded_by(share: float) -> float:
    """The threshold that a standard normal variable exceeds with this probability."""
    return float(torch.erfinv(torch.tensor(1 - 2 * share))) * 2**0.5


def _kidneys(hu: Tensor, tissues: Tensor, chance: Chance, a: float, v: float) -> None:
    """Cortex brighter than medulla early; urine in the middle, dark or full of contrast."""
    kidney = (tissues == LABEL_OF["right_kidney"]) | (tissues == LABEL_OF["left_kidney"])
    depth = share_nearby(kidney, 5)
    medulla = kidney & (depth > 0.92)
    hu[medulla] -= chance.uniform(10, 100) * a * (1 - 0.7 * v)
    pelvis = kidney & (share_nearby(kidney, 7) > chance.uniform(0.9, 1.2))
    hu[pelvis] = chance.uniform(150, 600) if chance.happens(0.12) else chance.uniform(-30, 30)


def _hollow_organs(
    hu: Tensor, tissues: Tensor, mean_hu: Tensor, chance: Chance, spacing: float
) -> None:
    """Fluid, food, stool, oral contrast and gas inside the gut; gas rises to the front."""
    shape = tissues.shape
    oral_contrast = chance.happens(0.4)
    clumps = chance.field(shape, 12 / spacing)
    grain = chance.noise(shape)
    front = torch.linspace(1, -1, shape[1], device=hu.device)[None, :, None]
    gut = (
        (LABEL_OF["stomach"], 0.35, 0.5),
        (LABEL_OF["duodenum"], 0.5, 0.15),
        (LABEL_OF["esophagus"], 0.5, 0.4),
        (Tissue.SMALL_BOWEL, 0.45, 0.15),
        (Tissue.COLON, 0.2, 0.8),
    )
    for value, collapsed, gas in gut:
        mask = tissues == value
        # A large stomach is full of something.
        large = value == LABEL_OF["stomach"] and _is_large(mask, spacing)
        if not mask.any() or (chance.happens(collapsed) and not large):
            continue
        # The stomach's wall is often thicker than the bowel's.
        reach = 5 if value == LABEL_OF["stomach"] and chance.happens(0.5) else 3
        lumen = mask & (share_nearby(mask, reach) > chance.uniform(0.75, 0.99))
        if value == Tissue.COLON and not (oral_contrast and chance.happens(0.4)):
            content = chance.uniform(-60, 50) + 45 * grain + 30 * clumps
        elif oral_contrast and (value == Tissue.COLON or chance.happens(0.8)):
            content = chance.uniform(120, 450) + 30 * clumps
        elif chance.happens(0.3):
            content = chance.uniform(0, 50) + 30 * clumps + 25 * grain
        else:
            content = chance.uniform(0, 30) + 4 * clumps
        hu[lumen] = content[lumen]
        if chance.happens(gas):
            places = torch.nonzero(mask.any(dim=2).any(dim=0)).flatten()
            height = (places[-1] - places[0]).item() / shape[1]
            middle = float(front[0, places, 0].mean())
            level = middle + chance.uniform(-0.6, 1.0) * height
            rising = front
            if value in (Tissue.COLON, Tissue.SMALL_BOWEL):
                rising = front + 0.15 * clumps + _loops(shape, chance, spacing)
            filled = lumen & (rising > level)
            hu[filled] = -950
            if value == Tissue.COLON:
                hu[filled & _folds(shape, chance, spacing)] = float(mean_hu[Tissue.COLON])


def _is_large(stomach: Tensor, spacing: float) -> bool:
    """Whether a stomach, of which a patch of few slices shows a part, is not an empty one."""
    areas = stomach.sum(dim=(1, 2)) * spacing**2
    return float(areas.sum()) * spacing > _FULL or float(areas.max()) > _WIDE


def _bones(hu: Tensor, tissues: Tensor, chance: Chance) -> None:
    bone = tissues == Tissue.BONE
    cortex = bone & (share_nearby(bone, 3) < 0.8)
    hu[cortex] = chance.uniform(250, 700)


def _lungs(hu: Tensor, tissues: Tensor, mean_hu: Tensor, chance: Chance, spacing: float) -> None:
    shape = tissues.shape
    lung = tissues == Tissue.LUNG
    if not lung.any():
        return
    dependent = torch.linspace(-1, 1, shape[1], device=hu.device)[None, :, None] * chance.uniform(
        0, 120
    )
    grain = chance.field(shape, 8 / spacing) * 30 + dependent
    hu[lung] += grain[lung]
    vessels = lung & chance.tubes(shape, 18 / spacing, chance.uniform(0.1, 0.3))
    hu[vessels] = float(mean_hu[Tissue.HEART]) * chance.uniform(0.3, 1)
    if chance.happens(0.1):  # effusion or consolidation behind
        level = torch.linspace(-1, 1, shape[1], device=hu.device)[None, :, None] > chance.uniform(
            0.1, 0.5
        )
        hu[lung & level] = chance.uniform(0, 50)
