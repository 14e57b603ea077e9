"""``python -m training import-nnunet``: from nnU-Net's results to a model folder."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from torch import nn

from inference.errors import ModelError, UsageError
from inference.machine import usable_threads
from inference.network import Network
from inference.pass_memory import bytes_per_voxel
from inference.plan import NETWORK_FILES, Plan
from training.model_folder import check_place, model_folder
from training.network import parameter_count
from training.nnunet.card import write_card
from training.nnunet.checkpoint import load_checkpoint
from training.nnunet.fast import calibration_cases, calibration_patches, compare
from training.nnunet.label_map import LabelMap
from training.nnunet.network import Together, architecture_of, build, keep_outputs, strides_of
from training.nnunet.plan import inputs_of, outputs_of, plan_of
from training.nnunet.results import (
    Results,
    configuration_in_name,
    configuration_of,
    open_results,
    required,
    written_by_nnunet,
)
from training.openvino_model import quantise, to_openvino

_MOST_ERROR = 1e-2  # of the exported logits, relative; rounding gives 1e-6, fp16 weights 1e-3


def main(arguments: list[str]) -> None:
    """Run the command.

    Raises:
        AbdosegError: the model cannot be imported; the message says why.
    """
    options = _options(arguments)
    if options.precision == "int8" and options.calibrate is None:
        raise UsageError("--precision int8 needs --calibrate FOLDER with a few CTs")
    exact = (options.precision, options.tiling) == ("fp32", "nnunet")
    if exact and options.calibrate is not None:
        print(
            "note: --calibrate is not used: fp32 with nnU-Net's tiling is nnU-Net's own way already"
        )
        options.calibrate = None
    check_place(options.out)
    label_map = LabelMap.load(options.map_labels) if options.map_labels else None
    folds = tuple(dict.fromkeys(options.folds or ()))
    with open_results(
        options.results, folds, options.configuration, options.checkpoint_name
    ) as results:
        try:
            _import(results, options, label_map)
        except ModelError as error:
            raise ModelError(f"{options.results}: {error}") from None


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training import-nnunet",
        description="Make a model folder of a trained nnU-Net v2 model.",
    )
    add = parser.add_argument
    add("results", type=Path, metavar="RESULTS_FOLDER", help="with plans.json, or a .zip of it")
    add("--out", type=Path, required=True, help="weights/NAME; an older model there is replaced")
    add(
        "--folds",
        nargs="+",
        type=_fold,
        metavar="FOLD",
        help="0 1 2 3 4, whose logits are averaged, or all: nnU-Net's fold of that name, "
        "else all numbered ones (default: all numbered ones there are, else that fold)",
    )
    add(
        "--configuration",
        metavar="NAME",
        help="which model, where there are several: its configuration or its folder's whole name",
    )
    add(
        "--checkpoint-name",
        default="checkpoint_final.pth",
        metavar="FILE",
        help="of each fold (default: %(default)s)",
    )
    add(
        "--tiling",
        choices=("nnunet", "whole"),
        default="nnunet",
        help="nnU-Net's patches, or one pass over everything where memory allows",
    )
    add(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of the weights (default: %(default)s)",
    )
    add(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="CTs, for int8 and to compare a faster form",
    )
    add("--mirror", action="store_true", help="mirror as nnU-Net does by default (slow)")
    add("--map-labels", type=Path, metavar="FILE", help="name: class or [classes], YAML or JSON")
    add("--trust-checkpoint", action="store_true", help="run what a checkpoint may hold")
    return parser.parse_args(arguments)


def _fold(text: str) -> str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'")
    return text


def _import(results: Results, options: argparse.Namespace, label_map: LabelMap | None) -> None:
    checkpoints = [
        load_checkpoint(path, options.trust_checkpoint) for path in results.checkpoints.values()
    ]
    first = checkpoints[0]
    chosen = first.configuration or configuration_in_name(results.name)
    if chosen is None:
        raise ModelError("the checkpoint does not say which configuration was trained")
    with written_by_nnunet("plans.json"):
        configuration = configuration_of(results.plans, chosen)
    with written_by_nnunet("dataset.json"):
        outputs = outputs_of(results.dataset, label_map)
        inputs = len(inputs_of(results.dataset))
    # The plan first: what cannot be served is refused before anything is built.
    plan_with = partial(
        plan_of,
        options.out.name,
        results.plans,
        configuration,
        results.dataset,
        outputs,
        mirror=first.mirror_axes if options.mirror else (),
    )
    networks = {precision: NETWORK_FILES[precision] for precision in ("f32", "bf16")}
    with written_by_nnunet("plans.json"):
        exact_plan = plan_with(
            strides=None, tiling="nnunet", networks=networks, precision="f32", bytes_per_voxel=0.0
        )
        architecture = architecture_of(configuration)
        dimensions = len(required(configuration, "patch_size"))
        strides = strides_of(architecture, dimensions)
    if options.mirror and not exact_plan.mirror:
        print("note: this model was trained without mirroring; --mirror changes nothing")
    if not first.trainer.startswith("nnUNetTrainer"):
        print(f"note: trainer {first.trainer!r} is not nnU-Net's own; its network is the plans'")
    if options.tiling == "whole" and strides is None:
        raise ModelError("this network takes patches of one size alone: not --tiling whole")
    folds = [build(architecture, c, inputs, outputs.channels) for c in checkpoints]
    parameters = parameter_count(folds[0])
    if len(outputs.kept) < outputs.channels:
        folds = [keep_outputs(fold, outputs.kept) for fold in folds]
    network = Together(folds, flat=dimensions == 2)
    try:
        model = to_openvino(network, exact_plan.patch, inputs, strides is not None)
    except Exception as failure:  # PyTorch's tracer and OpenVINO raise many kinds
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[-1].strip()
        raise ModelError(f"OpenVINO cannot convert this network ({reason})") from None

    cases = calibration_cases(options.calibrate, inputs) if options.calibrate else []
    with model_folder(options.out) as folder:
        exact = folder.parent / "exact.xml"
        ov.save_model(model, exact, compress_to_fp16=False)
        floating = folder / NETWORK_FILES["f32"]
        ov.save_model(model, floating, compress_to_fp16=options.precision != "fp32")
        error = _check(network, floating, exact_plan)
        if options.precision == "int8":
            networks = NETWORK_FILES
        plan = plan_with(
            strides=strides,
            tiling=options.tiling,
            networks=networks,
            precision="int8" if options.precision == "int8" else "f32",
            bytes_per_voxel=bytes_per_voxel(exact, exact_plan.patch, inputs),
        )
        if options.precision == "int8":
            patches = calibration_patches(cases, plan)
            ov.save_model(
                quantise(model, patches), folder / NETWORK_FILES["int8"], compress_to_fp16=True
            )
        plan.save(folder)
        comparisons = []
        if cases:
            comparisons = compare(cases, plan, folder, exact_plan, exact)
            for comparison in comparisons:
                print(comparison, flush=True)
        stored = "single" if options.precision == "fp32" else "half"
        write_card(
            folder, plan, results, chosen, checkpoints, comparisons, parameters, stored, error
        )
    print(f"{options.out}: {chosen}, fold(s) {', '.join(results.checkpoints)}, {plan.precision}")


def _check(network: nn.Module, path: Path, plan: Plan) -> float:
    """How far the exported network is from PyTorch's, on a patch of noise.

    Raises:
        ModelError: too far.
    """
    noise = np.random.default_rng(0).normal(size=(plan.inputs, *plan.patch)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(noise)[None])[0].numpy()
    runner = Network(path, "f32", usable_threads(), len(plan.label_values), plan.inputs)
    found = runner.run(noise)
    scale = float(np.mean(expected.astype(np.float64) ** 2)) or 1.0
    error = float(np.sqrt(np.mean((found.astype(np.float64) - expected) ** 2) / scale))
    if not error < _MOST_ERROR:
        raise ModelError(f"the exported network's logits are off by {error:.2g}: not usable")
    return error
