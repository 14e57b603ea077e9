"""The fast form of an imported model: calibrated on a user's CTs, compared with nnU-Net's way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from inference.cases import Case, find_cases
from inference.errors import CaseError
from inference.machine import usable_threads
from inference.model import Model
from inference.network.network import Network
from inference.nnunet.channels import preprocess_channels
from inference.pipeline import segment_in_stages, turn_case
from inference.plan import Plan
from inference.read.file import read
from training.agreement import dice

_CASES = 8  # volumes that calibrate
_PATCHES = 32  # of them together
_COMPARED = 3  # whole volumes


@dataclass(frozen=True)
class Comparison:
    """The exported form beside nnU-Net's own tiling in fp32, on one case.

    Attributes:
        case: name of the file, or of the folder with its DICOM series.
        same: share of voxels with the same label.
        dice: DSC between the two per label; ``None`` where neither has it.
        seconds: time in the network of nnU-Net's way and of the exported form.
    """

    case: str
    same: float
    dice: dict[str, float | None]
    seconds: tuple[float, float]

    def __str__(self) -> str:
        slow, fast = self.seconds
        lines = [
            f"{self.case}: {100 * self.same:.3f} % of the voxels as in fp32 with nnU-Net's tiling; "
            f"network {slow:.2f} s -> {fast:.2f} s, {slow / fast:.1f} times as fast"
        ]
        for name, score in self.dice.items():
            if score is not None:
                lines.append(f"    {name}: DSC {score:.4f}")
        return "\n".join(lines)


def calibration_cases(folder: Path, channels: int) -> list[Case]:
    """The cases of a folder of CTs (``X_0000``, ``X_0001``, ... of several channels).

    Raises:
        UsageError: there are none.
        CaseError: one lacks a channel.
    """
    # Labels are not written; a hidden folder holds no CT that they could replace.
    cases = find_cases(folder, folder / ".labels", channels)[:_CASES]
    for case in cases:
        if case.problem:
            raise CaseError(f"{case.source}: {case.about(case.problem)}")
    return cases


def calibration_patches(cases: Sequence[Case], plan: Plan) -> list[np.ndarray]:
    """Normalised patches (1, inputs, z, y, x) from all over the cases.

    Raises:
        CaseError: a case cannot be read or prepared.
    """
    rng = np.random.default_rng(0)
    patches = []
    for case in cases:
        images = _images(case)
        with _named(case):
            turned = turn_case(images, plan)
            values = preprocess_channels(
                turned.volumes, turned.spacing, plan, usable_threads()
            ).values
        frame = [max(0, n - m) for n, m in zip(plan.patch, values.shape[1:], strict=True)]
        values = np.pad(values, [(0, 0), *((f // 2, f - f // 2) for f in frame)])
        for _ in range(-(-_PATCHES // len(cases))):
            starts = [
                int(rng.integers(m - n + 1))
                for n, m in zip(plan.patch, values.shape[1:], strict=True)
            ]
            z, y, x = (slice(s, s + n) for s, n in zip(starts, plan.patch, strict=True))
            patches.append(np.ascontiguousarray(values[None, :, z, y, x]))
    return patches


def compare(
    cases: Sequence[Case], plan: Plan, folder: Path, exact_plan: Plan, exact_network: Path
) -> list[Comparison]:
    """Segment cases in the exported form and in fp32 with nnU-Net's tiling.

    Args:
        cases: the first few are compared.
        plan: the exported plan.
        folder: where its networks are.
        exact_plan: the plan with nnU-Net's tiling, in fp32.
        exact_network: the fp32 network.

    Raises:
        CaseError: a case cannot be read or segmented.
    """
    threads, outputs = usable_threads(), len(plan.label_values)
    models = [
        Model(
            chosen,
            folder,
            threads,
            Network(path, chosen.precision, threads, outputs, plan.inputs),
        )
        for chosen, path in (
            (exact_plan, exact_network),
            (plan, folder / plan.networks[plan.precision]),
        )
    ]
    found = []
    for case in cases[:_COMPARED]:
        images = _images(case)
        with _named(case):
            exact, fast = (segment_in_stages(images, model) for model in models)
        scores = {
            name: dice(exact.labels == value, fast.labels == value)
            for name, value in plan.labels.items()
        }
        same = float((exact.labels == fast.labels).mean())
        seconds = (exact.seconds["network"], fast.seconds["network"])
        name = case.source.name + (f", series {case.series}" if case.series else "")
        found.append(Comparison(name, same, scores, seconds))
    return found


def _images(case: Case) -> list[sitk.Image]:
    with _named(case):
        images = [case.read().image]
    for path in case.further_channels:
        with _named(replace(case, source=path)):
            images.append(read(path).image)
    return images


@contextmanager
def _named(case: Case) -> Iterator[None]:
    """Put the case before what is wrong with it."""
    try:
        yield
    except CaseError as error:
        raise CaseError(f"{case.source}: {case.about(str(error))}") from None
