"""The published OpenVINO recipe, file to file, as a process of its own: for the benchmark.

What challenge entries do with OpenVINO: read with SimpleITK, clip and normalise, resample to the
network's spacing, windows that overlap by half with nnU-Net's Gaussian weights, fp32, all logits
resampled to full size, argmax, write. Resampling is PyTorch's, as in those entries.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import openvino as ov
import SimpleITK as sitk
import torch
from torch.nn.functional import interpolate

from evaluation.benchmark.program import run, timed
from inference.network.tiling import window_starts
from inference.network.windows import box_at, pad
from inference.plan import Plan
from inference.preprocess.resample import Float32Array, shape_at_spacing


def segment(folder: Path, case: Path, out: Path, threads: int) -> dict[str, float]:
    """Segment one CT.

    Args:
        folder: a model folder with an "f32" network.
        case: the CT; its axes must be the plan's (no turning is done).
        out: the label file.
        threads: how many threads OpenVINO uses.

    Returns:
        Seconds per stage.
    """
    seconds: dict[str, float] = {}
    plan = Plan.load(folder)
    with timed("compile", seconds):
        core = ov.Core()
        model = core.read_model(folder / plan.networks["f32"])
        model.reshape([1, 1, *plan.patch])
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        network = core.compile_model(model, "CPU", settings)
    with timed("read", seconds):
        image = sitk.ReadImage(str(case))
        volume = sitk.GetArrayFromImage(image).astype(np.float32)
    with timed("preprocess", seconds):
        np.clip(volume, *plan.clip, out=volume)
        volume -= plan.subtract
        volume /= plan.divide
        wanted = [float(step or 1.0) for step in plan.spacing]
        shape = shape_at_spacing(volume.shape, image.GetSpacing()[::-1], wanted)
        small = interpolate(torch.from_numpy(volume)[None, None], shape, mode="trilinear")[0, 0]
        padded, inside = pad(small.numpy(), plan.patch, 0.0)  # with zeros, as nnU-Net
    with timed("network", seconds):
        logits = _windows(network, padded, plan)[inside]
    with timed("labels", seconds):
        full = interpolate(torch.from_numpy(logits)[None], volume.shape, mode="trilinear")[0]
        channels = full.argmax(0).numpy().astype(np.uint8)
        labels = np.array(plan.label_values, np.uint8)[channels]
    with timed("write", seconds):
        result = sitk.GetImageFromArray(labels)
        result.CopyInformation(image)
        sitk.WriteImage(result, str(out), True)
    return seconds


def _windows(network: ov.CompiledModel, volume: Float32Array, plan: Plan) -> Float32Array:
    """Logits (C, z, y, x) from windows that overlap by half."""
    axes = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in plan.patch]
    gaussian = np.einsum("i,j,k->ijk", *axes).astype(np.float32)
    gaussian = np.maximum(gaussian, gaussian[gaussian > 0].min())
    total: Float32Array = np.zeros((len(plan.label_values), *volume.shape), np.float32)
    weights: Float32Array = np.zeros(volume.shape, np.float32)
    starts = [window_starts(n, p, 0.5) for n, p in zip(volume.shape, plan.patch, strict=True)]
    for start in itertools.product(*starts):
        here = box_at(start, plan.patch)
        window = np.ascontiguousarray(volume[here])[None, None]
        total[here] += network(window)[0][0] * gaussian
        weights[here] += gaussian
    return total / weights


if __name__ == "__main__":
    run(segment, __doc__)
