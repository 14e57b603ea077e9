"""Loops of colon against the stomach, which few label maps show and many patients have.

Full of gas in front of the stomach or beside it, colon looks as a stomach does that holds gas:
only the wall between the two and the level of the fluid tell them apart. A network that saw few
of them calls them stomach.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference.organs import LABEL_OF
from training.data.tissues import Tissue
from training.sampling.chance import Chance
from training.synthetic.tubes import Point, tube

_LEAST_STOMACH = 15_000.0  # mm3, below which a patch shows too little of one
_MOST_TAKEN = 0.35  # of the stomach; more would not be an impression but another organ
_REPLACED = (Tissue.NONE, Tissue.SMALL_BOWEL)


def add_colon(tissues: Tensor, hull: Tensor, spacing: float, chance: Chance) -> Tensor:
    """Draw a loop of colon that touches the stomach, or presses into it, in half of the calls.

    It takes the place of what is not labelled, of bowel and of a little of the stomach; of no
    other organ.

    Args:
        tissues: integer (z, y, x) in LPS orientation, values of `training.data.tissues`.
        hull: (z, y, x), signed distance in mm to the hull of the labelled structures.
        spacing: isotropic spacing in mm.
        chance: source of chance, on the tissues' device.

    Returns:
        The tissues, more of them colon.
    """
    if not chance.happens(0.5):
        return tissues
    stomach = tissues == LABEL_OF["stomach"]
    voxels = torch.nonzero(stomach)
    if len(voxels) * spacing**3 < _LEAST_STOMACH:
        return tissues
    radius = chance.uniform(10, 28) / spacing
    # To the front, up or down, to the left (the splenic flexure) or to the right (the hepatic one).
    outwards = torch.tensor([0.6, 1.0, 0.8]) * chance.normals(3)
    outwards[1] = -outwards[1].abs()
    outwards /= outwards.norm().clamp(min=1e-3)
    inside = voxels[chance.integer(len(voxels))].cpu().float()
    surface = _leaves(stomach, inside, outwards)
    pressed = chance.uniform(0, 20) / spacing if chance.happens(0.6) else 0.0
    middle = surface + outwards * (radius - pressed)

    along = torch.tensor([0.6, 0.3, 1.0]) * chance.normals(3)
    along -= outwards * (along @ outwards)
    along /= along.norm().clamp(min=1e-3)
    bend = outwards * chance.uniform(-0.3, 0.5)  # towards the stomach or away from it
    one_end, other_end = -chance.uniform(25, 90) / spacing, chance.uniform(25, 90) / spacing
    course: list[Point] = []
    for length in (one_end, one_end / 2, 0.0, other_end / 2, other_end):
        swerve = chance.normals(3) * (8 / spacing if length else 0)
        z, y, x = (middle + along * length + bend * abs(length) + swerve).tolist()
        course.append((z, y, x))
    haustra = 1 + chance.uniform(0.05, 0.3) * chance.field(tissues.shape, 22 / spacing)
    loop = tube(tissues, course, radius * haustra.clamp(0.5, 1.5))

    room = torch.isin(tissues, torch.tensor(_REPLACED, device=tissues.device))
    room &= hull < -chance.uniform(4, 10)  # what lies outside is the abdominal wall
    if (loop & stomach).sum() <= _MOST_TAKEN * len(voxels):
        room |= stomach
    return tissues.masked_fill(loop & room, Tissue.COLON)


def _leaves(mask: Tensor, inside: Tensor, direction: Tensor) -> Tensor:
    """Where a ray leaves a mask for good; ``inside`` (3,) and its ``direction`` in voxels."""
    steps = inside + torch.arange(sum(mask.shape))[:, None] * direction
    places = steps.round().long()
    within = ((places >= 0) & (places < torch.tensor(mask.shape))).all(dim=1)
    z, y, x = places[within].to(mask.device).unbind(dim=1)
    return steps[int(torch.nonzero(mask[z, y, x])[-1])]
