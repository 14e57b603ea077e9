"""What the scanner makes of a body: the couch below it, blur, noise and the field of view."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.hounsfield import AIR, DENSEST
from training.sampling.chance import Chance
from training.sampling.separable import blur


def add_couch(hu: Tensor, hull: Tensor, chance: Chance, spacing: float) -> None:
    """Lay the patient on a curved couch: a bright shell around foam, behind the back.

    Args:
        hu: (z, y, x) in LPS orientation, edited in place.
        hull: (z, y, x), signed distance in mm to the hull of the labelled structures.
        chance: source of chance, on the volumes' device.
        spacing: isotropic spacing in mm.
    """
    rows = torch.nonzero((hu > -300).any(dim=2).any(dim=0)).flatten()
    if not len(rows):
        return
    width = hu.shape[2]
    across = torch.linspace(-1, 1, width, device=hu.device)
    sag = chance.uniform(0, 45) * across**2
    top = (float(rows[-1]) + 1) * spacing + chance.uniform(-10, 15) - sag + sag.min()
    y = (torch.arange(hu.shape[1], device=hu.device) * spacing)[:, None]
    below = y - top[None, :]
    thickness = chance.uniform(20, 60)
    air = (hu < -500) & (hull > 0)
    foam = air & ((below > 0) & (below < thickness))[None]
    behind = below - thickness
    shell = air & (((below > 0) & (below < 4)) | ((behind > 0) & (behind < 4)))[None]
    hu[foam] = chance.uniform(-960, -800)
    hu[shell] = chance.uniform(-400, 300)


def scanned(hu: Tensor, chance: Chance, spacing: float) -> Tensor:
    """A body as it is measured: point spread, slice thickness, noise and a slight offset.

    Args:
        hu: float32 (z, y, x).
        chance: source of chance, on the volume's device.
        spacing: isotropic spacing in mm.

    Returns:
        float32 (z, y, x), within the range of 12 bits.
    """
    in_plane = chance.uniform(0.25, 0.7) if chance.happens(0.8) else chance.uniform(0.7, 1.3)
    thick = chance.uniform(0.2, 0.6) if chance.happens(0.55) else chance.uniform(0.6, 1.4)
    hu = blur(hu, (thick * 3 / spacing, in_plane * 3 / spacing, in_plane * 3 / spacing))
    sigma = min(60.0, 2.718 ** chance.normal(2.0, 0.8))
    noise = chance.noise(hu.shape)
    if chance.happens(0.5):
        noise = blur(noise, (thick, 0.6, 0.6))
        noise /= noise.std()
    if chance.happens(0.5):
        noise *= (1 + 0.4 * chance.field(hu.shape, 30)).clamp_(0.2, 2.5)
    hu = hu + noise * sigma + chance.normal(0, 4)
    return hu.clamp_(AIR, DENSEST)


def field_of_view(shape: torch.Size, chance: Chance) -> Tensor:
    """What was reconstructed of each slice: seldom only what lies within a circle.

    Args:
        shape: of the CT (z, y, x).
        chance: source of chance.

    Returns:
        bool (y, x), on the CPU.
    """
    _, height, width = shape
    if not chance.happens(0.12):
        return torch.ones(height, width, dtype=torch.bool)
    y = torch.linspace(-1, 1, height)[:, None] * height / width
    x = torch.linspace(-1, 1, width)[None, :]
    radius = chance.uniform(0.7, 1.0)
    inside: Tensor = y**2 + x**2 <= radius**2
    return inside
