"""Pictures of a prediction against its reference, for the cases that went worst.

Three planes through the place where both disagree most, each as reference, prediction, and what
differs. Volumes are turned to the closest canonical orientation first, so that the patient is
seen as radiologists see him: his right is to the viewer's left, front up, head up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib.figure import Figure
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from evaluation.challenge import COLUMN_OF
from evaluation.figures import save
from evaluation.scoring import CaseScore
from evaluation.volumes import (
    LabelVolume,
    check_header,
    check_same_grid,
    corner_shift,
    read_labels,
    without_axes_of_one,
)
from inference.errors import CaseError
from inference.grid import bounding_box, whole_box
from inference.organs import COLOURS
from inference.write.preview import WINDOW

_PLANES = ("sagittal", "coronal", "axial")  # perpendicular to the canonical x, y, z


def draw(
    score: CaseScore, reference: Path, prediction: Path | None, image: Path | None, path: Path
) -> None:
    """Draw one case.

    Args:
        score: its values, for the title.
        reference: the reference's file.
        prediction: the prediction's file; where there is none, an empty one is drawn.
        image: the CT to lay underneath, where there is one.
        path: the PNG's name.

    Raises:
        CaseError: a file cannot be read, the label volumes differ in size, or the CT lies
            elsewhere.
        MemoryError: there is not enough memory for it.
    """
    truth = read_labels(reference)
    check_header(truth)
    if prediction is None:
        guess = LabelVolume(reference, np.zeros_like(truth.labels), truth.zooms, truth.affine)
    else:
        guess = _as_scored(prediction)
        check_same_grid(truth, guess, strict=True)
    labels, affine = _canonical(truth.labels, truth.affine)
    turned: list[NDArray[Any]] = [labels, _canonical(guess.labels, truth.affine)[0]]
    zooms = [float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)]
    if image is not None:
        ct, its_affine = _read_ct(image)
        if ct.shape != labels.shape:
            raise CaseError(f"{image}: the CT's size {ct.shape} is not the labels' {labels.shape}")
        if (shift := corner_shift(affine, its_affine, ct.shape)) > max(zooms):
            raise CaseError(f"{image}: the CT lies up to {shift:.4g} mm away from the labels")
        turned.append(ct)

    around = _around(turned[0] | turned[1], zooms)
    turned = [volume[around] for volume in turned]
    centre = _worst_place(turned[0], turned[1], score.worst_label)
    figure = Figure(figsize=(12, 11), layout="constrained")
    grid = figure.subplots(3, 3)
    for row, axis in enumerate((2, 1, 0)):
        planes = [np.take(volume, centre[axis], axis=axis).T for volume in turned]
        across, up = [a for a in range(3) if a != axis]
        look = {"origin": "lower", "aspect": zooms[up] / zooms[across]}
        differs = np.where(planes[0] != planes[1], np.maximum(planes[0], planes[1]), 0)
        titles = ("reference", "prediction", "where they differ")
        for axes, labels, title in zip(grid[row], (*planes[:2], differs), titles, strict=True):
            if len(planes) > 2:
                low, high = WINDOW
                axes.imshow(planes[2], cmap="gray", vmin=low, vmax=high, **look)
            else:
                axes.imshow(np.zeros(labels.shape), cmap="gray", vmin=0, vmax=1, **look)
            axes.imshow(_coloured(labels, 0.55 if len(planes) > 2 else 1.0), **look)
            if title == "prediction":
                _outline(axes, planes[0] > 0)
            # Canonical is RAS: x runs to the patient's right. Shown as seen from the feet and
            # from the front, his right is on the left.
            if across == 0:
                axes.invert_xaxis()
            axes.set_title(f"{_PLANES[axis]}, {title}", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
    figure.suptitle(_title(score, truth), parse_math=False)  # a name may hold dollars
    save(figure, path)


def _as_scored(prediction: Path) -> LabelVolume:
    """A prediction's labels; what are none are drawn as the organisers' script takes them."""
    try:
        return read_labels(prediction)
    except CaseError:
        return read_labels(prediction, strict=True)


def _canonical(
    volume: NDArray[Any], affine: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A volume in the closest canonical orientation, and its affine there."""
    orientation = io_orientation(affine)  # type: ignore[no-untyped-call]
    turned = apply_orientation(volume, orientation)  # type: ignore[no-untyped-call]
    back = inv_ornt_aff(orientation, volume.shape)  # type: ignore[no-untyped-call]
    return turned, affine @ back


def _read_ct(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A CT's voxels and affine in the closest canonical orientation."""
    try:
        with nibabel.imageglobals.LoggingOutputSuppressor():
            image = nibabel.load(path)
        values = np.asanyarray(image.dataobj).astype(np.float32)  # type: ignore[attr-defined]
        values = values.reshape(without_axes_of_one(values.shape))
        if values.ndim != 3:
            raise CaseError(f"{path}: not a 3D volume, its shape is {values.shape}")
        return _canonical(values, np.asarray(image.affine, np.float64))  # type: ignore[attr-defined]
    except CaseError:
        raise
    except Exception as error:  # gzip, zlib, nibabel and numpy each raise their own
        reason = str(error) or type(error).__name__
        raise CaseError(f"{path}: cannot be read ({reason})") from None


def _around(labels: NDArray[np.uint8], zooms: list[float]) -> tuple[slice, ...]:
    """The box of all labels with a margin of 30 mm."""
    box = bounding_box(labels) or whole_box(labels.shape)
    margins = [int(np.ceil(30 / step)) for step in zooms]
    return tuple(
        slice(max(0, part.start - margin), part.stop + margin)
        for part, margin in zip(box, margins, strict=True)
    )


def _worst_place(
    truth: NDArray[np.uint8], guess: NDArray[np.uint8], label: int | None
) -> tuple[int, int, int]:
    """Per axis, the plane with most disagreement on the worst organ, else on any, else labels."""
    differs = truth != guess
    if label is not None and ((truth == label) | (guess == label))[differs].any():
        differs &= (truth == label) | (guess == label)
    elif not differs.any():
        differs = truth > 0
    if not differs.any():
        i, j, k = (n // 2 for n in truth.shape)
        return i, j, k
    i, j, k = (
        int(np.argmax(differs.sum(axis=tuple(a for a in range(3) if a != axis))))
        for axis in range(3)
    )
    return i, j, k


def _coloured(labels: NDArray[np.uint8], opacity: float) -> NDArray[np.float64]:
    table = np.zeros((256, 4))
    table[1:] = (1, 1, 1, opacity)  # values that are no organ of ours
    for label, colour in COLOURS.items():
        table[label] = (*(c / 255 for c in colour), opacity)
    coloured: NDArray[np.float64] = table[labels]
    return coloured


def _outline(axes: Any, mask: NDArray[np.bool_]) -> None:
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors="white", linewidths=0.7)


def _title(score: CaseScore, truth: LabelVolume) -> str:
    axes = aff2axcodes(truth.affine)  # type: ignore[no-untyped-call]
    title = f"{score.name}   {''.join(axes)}   {score.status}"
    if score.values:
        title += f"   mean DSC {score.mean('DSC'):.4f}, mean NSD {score.mean('NSD'):.4f}"
    if (label := score.worst_label) is not None:
        dsc, nsd = score.values["DSC", label], score.values["NSD", label]
        title += f"   lowest: {COLUMN_OF[label]} {dsc:.4f} / {nsd:.4f}"
    return title + "\nwhite line in the prediction: the reference's outline"
