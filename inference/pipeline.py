"""The whole way from a CT to its labels, in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from inference.errors import CaseError, ModelError
from inference.grid import Box, Spacing, voxel_millilitres
from inference.labels.labels import fill_labels
from inference.labels.postprocess import postprocess
from inference.model import Model
from inference.network.locate import locate, part_of, reaches_a_cut
from inference.network.logits import Logits, any_nan
from inference.network.tiling import window_for
from inference.network.windows import predict_in_windows
from inference.network.winners import Channels, all_winners
from inference.nnunet.channels import check_channels, preprocess_channels
from inference.nnunet.patches import Mirrored, predict_in_patches
from inference.plan import Plan
from inference.preprocess.orientation import Turn, turn_to
from inference.preprocess.preprocess import Prepared, crop, fill, place
from inference.read.checks import Intensities, check_geometry, check_intensities, check_orientation
from inference.stages import StageProgress


@dataclass(frozen=True)
class Segmentation:
    """What `segment_in_stages` finds out about a CT.

    Attributes:
        labels: uint8 array (z, y, x), as the CT is stored.
        millilitres: volume of each organ, by name.
        seconds: time spent in the stages "preprocess", "look" (where the plan has one),
            "compile" (waiting for it), "network", "postprocess" and "labels". Where the look has
            missed something, those from "preprocess" to "postprocess" are of both turns.
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


def segment_in_stages(
    images: Sequence[sitk.Image],
    model: Model,
    progress: StageProgress | None = None,
    *,
    last: bool = False,
) -> Segmentation:
    """Segment a CT and tell what it took.

    Args:
        images: its channels, mostly one.
        model: a loaded model.
        progress: is told of the progress.
        last: whether no other CT is known to follow: the memory that passes needed is let go then
            before labels are made, not at the end of the process.

    Raises:
        CaseError: the CT cannot be segmented.
        ModelError: the model is broken.
    """
    plan = model.plan
    tell = progress or _silent
    seconds: dict[str, float] = {}
    image = images[0]
    with model.lock:
        passes = model.network.passes
        with _timed("preprocess", seconds, tell):
            case = turn_case(images, plan)
        found = None
        if model.look:
            with _timed("look", seconds, tell):
                volume, offset = case.volumes[0], case.intensities.offset
                found = locate(model.look, volume, case.spacing, plan.look["margin"], offset)
        answer = _answer(case, model, found, seconds, tell, last)
        if answer.is_cut_off:  # the look missed something
            del answer  # and its memory
            answer = _answer(case, model, None, seconds, tell, last)
        with _timed("labels", seconds, tell):
            labels = np.zeros(image.GetSize()[::-1], np.uint8)
            fill_labels(
                answer.logits,
                plan,
                answer.prepared.spacing,
                case.spacing,
                case.turn.apply(labels)[answer.prepared.box],
                model.threads,
                lambda share: tell("labels", share),
                answer.winning,
            )
            counts = _count(labels, model.threads)
        passes = model.network.passes - passes
    millilitres = _millilitres(counts, voxel_millilitres(image.GetSpacing()), plan)
    notes = [*case.intensities.warnings, *check_orientation(millilitres)]
    if not counts[1:].any():
        notes.append(
            "nothing was found; is this an image of the kind the model knows?"
            if plan.channels
            else "no organ was found; is there an abdomen in this CT?"
        )
    offset = case.intensities.offset
    return Segmentation(labels, millilitres, seconds, offset, tuple(notes), answer.window, passes)


@dataclass(frozen=True)
class TurnedCase:
    """A case whose channels were checked and turned to a model's axes.

    Attributes:
        images: the channels, whose memory the volumes are views of.
        volumes: the same, turned, shape (z, y, x).
        spacing: millimetres per axis (z, y, x) of these.
        turn: how the images' axes were turned.
        intensities: what the values are.
    """

    images: Sequence[sitk.Image]
    volumes: list[NDArray[Any]]
    spacing: Spacing
    turn: Turn
    intensities: Intensities


