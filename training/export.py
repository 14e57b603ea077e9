"""From a checkpoint to a model folder that inference runs: IR, ``plan.json``, model card."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
import torch
from torch import nn

from inference.organs import LABEL_OF, ORGANS
from inference.plan import Plan
from training.config import Config
from training.network import UNet
from training.train import dice


@dataclass(frozen=True)
class Agreement:
    """How an exported network compares with PyTorch's fp32 on one real volume.

    Attributes:
        precision: "f32", "bf16" or "int8".
        case: the volume's name.
        logits_error: root mean square difference over that of the reference logits.
        same_labels: share of voxels with the same label.
        organ_dice: DSC between the two label maps per organ; None where neither has the organ.
    """

    precision: str
    case: str
    logits_error: float
    same_labels: float
    organ_dice: dict[str, float | None]


def load_average(checkpoint: Path, config: Config) -> UNet:
    """The moving average of the weights in a checkpoint (nothing pickled is executed)."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    network = UNet(config.features, 1 + len(ORGANS))
    network.load_state_dict(state["average"])
    return network.eval()


def export(checkpoint: Path, config: Config, prepared: Path, out: Path) -> list[Agreement]:
    """Write a model folder (IR in fp16 storage and in int8, and the plan).

    The folder is made beside ``out`` and moved there at the end.

    Args:
        checkpoint: what `training.train.train` wrote.
        config: its configuration.
        prepared: prepared data; real images calibrate int8 and check the export.
        out: the model folder; replaced if it exists.

    Returns:
        The agreement of every exported precision with PyTorch, per checked image.

    Raises:
        FileNotFoundError: no prepared image to calibrate with.
    """
    network = load_average(checkpoint, config)
    images = [p for p in sorted((prepared / "images").glob("*.npz")) if np.load(p)["hu"].size]
    if not images:
        raise FileNotFoundError(f"{prepared / 'images'}: no image to calibrate and check with")
    volumes = {p.stem: _input(np.load(p)["hu"], config) for p in images}

    model = ov.convert_model(network, example_input=torch.zeros(1, 1, *config.patch))
    model.reshape([1, 1, -1, -1, -1])
    model.inputs[0].get_tensor().set_names({"image"})
    model.outputs[0].get_tensor().set_names({"logits"})
    # Organs outside the training set's own images calibrate too: activations are what matters.
    quantised = nncf.quantize(
        model,
        nncf.Dataset(list(volumes.values())),
        subset_size=len(volumes),
        preset=nncf.QuantizationPreset.MIXED,
    )
    networks = {"f32": "network.xml", "bf16": "network.xml", "int8": "network_int8.xml"}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as made:
        folder = Path(made) / out.name
        folder.mkdir()
        ov.save_model(model, folder / "network.xml", compress_to_fp16=True)
        ov.save_model(quantised, folder / "network_int8.xml", compress_to_fp16=True)
        plan = Plan(
            name=config.name,
            version=config.version,
            spacing=(config.spacing,) * 3,
            clip=(float(config.clip[0]), float(config.clip[1])),
            subtract=config.subtract,
            divide=config.divide,
            patch=config.patch,
            multiple=(network.multiple,) * 3,
            networks=networks,
            precision="bf16",
            labels=LABEL_OF,
            bytes_per_voxel=_bytes_per_voxel(folder / "network.xml", config.patch),
            postprocessing=config.postprocessing,
        )
        plan.save(folder)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    return [
        agreement
        for case, volume in volumes.items()
        for agreement in _compare(network, out, networks, case, volume)
    ]


def _input(hu: np.ndarray, config: Config) -> np.ndarray:
    """A patch-shaped, normalised piece (1, 1, z, y, x) from the middle of a volume."""
    patch = config.patch
    lowest = float(config.clip[0])
    hu = np.pad(
        hu.astype(np.float32),
        [
            (max(0, p - n) // 2, max(0, p - n) - max(0, p - n) // 2)
            for n, p in zip(hu.shape, patch, strict=True)
        ],
        constant_values=lowest,
    )
    start = [(n - p) // 2 for n, p in zip(hu.shape, patch, strict=True)]
    piece = hu[tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))]
    return (np.clip(piece, *config.clip) - config.subtract)[None, None] / np.float32(config.divide)


def _compare(
    network: nn.Module, folder: Path, networks: dict[str, str], case: str, volume: np.ndarray
) -> list[Agreement]:
    with torch.no_grad():
        expected = network(torch.from_numpy(volume))[0].numpy()
    truth = expected.argmax(0)
    result = []
    for precision, file in networks.items():
        hint = "bf16" if precision == "bf16" else "f32"
        compiled = ov.Core().compile_model(folder / file, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        logits = compiled(volume)[0][0]
        labels = logits.argmax(0)
        error = float(np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)))
        organs = {name: dice(labels == i, truth == i) for i, name in ORGANS.items()}
        result.append(Agreement(precision, case, error, float((labels == truth).mean()), organs))
    return result


_PEAK = """
import resource, sys
import numpy as np, openvino as ov
shape = [1, 1, *map(int, sys.argv[2:])]
core = ov.Core()
model = core.read_model(sys.argv[1])
model.reshape(shape)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(np.zeros(shape, np.float32))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def _bytes_per_voxel(ir: Path, patch: tuple[int, int, int]) -> float:
    """Peak memory of one fp32 pass per input voxel, measured in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(ir), *map(str, patch)],
        capture_output=True,
        text=True,
        check=True,
    )
    return round(int(done.stdout) / float(np.prod(patch)), 1)
