"""``python -m training import-nnunet``: from nnU-Net's results to a model folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import nn

from inference.cases import Case
from inference.errors import ModelError, UsageError
from inference.machine import usable_threads
from inference.network.network import Network
from inference.network.pass_memory import with_pass_memory
from inference.plan import NETWORK_FILES, Plan
from training.export.model_folder import check_place, model_folder
from training.export.openvino_model import quantise, to_openvino
from training.networks.network import parameter_count
from training.nnunet.card import write_card
from training.nnunet.checkpoint import Checkpoint, load_checkpoint
from training.nnunet.fast import calibration_cases, calibration_patches, compare
from training.nnunet.label_map import LabelMap
from training.nnunet.network import Together, architecture_of, build, keep_outputs, strides_of
from training.nnunet.plan import Outputs, inputs_of, outputs_of, plan_as_exported, plan_of
from training.nnunet.results import (
    Results,
    configuration_in_name,
    configuration_of,
    open_results,
    required,
    written_by_nnunet,
)

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
    source = _read(results, options, label_map)
    network = _build(source)
    cases = calibration_cases(options.calibrate, source.inputs) if options.calibrate else []
    plan = _write(results, source, network, cases, options)
    folds = ", ".join(results.checkpoints)
    print(f"{options.out}: {source.configuration}, fold(s) {folds}, {plan.precision}")


@dataclass(frozen=True)
class _Source:
    """What nnU-Net's results say, understood.

    Attributes:
        configuration: name of the one that was trained.
        checkpoints: of the folds.
        inputs: number of input channels.
        outputs: what the output channels mean.
        dimensions: 2 or 3.
        architecture: what `architecture_of` gives.
        strides: what `strides_of` gives.
        plan: for nnU-Net's own way.
    """

    configuration: str
    checkpoints: list[Checkpoint]
    inputs: int
    outputs: Outputs
    dimensions: int
    architecture: Mapping[str, Any]
    strides: tuple[int, ...] | None
    plan: Plan


@dataclass(frozen=True)
class _Network:
    """The folds in one network.

    Attributes:
        torch: in PyTorch.
        openvino: the same, in OpenVINO.
        parameters: of one fold.
    """

    torch: Together
    openvino: ov.Model
    parameters: int


def _read(results: Results, options: argparse.Namespace, label_map: LabelMap | None) -> _Source:
    """Read and understand all there is: what cannot be served is refused before it is built.

    Raises:
        ModelError: it cannot be served, or not in this way.
    """
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
    with written_by_nnunet("plans.json"):
        plan = plan_of(
            options.out.name,
            results.plans,
            configuration,
            results.dataset,
            outputs,
            first.mirror_axes if options.mirror else (),
        )
        architecture = architecture_of(configuration)
        dimensions = len(required(configuration, "patch_size"))
        strides = strides_of(architecture, dimensions)
    if options.mirror and not plan.mirror:
        print("note: this model was trained without mirroring; --mirror changes nothing")
    if not first.trainer.startswith("nnUNetTrainer"):
        print(f"note: trainer {first.trainer!r} is not nnU-Net's own; its network is the plans'")
    if options.tiling == "whole" and strides is None:
        raise ModelError("this network takes patches of one size alone: not --tiling whole")
    return _Source(chosen, checkpoints, inputs, outputs, dimensions, architecture, strides, plan)


def _build(source: _Source) -> _Network:
    """Put the folds into one network, in PyTorch and in OpenVINO.

    Raises:
        ModelError: the weights are not the network's, or OpenVINO cannot convert it.
    """
    outputs, plan = source.outputs, source.plan
    folds = [
        build(source.architecture, checkpoint, source.inputs, outputs.channels)
        for checkpoint in source.checkpoints
    ]
    parameters = parameter_count(folds[0])
    if len(outputs.kept) < outputs.channels:
        folds = [keep_outputs(fold, outputs.kept) for fold in folds]
    network = Together(folds, flat=source.dimensions == 2)
    try:
        model = to_openvino(network, plan.patch, source.inputs, source.strides is not None)
    except Exception as failure:  # PyTorch's tracer and OpenVINO raise many kinds
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[-1].strip()
        raise ModelError(f"OpenVINO cannot convert this network ({reason})") from None
    return _Network(network, model, parameters)


def _write(
    results: Results,
    source: _Source,
    network: _Network,
    cases: list[Case],
    options: argparse.Namespace,
) -> Plan:
    """Write the model folder, with comparisons on the cases that calibrate it, if any.

    Raises:
        CaseError: a case cannot be read or segmented.
        ModelError: the exported network is not PyTorch's.
    """
    int8 = options.precision == "int8"
    with model_folder(options.out) as folder:
        exact = folder.parent / "exact.xml"
        ov.save_model(network.openvino, exact, compress_to_fp16=False)
        floating = folder / NETWORK_FILES["f32"]
        ov.save_model(network.openvino, floating, compress_to_fp16=options.precision != "fp32")
        error = _check(network.torch, floating, source.plan)
        plan = plan_as_exported(source.plan, source.strides, options.tiling, int8)
        if int8:
            quantised = quantise(network.openvino, calibration_patches(cases, plan))
            ov.save_model(quantised, folder / NETWORK_FILES["int8"], compress_to_fp16=True)
        plan = with_pass_memory(plan, folder)
        plan.save(folder)
        comparisons = compare(cases, plan, folder, source.plan, exact) if cases else []
        for comparison in comparisons:
            print(comparison, flush=True)
        write_card(
            folder,
            plan,
            results,
            source.configuration,
            source.checkpoints,
            comparisons,
            network.parameters,
            "single" if options.precision == "fp32" else "half",
            error,
        )
    return plan


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
