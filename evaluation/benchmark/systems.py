"""What the benchmark runs: the rows of its table, those that cannot run here among them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from evaluation.benchmark.setting import ISA_LEVELS, Setting
from inference.machine import usable_threads
from inference.model import weights_folders
from inference.plan import NETWORK_FILES, Plan
from inference.plan_check import PRECISIONS
from inference.processor import instruction_sets

PUBLISHED = "published OpenVINO recipe, fp32"
_SCALING = (1, 2, 4, 8, 16)  # numbers of threads, as far as there are as many


@dataclass(frozen=True)
class System:
    """One row of the table: what is run.

    Attributes:
        name: what the row is called.
        command: program and arguments, with ``{labels}`` (file), ``{outputs}`` (folder) and
            ``{stages}`` (file) to be filled in.
        isa: limit of the processor's instructions, ``None`` for none.
        same_network: whether its labels can be compared with the reference's.
        baseline: whether the others' speed is given as a multiple of its speed.
        problem: why it cannot run, ``None`` if it can.
        threads: how many threads it uses; ``None`` for as many as the benchmark is told.
        network: the IR that our engine runs; ``None`` for the other systems.
        precision: what it runs in.
        default: whether it is a model as it comes.
    """

    name: str
    command: tuple[str, ...]
    isa: str | None = None
    same_network: bool = True
    baseline: bool = False
    problem: str | None = None
    threads: int | None = None
    network: Path | None = None
    precision: str | None = None
    default: bool = False


def list_systems(model: Path, problem: str | None, case: Path, setting: Setting) -> list[System]:
    """The rows of the table, also those that cannot run here.

    Args:
        model: the shared network's folder.
        problem: why it could not be made.
        case: the CT.
        setting: which rows are wanted, and their threads.
    """
    in_openvino = []
    if "published" in setting.groups:
        absent = None if find_spec("torch") else "torch is not installed (extra 'training')"
        command = _process("evaluation.benchmark.published_recipe", model, case)
        in_openvino.append(System(PUBLISHED, command, baseline=True, problem=absent or problem))
    if "ours" in setting.groups:
        in_openvino += _same_network(model, problem, case)
    if "models" in setting.groups:
        in_openvino += _shipped(case)
    systems = list(in_openvino)
    if "nnunet" in setting.groups:
        absent = None if find_spec("nnunetv2") else "nnunetv2 is not installed (extra 'nnunet')"
        command = _process("evaluation.benchmark.nnunet_predictor", model, case)
        name = "nnU-Net v2 predictor, fp32"
        systems.insert(0, System(name, command, baseline=True, problem=absent or problem))
    for level in setting.levels:
        systems += _limited(in_openvino, level)
    if "scaling" in setting.groups:
        systems += _scaled(in_openvino, setting.threads)
    return systems


def _process(module: str, model: Path, case: Path) -> tuple[str, ...]:
    """One of the others, which our own program runs."""
    return (
        *(sys.executable, "-m", module, "--model", str(model), "--case", str(case)),
        *("--labels", "{labels}", "--stages", "{stages}", "--threads", "{threads}"),
    )


def _ours(model: Path, precision: str, case: Path) -> tuple[str, ...]:
    """Our engine, as its users call it."""
    return (
        *(sys.executable, "-m", "inference", "-i", str(case), "-o", "{outputs}", "--quiet"),
        *("--model", str(model), "--precision", precision),
        *("--report", "{stages}", "--threads", "{threads}"),
    )


def _same_network(model: Path, problem: str | None, case: Path) -> list[System]:
    """Our engine with the shared network, in every precision."""
    systems = []
    for precision in PRECISIONS:
        absent = None
        if precision == "int8" and find_spec("nncf") is None:
            absent = "nncf is not installed (extra 'training')"
        elif precision == "bf16" and "avx512_bf16" not in instruction_sets():
            absent = "this processor has no bf16 instructions"
        systems.append(
            System(
                f"ours, same network, {precision}",
                _ours(model, precision, case),
                problem=problem or absent,
                network=model / NETWORK_FILES[precision],
                precision=precision,
            )
        )
    return systems


def _shipped(case: Path) -> list[System]:
    """Our engine with the models of the weights folders, in every precision that they have."""
    found = {
        path.parent.name: path.parent
        for folder in reversed(weights_folders())
        for path in sorted(folder.glob("*/plan.json"))
    }
    systems = []
    for name in sorted({"dsunet_eca", *found}):
        if name not in found:
            absent = "no such model in the weights folder"
            systems.append(System(f"ours, {name}", (), problem=absent))
            continue
        plan = Plan.load(found[name])
        for precision, file in sorted(plan.networks.items()):
            default = precision == plan.precision
            systems.append(
                System(
                    f"ours, {name}, {precision}" + (", its default" if default else ""),
                    _ours(found[name], precision, case),
                    same_network=False,
                    network=found[name] / file,
                    precision=precision,
                    default=default,
                )
            )
    return systems


def _limited(systems: Sequence[System], level: str) -> list[System]:
    """The same, with the instructions limited."""
    absent = None
    if ISA_LEVELS[level] not in instruction_sets():
        absent = f"this processor has no {level.replace('_CORE', '')}"
    return [
        replace(
            system,
            name=f"{system.name}, {level}",
            isa=level,
            baseline=False,
            problem=system.problem or absent,
        )
        for system in systems
        # The lower levels have no bf16 instructions.
        if system.precision != "bf16" or system.default or level.endswith("BF16")
    ]


def _scaled(systems: Sequence[System], threads: int) -> list[System]:
    """Some with other numbers of threads.

    The shared network in int8 (where that cannot run, in what can), and each model as it comes.
    """
    own = [system for system in systems if system.network and not system.problem]
    shown = [s for s in own if s.same_network][-1:] + [s for s in own if s.default]
    return [
        replace(system, name=f"{system.name}, {count} threads", threads=count)
        for count in _SCALING
        if count <= usable_threads() and count != threads
        for system in shown
    ]
