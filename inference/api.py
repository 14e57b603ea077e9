"""The Python call: a CT goes in, as a path or as an image in memory, and labels come out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk

from inference.cases import only_case
from inference.errors import CaseError, CaseWarning
from inference.model import Model
from inference.pipeline import segment_in_stages
from inference.stages import StageProgress


def segment(
    image: str | Path | sitk.Image | Sequence[sitk.Image],
    model: Model | str | Path | None = None,
    *,
    threads: int | None = None,
    precision: str | None = None,
    progress: StageProgress | None = None,
) -> sitk.Image:
    """Segment the abdominal organs in a CT.

    >>> import inference, SimpleITK as sitk
    >>> labels = inference.segment("ct.nii.gz")
    >>> sitk.WriteImage(labels, "labels.nii.gz")

    A path is read, and checked, as the command does it. Of an image only its grid and its values
    can be checked: whoever has read it has perhaps not noticed that the file was truncated, its
    header contradicted itself, or slices were missing.

    Several threads may share a loaded model; it segments one CT at a time. What a user should know
    about the CT (its values do not look like HU, no organ was found) is told by a `CaseWarning`.

    Args:
        image: a path: a file in one of the formats that the command reads, or a folder with one
            DICOM series; or a CT in HU, 3D, any orientation, any real voxel type. For a model of
            several channels, the path of the first (``X_0000.nii.gz``; the others lie beside it),
            or one image for each.
        model: a loaded model (`Model.load`, worth it for several CTs), a model's name or
            folder, or ``None`` for the default model.
        threads: how many threads to use where the model is not loaded yet; ``None`` for all
            that may be used.
        precision: "f32", "bf16" or "int8" where the model is not loaded yet; ``None`` for what
            its plan chooses.
        progress: is called with a stage's name and its finished share, 0 to 1.

    Returns:
        uint8 image of the same size, spacing, origin and direction: 0 background, else the values
        of the model's ``plan.labels``, which are `inference.ORGANS` for the models that come with
        the program.

    Raises:
        CaseError: the CT cannot be read or segmented.
        ModelError: the model is not found or broken, or has not this precision.
        TypeError: ``image`` is neither a path nor a SimpleITK image.
        UsageError: there is nothing at the path, or more than one CT.
        ValueError: ``threads`` is not a whole number from 1 on, or ``threads`` or ``precision`` is
            given for a loaded model.
    """
    images = [image] if isinstance(image, sitk.Image) else image
    if not isinstance(images, (str, Path)) and not (
        isinstance(images, Sequence)
        and images
        and all(isinstance(each, sitk.Image) for each in images)
    ):
        raise TypeError("image is neither a path nor a SimpleITK image")
    last = False  # a loaded model may be used again
    if not isinstance(model, Model):
        model, last = Model.load(model, threads=threads, precision=precision), True
    elif threads is not None or precision is not None:
        raise ValueError("threads and precision belong to Model.load when a model is passed")
    doubts: list[str] = []
    if isinstance(images, (str, Path)):
        images, doubts = _read(Path(images), model.plan.inputs)
    found = segment_in_stages(images, model, progress, last=last)
    for text in [*doubts, *found.warnings]:
        warnings.warn(text, CaseWarning, stacklevel=2)
    labels = sitk.GetImageFromArray(found.labels)
    labels.CopyInformation(images[0])
    return labels


def _read(path: Path, channels: int) -> tuple[list[sitk.Image], list[str]]:
    """The channels of the case at a path, and what a user should know about its files.

    Raises:
        CaseError: it cannot be read; the message names it.
        UsageError: there is nothing at the path, or more than one CT.
    """
    case = only_case(path, channels)
    try:
        if case.problem:
            raise CaseError(case.problem)
        scans = [case.read(), *case.read_further()]
    except CaseError as error:
        raise CaseError(f"{path}: {error}") from None
    return [scan.image for scan in scans], [text for scan in scans for text in scan.warnings]