def turn_case(images: Sequence[sitk.Image], plan: Plan) -> TurnedCase:
    """Check a case's channels and turn them to the model's axes.

    Args:
        images: the channels.
        plan: what the model wants.

    Raises:
        CaseError: they cannot be segmented.
    """
    for image in images:
        check_geometry(image)
    first = images[0]
    turn = turn_to(first.GetDirection(), plan.orientation, plan.transpose)
    if plan.channels:
        intensities = Intensities(0.0, check_channels(images, plan))
    elif len(images) != 1:
        raise CaseError(f"{len(images)} channels were given, the model wants one")
    else:
        intensities = check_intensities(sitk.GetArrayViewFromImage(first))
    volumes = [turn.apply(sitk.GetArrayViewFromImage(image)) for image in images]
    z, y, x = turn.reorder(first.GetSpacing()[::-1])
    return TurnedCase(images, volumes, (z, y, x), turn, intensities)


@dataclass(frozen=True)
class _Answer:
    """What the network says of a case, or of a part of it.

    Attributes:
        logits: shape (C, z, y, x), post-processed.
        winning: the channels that win (z, y, x); ``None`` where nothing was post-processed.
        prepared: what the network saw, and where that lies.
        window: voxels (z, y, x) of the network's input.
        is_cut_off: whether organs reach a face at which the first look ended the part.
    """

    logits: Logits
    winning: Channels | None
    prepared: Prepared
    window: tuple[int, ...]
    is_cut_off: bool


def _answer(
    case: TurnedCase,
    model: Model,
    found: Box | None,
    seconds: dict[str, float],
    tell: StageProgress,
    last: bool,
) -> _Answer:
    """Ask the network about a case, or about the part of it where a first look found organs."""
    plan, volume, offset = model.plan, case.volumes[0], case.intensities.offset
    with _timed("preprocess", seconds, tell):
        if plan.channels:
            prepared = preprocess_channels(case.volumes, case.spacing, plan, model.threads)
            memory = _grant_and_compile(model, case.images, prepared.values.shape[-3:])
        else:
            body = crop(volume, case.spacing, plan, offset)
            box = part_of(body, found, case.spacing, plan) if found else body
            placed = place(box, case.spacing, plan)
            # The network compiles while the CT is resized.
            memory = _grant_and_compile(model, case.images, placed.shape)
            prepared = fill(volume, case.spacing, placed, plan, offset, model.threads)
    window = window_for(prepared.values.shape[-3:], plan, memory)
    with _timed("compile", seconds, tell):
        model.network.compile(window)
    with _timed("network", seconds, tell):
        in_windows = predict_in_patches if plan.tiling == "nnunet" else predict_in_windows
        logits = in_windows(
            Mirrored(model.network, plan.mirror) if plan.mirror else model.network,
            prepared.values,
            plan,
            memory,
            lambda share: tell("network", share),
        )
        _check_logits(logits, model)
        if last:
            model.network.release_features()
    with _timed("postprocess", seconds, tell):
        ct = volume[prepared.box]
        winning = postprocess(logits, prepared.spacing, plan, model.threads, ct, offset)
        is_cut_off = False
        if found:
            winning = all_winners(logits, model.threads) if winning is None else winning
            is_cut_off = reaches_a_cut(winning, prepared.spacing, prepared.box, body)
    return _Answer(logits, winning, prepared, window, is_cut_off)


def _grant_and_compile(model: Model, images: Sequence[sitk.Image], shape: tuple[int, ...]) -> int:
    """Bytes that passes over a volume (z, y, x) may use; the network begins to compile for it."""
    held = sum(each.GetNumberOfPixels() * each.GetSizeOfPixelComponent() for each in images)
    labels = images[0].GetNumberOfPixels()  # a byte each
    memory = model.budget.grant(shape, model.plan, model.network, held=held, reserved=labels)
    model.network.expect(window_for(shape, model.plan, memory))
    return memory


def _check_logits(logits: Logits, model: Model) -> None:
    """Refuse weights that are no numbers.

    They spoil all that comes after them: every channel, or, in the last layer, every voxel of one.
    """
    if any_nan(logits[:, 0, 0, 0]) or any(any_nan(plane) for plane in logits[0]):
        raise ModelError(f"{model.folder}: the network's logits are no numbers (NaN)")


def _millilitres(counts: NDArray[np.int64], voxel: float, plan: Plan) -> dict[str, float]:
    """The volume of each organ, from the voxels of each of the 256 labels and a voxel's volume."""
    return {
        name: round(float(counts[list(plan.members.get(name, [value]))].sum()) * voxel, 3)
        for name, value in plan.labels.items()
    }


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
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
    tell(stage, 1.0)


def _silent(stage: str, share: float) -> None:
    pass
