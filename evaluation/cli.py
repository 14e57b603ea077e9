"""The commands of ``python -m evaluation``: arguments in, exit code out.

Exit codes: 0, all went well; 1, some case failed or is missing; 2, wrong usage; 129, 130 and 143,
stopped by a signal.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.benchmark.setting import GROUPS, ISA_LEVELS, Setting
from evaluation.challenge import MEMORY, SHORT_NAMES, TIME_LIMIT
from evaluation.option_types import (
    amount,
    choice,
    count,
    counts,
    organs,
    positive,
    size,
    size_in_bytes,
    words,
)
from inference.console import ending_signals, handling, open_standard_streams, say
from inference.errors import AbdosegError, UsageError, os_error_line
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
    open_standard_streams()
    command: Command = options.command
    came: list[int] = []

    def stop(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt  # what runs is ended, what is unfinished removed

    try:
        with handling(ending_signals(), stop):
            return command(options)
    except UsageError as error:
        say(f"error: {error}", error=True)
        return 2
    except AbdosegError as error:
        say(f"error: {error}", error=True)
        return 1
    except OSError as error:
        say(f"error: {os_error_line(error)}", error=True)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("evaluation", "inference", "training"):
            raise
        say(
            f"error: {error.name} is not installed; this needs pip install '.[evaluation]'",
            error=True,
        )
        return 2
    except KeyboardInterrupt:
        say("stopped", error=True)
        return 128 + (came or [signal.SIGINT])[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Scores, times and packs a submission as the FLARE 2024 organisers do.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_score(commands.add_parser("score", help="DSC and NSD of a folder of predictions"))
    _add_compare(commands.add_parser("compare", help="two folders of predictions, paired"))
    _add_time(commands.add_parser("time", help="seconds and memory per case, one start for each"))
    _add_timing_cases(
        commands.add_parser("make-timing-cases", help="synthetic CTs of eight usual sizes")
    )
    _add_variants(commands.add_parser("make-variants", help="labelled CTs made harder"))
    _add_benchmark(commands.add_parser("benchmark", help="our engine beside nnU-Net and others"))
    _add_package(commands.add_parser("package", help="the image as an archive to submit, tried"))
    return parser


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", type=Path, required=True, help="folder of reference labels")
    parser.add_argument("--prediction", type=Path, required=True, help="folder of predictions")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and figures")
    _add_scoring_options(parser)
    parser.add_argument("--images", type=Path, help="folder of CTs to lay under the overlays")
    parser.add_argument(
        "--worst", type=count, default=5, help="worst cases to list and draw (default 5)"
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
        type=organs,
        default=tuple(ORGANS),
        metavar="NAME,...",
        help="only these, where the reference has no others annotated "
        f"({', '.join(SHORT_NAMES.values())}; default all)",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=usable_threads(),
        help="processes (default: all CPUs)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")


def _score(options: argparse.Namespace) -> int:
    from evaluation import score_command, scoring

    scores = score_command.run(
        options.reference,
        options.prediction,
        options.out,
        strict=options.strict_challenge,
        labels=options.organs,
        images=options.images,
        worst=options.worst,
        workers=options.workers,
        quiet=options.quiet,
    )
    for score in scores:
        for note in score.notes:
            say(f"{score.status}: {note}", error=True)
    if not options.quiet:
        say((options.out / "summary.md").read_text(encoding="utf-8").rstrip())
    return 1 if scoring.failed(scores, options.strict_challenge) else 0


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

    _, notes, bad = compare_command.run(
        options.reference,
        options.first,
        options.second,
        options.out,
        strict=options.strict_challenge,
        labels=options.organs,
        workers=options.workers,
        quiet=options.quiet,
    )
    for note in notes:
        say(note, error=True)
    if not options.quiet:
        say((options.out / "comparison.md").read_text(encoding="utf-8").rstrip())
    return 1 if bad else 0


def _add_time(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", help="Docker image, say abdoseg:latest")
    what.add_argument(
        "--command",
        dest="template",
        metavar="'... {inputs} {outputs}'",
        help="run this instead of a container, say 'sh predict.sh {inputs} {outputs}'",
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder of CTs")
    parser.add_argument("--out", type=Path, required=True, help="folder for table and figure")
    _add_container_options(parser)
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="this model of the image; given again, models are timed one after the other and stand"
        " side by side (default: the image's own)",
    )
    parser.add_argument("--cpus", type=amount, help="limit (default: all)")
    parser.add_argument(
        "--time-limit",
        type=amount,
        default=TIME_LIMIT,
        help=f"seconds per case (default {TIME_LIMIT:g})",
    )
    parser.add_argument(
        "--give-up",
        type=amount,
        default=1800.0,
        help="seconds after which a case is stopped (default 1800)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no table")
    parser.set_defaults(command=_time)


def _add_container_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", type=size, default=MEMORY, help=f"limit (default {MEMORY})")
    parser.add_argument(
        "--docker-args",
        type=words,
        default=[],
        metavar="'...'",
        help="more arguments of docker run, say --docker-args='--network none'",
    )


def _time(options: argparse.Namespace) -> int:
    from evaluation.container import Container, image_of
    from evaluation.timing import CaseTiming, time_cases, write_side_by_side
    from evaluation.usage import Runner, command_runner

    if options.image is None and options.model:
        raise UsageError("--model needs --image; a --command names its model itself")
    if options.image is None and options.docker_args:
        raise UsageError("--docker-args needs --image")
    if options.image is None and options.cpus is not None and options.cpus != int(options.cpus):
        raise UsageError("--cpus of a --command is a whole number")

    def timed(runner: Runner, out: Path, title: str, memory: int | None = None) -> list[CaseTiming]:
        return time_cases(
            options.cases, out, runner, options.time_limit, memory, title, options.quiet
        )

    def container(*arguments: str) -> Container:
        more = [*options.docker_args, *arguments]
        return Container(options.image, options.memory, options.cpus, more, options.give_up)

    timings: dict[str, list[CaseTiming]] = {}
    if options.image is None:
        cpus = None if options.cpus is None else int(options.cpus)
        runner = command_runner(options.template, cpus, options.give_up)
        memory = size_in_bytes(options.memory)
        timings[""] = timed(runner, options.out, options.template, memory)
    else:
        image_of(options.image)  # says at once when there is none
        models = list(dict.fromkeys(options.model))
        if len({Path(model).name for model in models}) < len(models):
            raise UsageError(
                "--model: two have one name, which their folders of results would have"
            )
        for model in models:
            out = options.out / Path(model).name if len(models) > 1 else options.out
            chosen = container("-e", f"ABDOSEG_MODEL={model}")
            timings[model] = timed(chosen, out, f"{options.image}, {model}")
        if len(models) > 1:
            write_side_by_side(options.out, timings, options.image)
        if not models:
            timings[""] = timed(container(), options.out, options.image)
    if not options.quiet:
        say((options.out / "timing.md").read_text(encoding="utf-8").rstrip())
    return 0 if all(timing.passed for side in timings.values() for timing in side) else 1


def _add_timing_cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for the CTs")
    parser.add_argument(
        "--slices",
        type=counts,
        metavar="N,...",
        help="only the cases with these numbers of slices (default: all eight)",
    )
    parser.add_argument(
        "--plane",
        type=positive,
        default=512,
        help="pixels along both sides of a slice (default 512); fewer are quicker to try with",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=_make_timing_cases)


def _make_timing_cases(options: argparse.Namespace) -> int:
    from evaluation.timing_cases import SLICES, make_timing_cases

    slices = options.slices or SLICES
    if unknown := sorted(set(slices) - set(SLICES)):
        raise UsageError(f"--slices: {unknown[0]} is none of {', '.join(map(str, SLICES))}")
    for path in make_timing_cases(options.out, slices, options.plane, options.quiet):
        say(str(path))
    return 0


def _add_variants(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, required=True, help="folder of CTs")
    parser.add_argument("--labels", type=Path, required=True, help="folder of their labels")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the variants, images/ and labels/"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=_make_variants)


def _make_variants(options: argparse.Namespace) -> int:
    from evaluation.variants import make_variants

    written, refused = make_variants(options.images, options.labels, options.out, options.quiet)
    for path in written:
        say(str(path))
    for line in refused:
        say(f"error: {line}", error=True)
    return 1 if refused else 0


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--case", type=Path, help="the CT, .nii.gz or .nii (default: a phantom)")
    parser.add_argument("--slices", type=positive, default=300, help="slices of the phantom (300)")
    parser.add_argument(
        "--plane",
        type=positive,
        default=512,
        help="pixels along both sides of these (512)",
    )
    parser.add_argument("--checkpoint", type=Path, help="nnU-Net weights for the shared network")
    parser.add_argument(
        "--threads", type=positive, default=usable_threads(), help="of every row (all)"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="runs of each system (3)")
    parser.add_argument(
        "--only",
        type=choice(tuple(GROUPS)),
        default=tuple(GROUPS),
        metavar="NAME,...",
        help="only these of " + ", ".join(f"{name} ({what})" for name, what in GROUPS.items()),
    )
    parser.add_argument(
        "--isa",
        type=choice(tuple(ISA_LEVELS)),
        default=tuple(ISA_LEVELS),
        metavar="NAME,...",
        help="repeat the OpenVINO rows with the instructions limited to these "
        f"(default {','.join(ISA_LEVELS)}; '' for none)",
    )
    parser.add_argument("--small-patch", action="store_true", help="16 x 64 x 64, to try with")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no table")
    parser.set_defaults(command=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    from evaluation.benchmark.run import benchmark

    rows = benchmark(
        options.out,
        case=options.case,
        checkpoint=options.checkpoint,
        slices=options.slices,
        plane=options.plane,
        setting=Setting(
            groups=options.only,
            levels=options.isa,
            threads=options.threads,
            repeats=options.repeats,
            small=options.small_patch,
            quiet=options.quiet,
        ),
    )
    if not options.quiet:
        say((options.out / "benchmark.md").read_text(encoding="utf-8").rstrip())
    # What is not installed was never run; what was run and failed is a failure.
    return 1 if any(row.problem and row.system.problem is None for row in rows) else 0


def _add_package(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, help="Docker image, say abdoseg")
    parser.add_argument("--out", type=Path, required=True, help="the archive, TEAM.tar.gz")
    parser.add_argument("--case", type=Path, help="CT to try it with (default: a small phantom)")
    _add_container_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=_package)


def _package(options: argparse.Namespace) -> int:
    from evaluation.package import package

    done = package(
        options.image,
        options.out,
        case=options.case,
        memory=options.memory,
        arguments=options.docker_args,
        quiet=options.quiet,
    )
    say(f"{done.path}: {done.size / 2**20:.1f} MiB, image {done.tag}")
    say(f"sha256 {done.sha256}")
    say(f"loaded again and run on one case: {done.usage.seconds:.2f} s, exit code 0")
    return 0
