"""The whole way from a CT to its labels, in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.errors import CaseError, ModelError
from inference.grid import voxel_millilitres
from inference.labels import fill_labels
from inference.locate import locate, look_shape
from inference.logits import any_nan
from inference.model import Model
from inference.nnunet.channels import check_channels, preprocess_channels
from inference.nnunet.patches import Mirrored, predict_in_patches
from inference.orientation import Turn, turn_to
from inference.plan import Plan
from inference.postprocess import postprocess
from inference.preprocess import Prepared, air, preprocess
from inference.reading import Intensities, check_geometry, check_intensities
from inference.windows import predict, window_for

StageProgress = Callable[[str, float], None]
"""Is called with a stage (a key of `Segmentation.seconds`) and its finished share."""


@dataclass(frozen=True)
class Segmentation:
    """What `segment_in_stages` finds out about a CT.

    Attributes:
        labels: uint8 array (z, y, x), as the CT is stored.
        millilitres: volume of each organ, by name.
        seconds: time spent in the stages "preprocess", "look" (where the plan has one),
            "compile" (waiting for it), "network", "postprocess" and "labels".
        offset: what was added to the CT's values to make them HU.
        warnings: what a user should know about this case.
        window: voxels (z, y, x) of the network's input.
        passes: how often it ran.
    """

    labels: NDArray[np.uint8]
    millilitres: dict[str, float]
    seconds: dict[str, float]
    offset: float
    warnings: tuple[str, ...]
    window: tuple[int, ...]
    passes: int


def segment(
    image: sitk.Image | Sequence[sitk.Image],
    model: Model | str | Path | None = None,
    *,
    threads: int | None = None,
    precision: str | None = None,
    progress: StageProgress | None = None,
) -> sitk.Image:
    """Segment the abdominal organs in a CT.

    >>> import inference, SimpleITK as sitk
    >>> labels = inference.segment(sitk.ReadImage("ct.nii.gz"))
    >>> sitk.WriteImage(labels, "labels.nii.gz")

    Several threads may share a loaded model; it segments one CT at a time.

    Args:
        image: CT in HU, 3D, any orientation, any real voxel type; for a model of several
            channels, one image for each.
        model: a loaded model (`Model.load`, worth it for several CTs), a model's name or
            folder, or ``None`` for the default model.
        threads: how many threads to use where the model is not loaded yet; ``None`` for all
            that may be used.
        precision: "f32", "bf16" or "int8" where the model is not loaded yet; ``None`` for what
            its plan chooses.
        progress: is told of the progress.

    Returns:
        uint8 image of the same size, spacing, origin and direction: 0 background, else
        `inference.ORGANS`.

    Raises:
        CaseError: the image cannot be segmented.
        ModelError: the model is not found or broken.
        TypeError: ``image`` is no SimpleITK image.
        ValueError: ``threads`` or ``precision`` is given for a loaded model.
    """
    images = [image] if isinstance(image, sitk.Image) else image
    if not (
        isinstance(images, Sequence)
        and images
        and all(isinstance(each, sitk.Image) for each in images)
    ):
        raise TypeError("image is no SimpleITK image; SimpleITK.ReadImage makes one of a file")
    if not isinstance(model, Model):
        model = Model.load(model, threads=threads, precision=precision)
    elif threads is not None or precision is not None:
        raise ValueError("threads and precision belong to Model.load when a model is passed")
    labels = sitk.GetImageFromArray(segment_in_stages(images, model, progress).labels)
    labels.CopyInformation(images[0])
    return labels


def segment_in_stages(
    images: Sequence[sitk.Image], model: Model, progress: StageProgress | None = None
) -> Segmentation:
    """Segment a CT, given as its channels, and tell what it took; see `segment`.

    Raises:
        CaseError: the image cannot be segmented.
        ModelError: the model is broken.
    """
    plan = model.plan
    tell = progress or _silent
    seconds: dict[str, float] = {}
    image = images[0]
    with model.lock, _simpleitk_threads(model.threads):
        passes = model.network.passes
        memory = 0

        def announce(shape: tuple[int, ...]) -> None:
            nonlocal memory
            labels = image.GetNumberOfPixels()  # a byte each
            held = sum(each.GetNumberOfPixels() * each.GetSizeOfPixelComponent() for each in images)
            memory = model.budget.grant(shape, plan, model.network, held=held, reserved=labels)
            first = look_shape(shape, plan) if plan.look else shape
            model.network.expect(window_for(first, plan, memory))

        with _timed("preprocess", seconds, tell):
            prepared, turn, intensities = prepare(images, plan, model.threads, announce)
        if plan.look:
            with _timed("look", seconds, tell):
                prepared = _focus(image, prepared, turn, intensities, model, memory)
        window = window_for(prepared.values.shape[-3:], plan, memory)
        with _timed("compile", seconds, tell):
            model.network.compile(window)
        with _timed("network", seconds, tell):
            in_windows = predict_in_patches if plan.tiling == "nnunet" else predict
            logits = in_windows(
                Mirrored(model.network, plan.mirror) if plan.mirror else model.network,
                prepared.values,
                plan,
                air(plan),
                memory,
                lambda share: tell("network", share),
            )
            # Weights that are no numbers spoil all that comes after them: every channel, or, in
            # the last layer, every voxel of one.
            if any_nan(logits[:, 0, 0, 0]) or any(any_nan(plane) for plane in logits[0]):
                raise ModelError(f"{model.folder}: the network's logits are no numbers (NaN)")
        with _timed("postprocess", seconds, tell):
            ct = turn.apply(sitk.GetArrayViewFromImage(image))[prepared.box]
            winning = postprocess(
                logits, prepared.spacing, plan, model.threads, ct, intensities.offset
            )
        with _timed("labels", seconds, tell):
            labels = np.zeros(image.GetSize()[::-1], np.uint8)
            z, y, x = turn.reorder(image.GetSpacing()[::-1])
            fill_labels(
                logits,
                plan,
                prepared.spacing,
                (z, y, x),
                turn.apply(labels)[prepared.box],
                model.threads,
                lambda share: tell("labels", share),
                winning,
            )
            counts = _count(labels, model.threads)
        passes = model.network.passes - passes
    voxel = voxel_millilitres(image.GetSpacing())
    warnings = list(intensities.warnings)
    if not counts[1:].any():
        warnings.append(
            "nothing was found; is this an image of the kind the model knows?"
            if plan.channels
            else "no organ was found; is there an abdomen in this CT?"
        )
    millilitres = {
        name: round(float(counts[list(plan.members.get(name, [value]))].sum()) * voxel, 3)
        for name, value in plan.labels.items()
    }
    return Segmentation(
        labels,
        millilitres,
        seconds,
        intensities.offset,
        tuple(warnings),
        window,
        passes,
    )


def prepare(
    images: Sequence[sitk.Image],
    plan: Plan,
    threads: int,
    announce: Callable[[tuple[int, ...]], None] | None = None,
) -> tuple[Prepared, Turn, Intensities]:
    """Check a case's channels, turn them to the model's axes and prepare them for the network.

    Args:
        images: the channels.
        plan: how the network wants them.
        threads: how many slices are worked on at once.
        announce: is called with the shape (z, y, x) of the network's input as soon as it is
            known.

    Returns:
        The network's input; how the CT's axes were turned; what its values are.

    Raises:
        CaseError: they cannot be segmented.
    """
    for image in images:
        check_geometry(image)
    first = images[0]
    turn = turn_to(first.GetDirection(), plan.orientation, plan.transpose)
    z, y, x = turn.reorder(first.GetSpacing()[::-1])
    volumes = [turn.apply(sitk.GetArrayViewFromImage(image)) for image in images]
    if plan.channels:
        intensities = Intensities(0.0, check_channels(images, plan))
        prepared = preprocess_channels(volumes, (z, y, x), plan, threads)
        if announce:
            announce(prepared.values.shape[-3:])
        return prepared, turn, intensities
    if len(images) != 1:
        raise CaseError(f"{len(images)} channels were given, the model wants one")
    intensities = check_intensities(sitk.GetArrayViewFromImage(first))
    prepared = preprocess(volumes[0], (z, y, x), plan, intensities.offset, threads, announce)
    return prepared, turn, intensities


def _focus(
    image: sitk.Image,
    prepared: Prepared,
    turn: Turn,
    intensities: Intensities,
    model: Model,
    memory: int,
) -> Prepared:
    """Prepare only the part of a CT that a first look finds worth it."""
    box = locate(model.network, prepared, model.plan, memory)
    if box is None:
        return prepared
    z, y, x = turn.reorder(image.GetSpacing()[::-1])
    volume = turn.apply(sitk.GetArrayViewFromImage(image))
    return preprocess(
        volume,
        (z, y, x),
        model.plan,
        intensities.offset,
        model.threads,
        lambda shape: model.network.expect(window_for(shape, model.plan, memory)),
        box,
    )


def _count(labels: NDArray[np.uint8], threads: int) -> NDArray[np.int64]:
    """Number of voxels of each of the 256 labels (0 is not counted)."""

    def count(plane: NDArray[np.uint8]) -> NDArray[np.int64]:
        return np.bincount(plane[plane > 0], minlength=256)

    counts = np.zeros(256, np.int64)
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(count, labels):
            counts += found
    return counts


@contextmanager
def _timed(stage: str, seconds: dict[str, float], tell: StageProgress) -> Iterator[None]:
    tell(stage, 0.0)
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
    tell(stage, 1.0)


@contextmanager
def _simpleitk_threads(threads: int) -> Iterator[None]:
    """SimpleITK would use as many threads as the host has cores."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _silent(stage: str, share: float) -> None:
    pass
