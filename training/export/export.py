"""From a checkpoint to a model folder that inference runs: IR, ``plan.json``, model card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openvino as ov
from torch import nn

from inference.machine import free_memory, usable_threads
from inference.network.logits import floats
from inference.network.network import Network
from inference.network.pass_memory import with_pass_memory
from inference.network.windows import predict_in_windows
from inference.network.winners import winners
from inference.organs import ORGANS
from inference.plan import NETWORK_FILES, Plan
from training.agreement import Agreement, dice
from training.config import Config
from training.data.tissues import UNKNOWN
from training.export.model_folder import check_place, model_folder
from training.export.openvino_model import (
    convolutions_of,
    quantise,
    quantise_by_accuracy,
    to_openvino,
)
from training.loop.checkpoint import load_average
from training.networks.network import multiple_of
from training.networks.torch_runner import MEMORY_SHARE, logits_of
from training.patches.samples import Samples
from training.preparation.prepared_file import complete_files, opened

_CALIBRATED_WITH = 32  # patches of as many volumes
_CHECKED_ON = 3  # whole volumes


@dataclass(frozen=True)
class CheckedVolume:
    """A prepared volume for calibration and checks.

    Attributes:
        name: of the case.
        hu: int16 (z, y, x).
        labels: uint8 (z, y, x); zeros where there are none.
    """

    name: str
    hu: np.ndarray
    labels: np.ndarray


def export(
    checkpoint: Path,
    config: Config,
    prepared: Path,
    out: Path,
    accuracy_aware: bool = False,
    holdout: tuple[str, ...] = (),
    int8_only: bool = False,
    describe: Callable[[Path, list[Agreement]], None] | None = None,
) -> list[Agreement]:
    """Write a model folder (IR in fp16 storage and in int8, and the plan).

    The folder is made beside ``out`` and moved there at the end.

    Args:
        checkpoint: what `training.loop.train.train` wrote, or a model folder.
        config: its configuration.
        prepared: prepared data; real images calibrate int8 and check the export. Where there
            are none at all, synthetic ones do.
        out: the model folder; an older one is replaced.
        accuracy_aware: keep those layers in higher precision whose quantisation costs most
            (`training.export.openvino_model.quantise_by_accuracy`). Takes many times longer.
        holdout: cases that were kept aside, besides the configuration's.
        int8_only: leave out the network in floating point: a third of the size remains, but no
            training can begin with the folder's weights.
        describe: is called at last with the new folder and what is returned; writes the card.

    Returns:
        The agreement of every exported precision with PyTorch, per checked volume.

    Raises:
        FileNotFoundError: no checkpoint, or nothing prepared to calibrate with.
        ModelError: the checkpoint is a folder that holds no model.
        UsageError: ``out`` exists and is no model folder.
    """
    check_place(out)
    network = load_average(checkpoint, config)
    volumes = volumes_for_checks(prepared, config, holdout)
    patches = [patch_of(volume, config) for volume in volumes]

    model = to_openvino(network, config.patch)
    spared = convolutions_of(model, config.not_int8)
    quantised = (quantise_by_accuracy if accuracy_aware else quantise)(model, patches, spared)
    with model_folder(out) as folder:
        floating = folder / NETWORK_FILES["f32"]
        ov.save_model(model, floating, compress_to_fp16=True)
        ov.save_model(quantised, folder / NETWORK_FILES["int8"], compress_to_fp16=True)
        networks = NETWORK_FILES
        if int8_only:
            networks = {"int8": NETWORK_FILES["int8"]}
            floating.unlink()
            floating.with_suffix(".bin").unlink()
        plan = with_pass_memory(config.plan(multiple_of(network), networks), folder)
        plan.save(folder)
        agreements = [
            agreement
            for volume in volumes[:_CHECKED_ON]
            for agreement in _compare(network, folder, plan, config, volume)
        ]
        if describe:
            describe(folder, agreements)
    return agreements


def volumes_for_checks(
    prepared: Path, config: Config, holdout: tuple[str, ...] = ()
) -> list[CheckedVolume]:
    """Prepared volumes: labelled ones first, then unlabelled and pseudo-labelled ones.

    Held-out cases, whose scores shall say how good the network is on others, only where there is
    nothing else. Where there is no real image, synthetic patches stand in; their names say so.

    Raises:
        FileNotFoundError: nothing is prepared.
    """
    aside = {*config.holdout, *holdout}
    found = []
    for path in (*complete_files(prepared, "labelled"), *complete_files(prepared, "pseudo")):
        with opened(path) as content:
            found.append((not content["labels"].any(), path))
    if others := [(empty, path) for empty, path in found if path.stem not in aside]:
        found = others
    real: dict[str, CheckedVolume] = {}
    for _, path in sorted(found):
        if path.stem not in real and len(real) < _CALIBRATED_WITH:
            with opened(path) as content:
                real[path.stem] = CheckedVolume(path.stem, content["hu"], content["labels"])
    if real:
        return list(real.values())
    samples = Samples(prepared, config, holdout)
    drawn = []
    for number in range(8):
        patch = samples[number * config.drawn_at_once]
        hu = patch.image[0].numpy() * config.divide + config.subtract
        drawn.append(
            CheckedVolume(f"synthetic_{number}", hu.round().astype(np.int16), patch.labels.numpy())
        )
    return drawn


def patch_of(volume: CheckedVolume, config: Config) -> np.ndarray:
    """A normalised patch (1, 1, z, y, x) of a volume, around its organs or from its middle."""
    hu = config.normalise(volume.hu.astype(np.float32))
    organs = np.argwhere((volume.labels > 0) & (volume.labels != UNKNOWN))
    middle = organs.mean(axis=0) if len(organs) else np.array(hu.shape) / 2
    patch = np.full(config.patch, config.air, np.float32)
    here, there = [], []
    for n, size, centre in zip(hu.shape, config.patch, middle, strict=True):
        start = min(max(0, round(float(centre)) - size // 2), max(0, n - size))
        length = min(size, n - start)
        here.append(slice((size - length) // 2, (size - length) // 2 + length))
        there.append(slice(start, start + length))
    patch[tuple(here)] = hu[tuple(there)]
    return patch[None, None]


def _compare(
    network: nn.Module, folder: Path, plan: Plan, config: Config, volume: CheckedVolume
) -> list[Agreement]:
    """Every precision against PyTorch, on a whole volume, in inference's windows."""
    expected = np.array(logits_of(network, volume.hu, config, exact=True), np.float32)
    truth = winners(expected)
    image = config.normalise(volume.hu.astype(np.float32))
    result = []
    for precision, file in plan.networks.items():
        runner = Network(folder / file, precision, usable_threads(), len(plan.label_values))
        memory = int(free_memory() * MEMORY_SHARE)
        chosen = replace(plan, precision=precision)
        logits = predict_in_windows(runner, image, chosen, memory)
        labels = winners(logits)
        error = np.sqrt(np.mean((floats(logits) - expected) ** 2) / np.mean(expected**2))
        organs = {name: dice(labels == i, truth == i) for i, name in ORGANS.items()}
        same = float((labels == truth).mean())
        result.append(Agreement(precision, volume.name, float(error), same, organs))
    return result
