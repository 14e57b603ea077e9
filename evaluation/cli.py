"""The commands of ``python -m evaluation``: arguments in, exit code out.

Exit codes: 0, all went well; 1, some case failed or is missing; 2, wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.challenge import SHORT_NAMES, label_of
from inference.errors import AbdosegError, UsageError
from inference.machine import usable_threads
from inference.organs import ORGANS

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``python -m evaluation``; ``None`` takes the process's own.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except AbdosegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("evaluation", "inference", "training"):
            raise
        print(
            f"error: {error.name} is not installed; this needs pip install '.[evaluation]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Scores, times and packs a submission as the FLARE 2024 organisers do.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_score(commands.add_parser("score", help="DSC and NSD of a folder of predictions"))
    _add_compare(commands.add_parser("compare", help="two folders of predictions, paired"))
    return parser


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", type=Path, required=True, help="folder of reference labels")
    parser.add_argument("--prediction", type=Path, required=True, help="folder of predictions")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and figures")
    _add_scoring_options(parser)
    parser.add_argument("--images", type=Path, help="folder of CTs to lay under the overlays")
    parser.add_argument(
        "--worst", type=_count, default=5, help="worst cases to list and draw (default 5)"
    )
    parser.set_defaults(command=_score)


def _add_scoring_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strict-challenge",
        action="store_true",
        help="leave out what the organisers' script leaves out, instead of counting it as zero",
    )
    parser.add_argument(
        "--organs",
        type=_organs,
        default=tuple(ORGANS),
        metavar="NAME,...",
        help="only these, where the reference has no others annotated "
        f"({', '.join(SHORT_NAMES.values())}; default all)",
    )
    parser.add_argument(
        "--workers", type=_positive, default=usable_threads(), help="processes (default: all CPUs)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")


def _score(options: argparse.Namespace) -> int:
    from evaluation import score_command

    scores = score_command.run(
        options.reference,
        options.prediction,
        options.out,
        options.strict_challenge,
        options.organs,
        options.images,
        options.worst,
        options.workers,
        options.quiet,
    )
    for score in scores:
        for note in score.notes:
            print(f"{score.status}: {note}", file=sys.stderr)
    if not options.quiet:
        print((options.out / "summary.md").read_text(encoding="utf-8").rstrip())
    bad = {"missing", "error"} - ({"missing"} if options.strict_challenge else set())
    return 1 if any(score.status in bad for score in scores) else 0


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", type=Path, help="folder of reference labels")
    for side in ("first", "second"):
        parser.add_argument(
            f"--{side}", type=Path, required=True, help="folder of predictions, or its scores.csv"
        )
    parser.add_argument("--out", type=Path, required=True, help="folder for table and figure")
    _add_scoring_options(parser)
    parser.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> int:
    from evaluation import compare_command

    _, notes = compare_command.run(
        options.reference,
        options.first,
        options.second,
        options.out,
        options.strict_challenge,
        options.organs,
        options.workers,
        options.quiet,
    )
    for note in notes:
        print(note, file=sys.stderr)
    if not options.quiet:
        print((options.out / "comparison.md").read_text(encoding="utf-8").rstrip())
    return 1 if notes and not options.strict_challenge else 0


def _organs(text: str) -> tuple[int, ...]:
    try:
        labels = {label_of(name) for name in text.split(",") if name.strip()}
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not labels:
        raise argparse.ArgumentTypeError("no organ is named")
    return tuple(sorted(labels))


def _positive(text: str) -> int:
    number = _count(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number
