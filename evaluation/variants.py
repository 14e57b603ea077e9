"""Labelled CTs made harder: thicker slices, noise, less to see, a turned patient, lesions.

One labelled CT says little about the next one. As it would have looked from another scanner, of a
smaller patient or in another phase, it says how much an accuracy depends on such things, and
whether a difference between two systems is more than chance.
"""

from __future__ import annotations

import errno
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.volumes import list_cts, list_volumes
from inference.errors import CaseError, UsageError
from inference.hounsfield import AIR, DENSEST
from inference.organs import LABEL_OF, ORGANS
from inference.read.checks import check_intensities
from inference.read.file import read
from inference.same_grid import grid_difference
from inference.write.files import appearing, make_folder, write_image

_PLAIN_AORTA = 90.0  # HU; blood is brighter only with contrast
_NO_FAT = -30.0  # HU; what is less takes up no contrast
_SMOOTHABLE = 4  # voxels per axis that ITK's recursive filter needs

_SOLID = ("liver", "spleen", "right_kidney", "left_kidney")
_DARKER, _WATER, _GRAIN = 30.0, 8.0, 12.0  # HU: of masses, of cysts; the noise in either

_PORTAL: dict[str, float] = {
    "liver": 50, "right_kidney": 110, "spleen": 70, "pancreas": 55, "aorta": 110,
    "inferior_vena_cava": 90, "right_adrenal_gland": 50, "left_adrenal_gland": 50,
    "gallbladder": 0, "esophagus": 30, "stomach": 20, "duodenum": 45, "left_kidney": 110,
}  # fmt: skip
"""HU that contrast adds to each organ, about 70 s after it was given."""

_ARTERIAL: dict[str, float] = {
    **_PORTAL,
    "liver": 12, "spleen": 80, "pancreas": 70, "aorta": 290, "inferior_vena_cava": 30,
    "right_adrenal_gland": 60, "left_adrenal_gland": 60,
}  # fmt: skip
"""The same about 35 s after it was given."""


@dataclass(frozen=True)
class Labelled:
    """A CT and its labels.

    Attributes:
        ct: HU, turned to LPS.
        labels: uint8, on the same grid.
    """

    ct: sitk.Image
    labels: sitk.Image

    @classmethod
    def read(cls, ct: Path, labels: Path) -> Labelled:
        """Read both.

        Raises:
            CaseError: one cannot be read, the CT's voxels are no numbers or all the same, they do
                not lie on the same grid, the labels are no numbers of organs, or there is none.
        """
        images = []
        for path in (ct, labels):
            try:
                images.append(sitk.DICOMOrient(read(path).image, "LPS"))
            except CaseError as error:
                raise CaseError(f"{path.name}: {error}") from None
        image, marked = images
        try:
            offset = check_intensities(sitk.GetArrayViewFromImage(image)).offset
        except CaseError as error:
            raise CaseError(f"{ct.name}: {error}") from None
        if difference := grid_difference(marked, image):
            raise CaseError(f"{labels.name}: not on the grid of {ct.name}: {difference}")
        values = sitk.GetArrayFromImage(marked)
        if not np.isin(values, [0, *ORGANS]).all():
            raise CaseError(f"{labels.name}: values other than 0 to {max(ORGANS)}")
        if not values.any():
            raise CaseError(f"{labels.name}: no organ is labelled")
        marked = sitk.GetImageFromArray(values.astype(np.uint8))
        marked.CopyInformation(image)
        return cls(sitk.Cast(image, sitk.sitkFloat32) + offset, marked)

    def with_hu(self, hu: NDArray[np.floating]) -> Labelled:
        """The same with other HU (z, y, x)."""
        ct = sitk.GetImageFromArray(hu.astype(np.float32))
        ct.CopyInformation(self.ct)
        return Labelled(ct, self.labels)

    @property
    def shows_something(self) -> bool:
        """Whether any organ is left, in a CT that is not the same everywhere."""
        return bool(self.organs.any() and np.ptp(self.hu) > 0)

    @property
    def hu(self) -> NDArray[np.float32]:
        """HU (z, y, x)."""
        return sitk.GetArrayFromImage(self.ct)

    @property
    def organs(self) -> NDArray[np.uint8]:
        """Labels (z, y, x)."""
        return sitk.GetArrayFromImage(self.labels)


Variant = Callable[[Labelled, np.random.Generator], Labelled | None]
"""Makes one of a labelled CT; none where it would be nothing else than the CT, or cannot be."""


def _unchanged(case: Labelled, rng: np.random.Generator) -> Labelled:
    return case


