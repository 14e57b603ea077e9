"""``python -m training``: prepare -> train -> (pseudo-label ->) export, together or one by one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from inference.console import handling, leave, open_standard_streams
from inference.errors import AbdosegError, last_line, os_error_line
from training.options import parse

if TYPE_CHECKING:
    from training.config import Config

CONFIGS = Path(__file__).parent / "configs"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    open_standard_streams()
    try:
        if given[:1] == ["import-nnunet"]:
            from training.nnunet.command import main as import_nnunet

            with handling([signal.SIGTERM], _interrupt):
                import_nnunet(given[1:])
            return 0
        options = parse(arguments)
        from training.config import Config
        from training.run import Run
        from training.steps_left import steps_left

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
        with handling([signal.SIGTERM], _interrupt):
            getattr(Run(configs[0], options), options.step)()
    except OSError as error:
        print(f"training: {os_error_line(error)}", file=sys.stderr)
        return 2
    except (AbdosegError, ValueError) as error:
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
        if re.search(r"C(\+\+)? compiler", str(error)):
            needs = "torch.compile needs a C and C++ compiler; install one, or give --no-compile"
            print(f"training: {needs}", file=sys.stderr)
            return 2
        ours = "illegal memory access" in str(error)  # a mistake, of which a GPU says no more
        if ours or ("memory" not in str(error) and not isinstance(error, MemoryError)):
            raise
        print(f"training: too little memory ({last_line(error)})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("training: interrupted; the same command goes on or begins anew", file=sys.stderr)
        return 130
    return 0


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
        if code > 0:
            return code
        if code < 0 and not came:
            print(
                f"training: {step[0]} was killed (signal {-code}), for too little memory perhaps;"
                " the same command goes on",
                file=sys.stderr,
            )
        if code < 0 or came:  # it may have come when the step was as good as done
            return 128 + (-code or came[0])
    return 0


def _interrupt(*_: object) -> None:
    """SIGTERM ends a step as Ctrl-C does: cleaned up, and with the same line."""
    raise KeyboardInterrupt


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

    with handling((signal.SIGINT, signal.SIGTERM), hand_on):
        yield came


def _measure(configs: list[Config]) -> int:
    from training.measure import HEADER, describe, measure

    print(HEADER, flush=True)
    for row in measure(configs):
        print(row, flush=True)
    print(f"\n{describe()}")
    return 0


if __name__ == "__main__":
    leave(main())
