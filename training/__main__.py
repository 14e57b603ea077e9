"""``python -m training``: prepare -> train -> (pseudo-label ->) export, together or one by one."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import AbdosegError, last_line

if TYPE_CHECKING:
    from training.config import Config

CONFIGS = Path(__file__).parent / "configs"
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["import-nnunet"]:
            from training.nnunet.command import main as import_nnunet

            with _termination_is_ctrl_c():
                import_nnunet(given[1:])
            return 0
        options = _options(arguments)
        from training.config import Config
        from training.run import Run, steps_left

        configs = [Config.load(path) for path in options.config]
        if options.step == "import-nnunet":
            raise ValueError("'import-nnunet' comes first, its options after it")
        if options.step == "measure":
            every = [Config.load(path) for path in sorted(CONFIGS.glob("*.yaml"), reverse=True)]
            # Two files of one name are one network, trained in two ways.
            named = {config.name: config for config in every}
            return _measure(configs or [named[name] for name in sorted(named)])
        if len(configs) != 1 or options.data is None:
            raise ValueError("one --config and --data are needed")
        if options.step is None:
            return _in_processes_of_their_own(steps_left(configs[0], options), given)
        with _termination_is_ctrl_c():
            getattr(Run(configs[0], options), options.step)()
    except (AbdosegError, OSError, ValueError) as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("inference", "training"):
            raise
        extra = "nnunet" if given[:1] == ["import-nnunet"] else "training"
        print(
            f"training: {error.name} is not installed; this needs pip install '.[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        print(f"training: too little memory ({last_line(error)})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("training: interrupted; the same command goes on or begins anew", file=sys.stderr)
        return 130
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
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
    name = "name of this training within the working folder"
    add("--run", "--name", dest="run", default="run", help=name)
    add("--round", type=int, help="one step alone: of this round of self-training (1, 2, ...)")
    add("--fold", type=int, help="keep this part of the labelled cases aside (0, 1, ...)")
    add("--workers", type=int, help="processes that prepare (default: one per CPU)")
    add("--compile", action="store_true", default=None, help="use torch.compile on a CPU too")
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
    add("--teacher-weight", type=float, default=0.5, help="its share of the loss")
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
    add("--agreement", type=_share, default=0.85, help="DSC that pseudo-labels of an organ need")
    add(
        "--accuracy-aware",
        action="store_true",
        help="keep layers that int8 hurts in higher precision (slow)",
    )
    add("--int8-only", action="store_true", help="export no floating point network beside int8")
    return parser.parse_args(arguments)


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def _in_processes_of_their_own(steps: list[list[str]], arguments: list[str]) -> int:
    """Run the steps one after the other; the first exit code that is not 0, else 0.

    Separate, since PyTorch and OpenVINO must not both use a CPU's matrix unit (AMX) from one
    thread: each believes that the unit is set up as it left it.
    """
    above = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([above, *filter(None, [os.environ.get("PYTHONPATH")])])
    for step in steps:
        command = [sys.executable, "-m", "training", *step, *arguments]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
        with _signals_go_to(process) as came:
            code = process.wait()
        if code or came:  # it may have come when the step was as good as done
            return 128 + came[0] if not code else code if code > 0 else 128 - code
    return 0


@contextmanager
def _termination_is_ctrl_c() -> Iterator[None]:
    """SIGTERM ends a step as Ctrl-C does: cleaned up, and with the same line."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _signals_go_to(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Leave Ctrl-C to a child, which gets it too, and hand SIGTERM on to it.

    Yields:
        A list of the signals that came.
    """
    came: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        came.append(number)
        if number == signal.SIGTERM:
            process.terminate()

    handlers: dict[int, Any] = {signal.SIGINT: hand_on, signal.SIGTERM: hand_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _measure(configs: list[Config]) -> int:
    from training.measure import HEADER, describe, measure

    print(HEADER, flush=True)
    for row in measure(configs):
        print(row, flush=True)
    print(f"\n{describe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
