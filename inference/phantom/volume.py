"""The phantom as CT and label images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from inference.grid import Shape, Spacing
from inference.hounsfield import AIR, DENSEST
from inference.phantom.anatomy import anatomy
from inference.phantom.painting import render
from inference.phantom.patient import PHASES, Patient
from inference.phantom.solids import Float32Array


def make_phantom(
    shape: Shape = (100, 200, 200),
    spacing: Spacing = (3.0, 2.0, 2.0),
    seed: int = 0,
    *,
    phase: str | None = None,
    noise: float | None = None,
    centre: float = 0.0,
) -> tuple[sitk.Image, sitk.Image]:
    """Make a CT and its labels.

    The volume is centred on the upper abdomen, in the patient's axes (direction: identity, LPS).
    What is seen follows from its physical size: about 300 mm along z hold all organs; more adds
    the chest above and the pelvis below, then head and legs. Volumes are painted a few slices at
    a time, so that beyond the result little memory is needed.

    Args:
        shape: voxels (z, y, x).
        spacing: millimetres (z, y, x). Slices thicker than 2 mm average what they cover.
        seed: changes sizes, places and shapes of the anatomy, the contrast phase and the noise;
            the same seed gives the same patient at any shape and spacing.
        phase: one of `PHASES`; by default the seed decides.
        noise: standard deviation in HU; by default what the slice thickness makes usual.
        centre: millimetres by which the middle of the volume lies above the organs' middle.

    Returns:
        The CT (int16, HU) and its labels (uint8, the values of `inference.organs.ORGANS`), on
        the same grid.

    Raises:
        ValueError: a size or spacing is not positive, or there is no such phase.
    """
    if min(shape) < 1 or not min(spacing) > 0:
        raise ValueError(f"shape {shape} or spacing {spacing} is not positive")
    if phase is not None and phase not in PHASES:
        raise ValueError(f"phase {phase!r} is none of {', '.join(PHASES)}")
    rng = np.random.default_rng(seed)
    patient = Patient(rng, phase)
    paints = anatomy(patient)
    if noise is None:
        noise = float(np.clip(11.0 * np.sqrt(3.0 / spacing[0]), 6.0, 25.0))

    z, y, x = (
        ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
        for n, step in zip(shape, spacing, strict=True)
    )
    z += np.float32(centre)
    parts = 3 if spacing[0] > 2 else 1  # odd: the label is that of the middle part
    offsets = ((np.arange(parts) - parts // 2) * (spacing[0] / parts)).astype(np.float32)
    softness = max(1.0, spacing[1], spacing[2])

    ct = np.empty(shape, np.int16)
    labels = np.empty(shape, np.uint8)
    step = max(1, 3_000_000 // (shape[1] * shape[2] * parts))
    for start in range(0, shape[0], step):
        part = slice(start, min(start + step, shape[0]))
        heights = (z[part, None] + offsets).ravel()
        hu, organs = render(patient, paints, heights, y, x, softness)
        hu = hu.reshape(-1, parts, *shape[1:]).mean(axis=1, dtype=np.float32)
        hu += _grain(rng, hu.shape, noise)
        ct[part] = np.clip(np.rint(hu), AIR, DENSEST)
        labels[part] = organs[parts // 2 :: parts]

    images = []
    for array in (ct, labels):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(tuple(float(step) for step in reversed(spacing)))
        image.SetOrigin((float(x[0]), float(y[0]), float(z[0])))
        images.append(image)
    return images[0], images[1]


def _grain(rng: np.random.Generator, shape: Sequence[int], sigma: float) -> Float32Array:
    """Noise with the short-range correlation that reconstruction kernels leave."""
    grain = rng.standard_normal(tuple(shape), np.float32)
    for axis in (1, 2):
        grain = grain + 0.45 * np.roll(grain, 1, axis)
    grain *= np.float32(sigma / (1 + 0.45**2))
    return grain
