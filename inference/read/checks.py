"""What is wrong with a volume: its grid, its values, how it lies, the memory there is for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.errors import CaseError
from inference.machine import free_memory

_MUCH_SPLEEN = 150.0  # ml; of less, a slab may show more than of the liver
_MUCH_LIVER = 500.0  # ml
_LEAST_VENA_CAVA = 0.005  # of the volume of so much liver; half of what any slab showed


@dataclass(frozen=True)
class Intensities:
    """What the voxel values of a CT are.

    Attributes:
        offset: what has to be added to make them HU.
        warnings: what a user should know about them.
    """

    offset: float = 0.0
    warnings: tuple[str, ...] = field(default=())


def check_geometry(image: sitk.Image) -> None:
    """Check that an image is one scalar volume with a sound grid.

    Raises:
        CaseError: it is 2D or 4D, has several components, or its spacing or direction is
            impossible.
    """
    if image.GetDimension() > 3:
        raise CaseError(f"is a {image.GetDimension()}D image; take one of its volumes")
    check_kind(image.GetSize(), image.GetNumberOfComponentsPerPixel())
    if "complex" in image.GetPixelIDTypeAsString() or "label" in image.GetPixelIDTypeAsString():
        raise CaseError(f"has voxels of type {image.GetPixelIDTypeAsString()}, not numbers")
    check_spacing(image.GetSpacing(), image.GetDimension())
    direction = np.reshape(image.GetDirection(), (3, 3))
    if not np.isfinite(direction).all() or abs(np.linalg.det(direction)) < 1e-3:
        raise CaseError("has impossible axis directions")
    if not np.isfinite(image.GetOrigin()).all():
        raise CaseError("has an origin that is not a number")


def check_intensities(volume: NDArray[Any]) -> Intensities:
    """Find out whether voxel values are HU.

    A CT that was stored with 1024 added is recognised by many voxels near 1024 (fat and soft
    tissue), where HU have few (dense bone), and hardly any where HU have fat. Single voxels tell
    nothing: padding and overshoot may lie anywhere.

    Args:
        volume: shape (z, y, x), any real type. It is looked at slice by slice.

    Raises:
        CaseError: voxels are NaN or infinite, or all are the same.
    """
    lowest, highest = math.inf, -math.inf
    for plane in volume:
        low, high = float(plane.min()), float(plane.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CaseError("has voxels that are NaN or infinite")
        lowest, highest = min(lowest, low), max(highest, high)
    if lowest == highest:
        raise CaseError(f"is constant: every voxel is {lowest:g}")
    span = f"values from {lowest:g} to {highest:g}"
    some = volume[:: max(1, volume.shape[0] // 32), ::4, ::4]
    shifted = ((some > 900) & (some < 1130)).mean()
    fat = ((some > -200) & (some < -30)).mean()
    if shifted > 0.05 and shifted > fat:
        return Intensities(-1024.0, (f"{span} look like HU + 1024: 1024 was taken off",))
    if lowest > -200:
        return Intensities(0.0, (f"{span} do not look like HU: the labels may be useless",))
    return Intensities()


def check_orientation(millilitres: Mapping[str, float]) -> tuple[str, ...]:
    """Find out from the organs whether a CT lies as its header says.

    A network that knows the right from the left by where they lie calls the liver of a mirrored
    CT spleen. Four real CTs that were mirrored, or turned upon their front (what taking RAS for LPS
    does), against their headers had more spleen than liver every time; among 34 patients' labels,
    whole or cut into slabs, those of one huge spleen alone. Five that were mirrored front to back
    had, by abdoseg's network, a liver but hardly any vena cava (0 to 0.3 % of the liver's volume).
    It runs along every liver: the same CTs as they are have 3 % or more, and any slab of them
    1.2 %. Of a CT that is upside down, neither can be said.

    Args:
        millilitres: volume of each organ, by name; of a model that has other organs, nothing is
            said.

    Returns:
        What a user should know.
    """
    liver, spleen = millilitres.get("liver"), millilitres.get("spleen")
    vena_cava = millilitres.get("inferior_vena_cava")
    if liver is None:
        return ()
    if spleen is not None and spleen >= _MUCH_SPLEEN and spleen > liver:
        return (
            f"the spleen came out larger than the liver ({spleen:.0f} and {liver:.0f} ml): if it "
            "is not, the CT is mirrored or turned against its header and the labels are useless",
        )
    if vena_cava is not None and liver >= _MUCH_LIVER and vena_cava < _LEAST_VENA_CAVA * liver:
        return (
            f"hardly any vena cava was found behind {liver:.0f} ml of liver ({vena_cava:.1f} ml): "
            "perhaps the CT's front and back are exchanged against its header, and the labels are "
            "useless",
        )
    return ()


def check_room(size: Sequence[int], pixel: int, beside: int = 0) -> None:
    """Raise CaseError where there is not enough memory for an image, and so many bytes beside it.

    Args:
        size: voxels.
        pixel: SimpleITK's pixel type.
        beside: bytes.
    """
    voxel = sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], pixel)).itemsize
    if math.prod(size) * voxel + beside > free_memory():
        raise CaseError("is too large for the memory there is")


def check_kind(size: tuple[int, ...], components: int) -> None:
    """Raise CaseError for what is not one scalar volume; one volume in 4D passes."""
    text = " x ".join(str(n) for n in size)
    if any(n < 1 for n in size[:3]):
        raise CaseError(f"has an impossible size ({text} voxels)")
    if len(size) > 3 and any(n != 1 for n in size[3:]):
        raise CaseError(f"is a series of volumes ({text}), not one CT volume")
    if len(size) < 3:
        raise CaseError(f"is a {len(size)}D image ({text}), not a CT volume")
    if components != 1:
        raise CaseError(f"has {components} values per voxel (a colour or vector image), not one")


def check_spacing(spacing: tuple[float, ...], axes: int = 3) -> None:
    """Raise CaseError where one of the first axes, three at most, has no positive spacing."""
    used = spacing[: max(1, min(3, axes))]
    if not all(math.isfinite(size) and size > 0 for size in used):
        raise CaseError(
            "has an impossible spacing: " + " x ".join(f"{size:g}" for size in used) + " mm"
        )