def _thick(case: Labelled, rng: np.random.Generator, thickness: float) -> Labelled | None:
    """Slices of so many mm, each the mean of what lies within."""
    x, y, z = case.ct.GetSpacing()
    width, height, depth = case.ct.GetSize()
    if not z < thickness <= depth * z:
        return None
    # As wide as the mean over a slice, less what the CT's own slices have blurred already.
    variance = (thickness**2 - z**2) / 12
    ct = sitk.DiscreteGaussian(case.ct, [0.0, 0.0, variance], useImageSpacing=True)
    size = (width, height, int(depth * z / thickness))
    return _resampled(Labelled(ct, case.labels), spacing=(x, y, thickness), size=size)


def _noisy(case: Labelled, rng: np.random.Generator, deviation: float) -> Labelled:
    """White noise of so many HU more."""
    return case.with_hu(case.hu + rng.normal(0, deviation, case.hu.shape))


def _offset(case: Labelled, rng: np.random.Generator, hu: float) -> Labelled:
    """A scanner that measures so many HU too much."""
    return case.with_hu(case.hu + hu)


def _slab(case: Labelled, rng: np.random.Generator, low: float, high: float) -> Labelled:
    """Of the organs' height only what lies between two shares of it, from below."""
    heights = np.flatnonzero(case.organs.any(axis=(1, 2)))
    bottom, height = heights[0], heights[-1] + 1 - heights[0]
    first = int(bottom + low * height)
    last = max(first + 1, int(bottom + high * height))
    return Labelled(case.ct[:, :, first:last], case.labels[:, :, first:last])


def _of_size(case: Labelled, rng: np.random.Generator, factor: float) -> Labelled:
    """A patient so many times as large."""
    result = Labelled(sitk.Image(case.ct), sitk.Image(case.labels))
    for image in (result.ct, result.labels):
        image.SetSpacing([factor * step for step in image.GetSpacing()])
    return result


def _round_view(case: Labelled, rng: np.random.Generator) -> Labelled | None:
    """Only a circle was reconstructed, too small for the body."""
    hu, organs = case.hu, case.organs
    x, y, _ = case.ct.GetSpacing()
    rows, columns = np.nonzero((hu > -300).any(axis=0))
    if not len(rows):
        return None
    away = np.hypot(
        (np.arange(hu.shape[1]) - rows.mean())[:, None] * y,
        (np.arange(hu.shape[2]) - columns.mean()) * x,
    )
    seen = away <= 0.42 * (np.ptp(columns) + 1) * x
    labels = sitk.GetImageFromArray(np.where(seen, organs, 0).astype(np.uint8))
    labels.CopyInformation(case.labels)
    return Labelled(case.with_hu(np.where(seen, hu, AIR)).ct, labels)


def _turned(
    case: Labelled, rng: np.random.Generator, degrees: tuple[float, float, float]
) -> Labelled:
    """The patient turned about x, y and z."""
    turn = sitk.Euler3DTransform()
    middle = [(n - 1) / 2 for n in case.ct.GetSize()]
    turn.SetCenter(case.ct.TransformContinuousIndexToPhysicalPoint(middle))
    turn.SetRotation(*(math.radians(angle) for angle in degrees))
    return _resampled(case, turn=turn)


def _contrast(case: Labelled, rng: np.random.Generator, added: dict[str, float]) -> Labelled | None:
    """A plain CT's organs as bright as with contrast; vessels without a label stay as they are."""
    hu, organs = case.hu, case.organs
    aorta = hu[organs == LABEL_OF["aorta"]]
    if not len(aorta) or np.median(aorta) > _PLAIN_AORTA or min(hu.shape) < _SMOOTHABLE:
        return None
    more = np.zeros(hu.shape, np.float32)
    for name, amount in added.items():
        more[(organs == LABEL_OF[name]) & (hu > _NO_FAT)] = amount
    smooth = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(more), 0.5)
    return case.with_hu(hu + sitk.GetArrayFromImage(smooth))


def _lesions(case: Labelled, rng: np.random.Generator, masses: bool) -> Labelled | None:
    """Three balls in the liver, the spleen and each kidney: solid masses, or cysts of water."""
    hu, organs = case.hu, case.organs
    changed = hu.copy()
    steps = case.ct.GetSpacing()[::-1]
    z, y, x = np.ogrid[tuple(slice(n) for n in hu.shape)]
    for name in _SOLID:
        organ = organs == LABEL_OF[name]
        places = np.argwhere(organ)
        if not len(places):
            continue
        inside = np.median(hu[organ]) - _DARKER if masses else _WATER
        for _ in range(3):
            centre, radius = places[rng.integers(len(places))], rng.uniform(12, 25)
            away = [(a - c) * mm for a, c, mm in zip((z, y, x), centre, steps, strict=True)]
            ball = organ & (sum(a**2 for a in away) < radius**2)
            changed[ball] = rng.normal(inside, _GRAIN, ball.sum())
    return case.with_hu(changed) if (changed != hu).any() else None


