"""The command line of ``python -m training``: its steps and options."""

from __future__ import annotations

import argparse
from pathlib import Path

STEPS = {
    "prepare": "check and resample the data",
    "train": "train, or go on with an interrupted training",
    "export": "write the model folder, in fp16 and int8, with its model card",
    "pseudolabel": "label the CTs without labels, where the trained networks are sure",
    "measure": "print what configurations cost on this machine",
    "import-nnunet": "make a model folder of a trained nnU-Net v2 model (has its own --help)",
}

DESCRIPTION = """Rebuild a model's weights from a folder of CTs and labels.

Without a step: prepare, train, the configuration's rounds of self-training (pseudolabel, prepare,
train), export; interrupted, the same command goes on. Steps:
""" + "\n".join(f"  {step:13} {what}" for step, what in STEPS.items())


class Options(argparse.Namespace):
    """What the command line said; `parse` and its help say what each option means."""

    step: str | None
    config: list[Path]
    data: Path  # None only where `measure` needs none
    out: Path | None
    work: Path | None
    run: str
    round: int | None
    fold: int | None
    workers: int | None
    compile: bool | None
    initial: list[Path]
    teacher: list[Path] | None
    teacher_weight: float
    pseudolabels: Path | None
    checkpoint: list[Path] | None
    corrections: Path | None
    agreement: float
    accuracy_aware: bool
    int8_only: bool
    known_failures: Path | None


def parse(arguments: list[str] | None = None) -> Options:
    """Understand the command line.

    Raises:
        SystemExit: it is wrong, or ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("step", nargs="?", choices=STEPS, metavar="STEP", help="one step alone")
    add("--config", type=Path, action="append", default=[], help="training/configs/NAME.yaml")
    add("--data", type=Path, help="folder with nnU-Net's imagesTr/ or with cases/ and the like")
    add("--out", type=Path, help="the model folder (default: weights/NAME)")
    add("--work", type=Path, help="working folder (default: runs/NAME)")
    # torchrun takes "--run" for an abbreviation of an option of its own.
    name = "name of this training within the working folder (default: run)"
    add("--run", "--name", dest="run", default="run", help=name)
    add("--round", type=int, help="with a single step: its round of self-training (1, 2, ...)")
    add("--fold", type=int, help="cross-validation: the fold to hold out (0, 1, ...)")
    add(
        "--workers",
        type=int,
        help="processes that prepare, and CTs that are labelled at a time beside a GPU "
        "(default: one per CPU and 4 GB of free memory, 6 GB for the latter)",
    )
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="use torch.compile: on a GPU for the network (the default), on a CPU for the loss",
    )
    add(
        "--initial",
        type=Path,
        action="append",
        default=[],
        help="begin with the weights of this checkpoint or model folder, or with the mean of "
        "several checkpoints (a round of self-training begins with those before it)",
    )
    add(
        "--teacher",
        type=Path,
        nargs=2,
        metavar=("CONFIG", "CHECKPOINT"),
        help="learn from this larger network too (a checkpoint or a model folder)",
    )
    add(
        "--teacher-weight",
        type=float,
        default=0.5,
        help="its share of the loss (default: %(default)s)",
    )
    add(
        "--pseudolabels",
        type=Path,
        help="folder that 'pseudolabel' writes and 'prepare' reads (default: WORK/pseudolabels, "
        "with --fold N WORK/pseudolabels_foldN, with --round pseudolabels in the round's folder); "
        "without a step: in the place of self-training",
    )
    add(
        "--checkpoint",
        type=Path,
        action="append",
        help="for 'pseudolabel' (where several must agree) and 'export': a checkpoint, or a model "
        "folder (default: this training's)",
    )
    add("--corrections", type=Path, help="for 'pseudolabel': YAML file of what an eye saw")
    add(
        "--agreement",
        type=_share,
        default=0.85,
        help="DSC between looks that an organ of a pseudo-label needs (default: %(default)s)",
    )
    add(
        "--accuracy-aware",
        action="store_true",
        help="for 'export': keep layers that int8 hurts in higher precision (slow)",
    )
    add("--int8-only", action="store_true", help="for 'export': no network in floating point")
    add("--known-failures", type=Path, help="for 'export': text of the model card's last section")
    return parser.parse_args(arguments, namespace=Options())


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value
