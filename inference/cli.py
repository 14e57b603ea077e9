"""The command: ``abdoseg`` or ``python -m inference``."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from os.path import realpath
from pathlib import Path
from types import FrameType
from typing import NoReturn

from inference.console import (
    INTERRUPTED,
    ending_signals,
    handling,
    leave,
    open_standard_streams,
    printable,
    say,
)
from inference.errors import ModelError, UsageError, last_line, os_error_line

_MOST_THREADS = 4096
_SIGNALLED = 128  # and the signal's number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; ``None`` for this process's.

    Returns:
        The exit code: 0, or 1 where some case failed, or 2 where the command was called
        wrongly and nothing was done.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.input and not options.output:
        parser.error("-i needs -o FOLDER")
    if options.input and len(options.input) > 1:  # of which argparse would take the last alone
        parser.error("-i may be given once; name a folder for several CTs")
    if options.demo and options.output:
        parser.error("--demo FOLDER writes into FOLDER; it takes no -o")
    # Where BLAS resamples (models imported from nnU-Net), parts are worked on side by side already,
    # and it would start as many threads as the host has cores. It looks at this when numpy is
    # imported, which is not done yet.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    open_standard_streams()
    try:
        with handling(ending_signals(), _end):
            return _run(options)
    except (UsageError, ModelError) as error:
        say(printable(f"error: {error}"), error=True)
        return 2
    except OSError as error:
        say(printable(f"error: {os_error_line(error)}"), error=True)
        return 2
    except ImportError as error:
        if (error.name or "").split(".")[0] == "inference":
            raise
        missing = isinstance(error, ModuleNotFoundError)
        reason = f"{error.name} is not installed" if missing else last_line(error)
        say(f"error: {reason}; this needs pip install .", error=True)
        return 2
    except KeyboardInterrupt:
        say("interrupted", error=True)
        return INTERRUPTED


def program() -> NoReturn:
    """Run the command and end the process with its exit code."""
    leave(main())


def _run(options: argparse.Namespace) -> int:
    from inference.ahead import Reader
    from inference.cases import find_cases
    from inference.file_names import ending
    from inference.model import Model, find_model
    from inference.plan import Plan
    from inference.progress import progress_for
    from inference.write.files import make_folder
    from inference.write.label_table import check_label_table, write_label_table

    # What can be wrong is looked at before anything is written.
    plan = Plan.load(find_model(options.model))
    plan.choose(options.precision)
    if options.report:
        _check_file(options.report, "--report")
    if options.label_table:
        check_label_table(options.label_table)
        _check_file(options.label_table, "--label-table")
        if options.report and realpath(options.report) == realpath(options.label_table):
            raise UsageError(f"{options.report}: is named for --report and for --label-table")
    if options.demo:
        source, target = _write_demo(options.demo), options.demo / "outputs"
    else:
        source, target = options.input[0], options.output
        if ending(target) and not target.is_dir():
            raise UsageError(f"{target}: is named like a CT; -o is the folder where labels go")
    cases = find_cases(source, target, plan.inputs)
    make_folder(target)
    for path in filter(None, (options.report, options.label_table)):
        make_folder(path.parent)
    if options.label_table:
        write_label_table(options.label_table, plan)
    with Reader() as reader:
        began = time.perf_counter()
        if not cases[0].problem:
            reader.begin(cases[0])  # while OpenVINO is imported and the model loaded
        from inference.batch import segment_files

        model = Model.load(options.model, threads=options.threads, precision=options.precision)
        with progress_for(len(cases), options.quiet) as progress:
            failed = segment_files(
                cases,
                model,
                progress,
                reader,
                began=began,
                report=options.report,
                preview=options.preview,
            )
    return 1 if failed else 0


def _check_file(path: Path, option: str) -> None:
    """Raise UsageError where an option's file cannot be one, or would replace a CT or labels."""
    from inference.dicom.file import is_dicom
    from inference.file_names import ending

    if path.is_dir():
        raise UsageError(f"{path}: is a folder; {option} needs a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is a device; {option} needs a file")
    if ending(path):
        raise UsageError(f"{path}: is named like a CT; {option} writes text")
    if path.exists() and is_dicom(path):
        raise UsageError(f"{path}: is a DICOM file, which {option} would replace")


def _write_demo(folder: Path) -> Path:
    """Write a synthetic CT into ``folder/inputs``; return its path."""
    from inference.phantom import make_phantom
    from inference.write.files import appearing, make_folder, write_image

    inputs = folder / "inputs"
    make_folder(inputs)
    image, _ = make_phantom()
    path = inputs / "phantom_0000.nii.gz"
    try:
        with appearing(path) as temporary:
            write_image(image, temporary)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="abdoseg",
        description="Segment 13 abdominal organs in CT.",
        epilog="Labels are uint8 on the CT's own grid. Exit codes: 0; 1 some case failed;"
        " 2 wrong usage, nothing was done; 129, 130, 143 stopped by a signal.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "-i",
        "--input",
        action="append",
        type=_path,
        metavar="PATH",
        help="a CT (.nii.gz, .nii, .mha, .mhd, .nrrd), a folder of CTs, or one of DICOM series",
    )
    what.add_argument(
        "--demo",
        type=_path,
        metavar="FOLDER",
        help="write a synthetic CT into FOLDER/inputs and segment it into FOLDER/outputs",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=_path,
        metavar="FOLDER",
        help="where labels go: X_0000.nii.gz and X.nii.gz give X.nii.gz",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a model's name or folder (default: $ABDOSEG_MODEL, else abdoseg)",
    )
    parser.add_argument(
        "--precision",
        choices=("f32", "bf16", "int8"),
        help="how the network computes (default: what the model chooses)",
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="default: what the CPU affinity and the container's quota allow",
    )
    parser.add_argument(
        "--report", type=_path, metavar="FILE", help="write times, volumes and warnings as JSON"
    )
    parser.add_argument(
        "--preview", action="store_true", help="write X_preview.png beside each label file"
    )
    parser.add_argument(
        "--label-table",
        type=_path,
        metavar="FILE",
        help="write the labels' names and colours, for ITK-SNAP (.txt) or 3D Slicer (.ctbl)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        import inference

        print(f"abdoseg {inference.__version__}")
        parser.exit()


def _path(text: str) -> Path:
    if not text:  # a shell's variable that is not set; "" would be the current folder
        raise argparse.ArgumentTypeError("is empty")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MOST_THREADS}")
    return int(text)


def _end(number: int, frame: FrameType | None) -> None:
    """End the program as Ctrl-C does: nothing half-written stays."""
    raise SystemExit(_SIGNALLED + number)