def _resampled(
    case: Labelled,
    spacing: tuple[float, ...] | None = None,
    size: tuple[int, ...] | None = None,
    turn: sitk.Transform | None = None,
) -> Labelled:
    """Both on another grid, in the same box of space: HU linearly, labels from the nearest."""
    old = case.ct.GetSpacing()
    spacing, size = spacing or old, size or case.ct.GetSize()
    first = [(new / step - 1) / 2 for new, step in zip(spacing, old, strict=True)]
    origin = case.ct.TransformContinuousIndexToPhysicalPoint(first)
    return Labelled(
        *(
            sitk.Resample(
                image, size, turn or sitk.Transform(3, sitk.sitkIdentity), how, origin, spacing,
                image.GetDirection(), beyond,
            )
            for image, how, beyond in (
                (case.ct, sitk.sitkLinear, AIR),
                (case.labels, sitk.sitkNearestNeighbor, 0),
            )
        )
    )  # fmt: skip


VARIANTS: dict[str, Variant] = {
    "as_it_is": _unchanged,
    "slices_5mm": partial(_thick, thickness=5),
    "slices_8mm": partial(_thick, thickness=8),
    "noise_30hu": partial(_noisy, deviation=30),
    "noise_60hu": partial(_noisy, deviation=60),
    "brighter_15hu": partial(_offset, hu=15),
    "darker_15hu": partial(_offset, hu=-15),
    "lower_slab": partial(_slab, low=0, high=0.45),
    "middle_slab": partial(_slab, low=0.28, high=0.72),
    "upper_slab": partial(_slab, low=0.55, high=1),
    "thin_slab": partial(_slab, low=0.4, high=0.6),
    "small_patient": partial(_of_size, factor=0.82),
    "large_patient": partial(_of_size, factor=1.2),
    "round_view": _round_view,
    "turned": partial(_turned, degrees=(0, 0, 15)),
    "tilted": partial(_turned, degrees=(12, 8, 0)),
    "portal": partial(_contrast, added=_PORTAL),
    "arterial": partial(_contrast, added=_ARTERIAL),
    "masses": partial(_lesions, masses=True),
    "cysts": partial(_lesions, masses=False),
}
"""By name."""


def make_variants(
    images: Path, labels: Path, out: Path, quiet: bool = False
) -> tuple[list[Path], list[str]]:
    """Write every variant of every CT that has labels, the same ones every time.

    ``out/images`` has them as ``CASE__VARIANT_0000.nii.gz``, ``out/labels`` their labels as
    ``CASE__VARIANT.nii.gz``.

    Args:
        images: folder of CTs, ``CASE.nii.gz`` or ``CASE_0000.nii.gz``.
        labels: folder of labels, ``CASE.nii.gz``; CTs without are passed over.
        out: folder for them, made where missing.
        quiet: show no progress bar.

    Returns:
        The CTs written, and a line per case that cannot be used.

    Raises:
        UsageError: no CT has labels, or ``out`` cannot be written, or holds the CTs or labels.
    """
    targets = {(out / part).resolve() for part in ("images", "labels")}
    if targets & {images.resolve(), labels.resolve()}:
        raise UsageError(f"{out}: variants would lie among what they are made of")
    cts = list_cts(images)
    pairs = {name: path for name, path in list_volumes(labels).items() if name in cts}
    if not pairs:
        raise UsageError(f"{images}: no CT has labels of its name in {labels}")
    written: list[Path] = []
    refused: list[str] = []
    try:
        for folder in (out / "images", out / "labels"):
            make_folder(folder)
        for name, path in tqdm(pairs.items(), unit="case", desc="variants", disable=quiet or None):
            try:
                case = Labelled.read(cts[name], path)
            except CaseError as error:
                refused.append(str(error))
                continue
            try:
                written += _write_variants(case, name, out)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                refused.append(f"{name}: its name is too long for its variants'")
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from None
    return written, refused


def _write_variants(case: Labelled, name: str, out: Path) -> Iterator[Path]:
    """Write the variants of a case that show some organ; yields the CTs."""
    for variant, make in VARIANTS.items():
        seed = zlib.crc32(f"{name} {variant}".encode())
        made = make(case, np.random.default_rng(seed))
        if made and made.shows_something:
            yield _write(made, out, f"{name}__{variant}")


def _write(case: Labelled, out: Path, name: str) -> Path:
    """Write labels and CT, in this order: a CT that is there has its labels."""
    ct = out / "images" / f"{name}_0000.nii.gz"
    hu = sitk.Clamp(sitk.Round(case.ct), sitk.sitkInt16, AIR, DENSEST)
    for image, path in ((case.labels, out / "labels" / f"{name}.nii.gz"), (hu, ct)):
        with appearing(path) as temporary:
            write_image(image, temporary)
    return ct
