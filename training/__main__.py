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

from inference.errors import AbdosegError

if TYPE_CHECKING:
    from training.cases import Case
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
            return _in_processes_of_their_own(_steps(configs[0], options), given)
        with _termination_is_ctrl_c():
            getattr(_Run(configs[0], options), options.step)()
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
    add("--agreement", type=float, default=0.85, help="DSC that pseudo-labels of an organ need")
    add(
        "--accuracy-aware",
        action="store_true",
        help="keep layers that int8 hurts in higher precision (slow)",
    )
    return parser.parse_args(arguments)


class _Run:
    """The steps of one training, with its folders. Heavy imports wait until they are needed."""

    def __init__(self, config: Config, options: argparse.Namespace) -> None:
        from training.cases import find_cases
        from training.folds import fold_of

        self.round: int = options.round or 0
        self.whole = config
        self.config = config.in_round(self.round)
        self.options = options
        self.work = _work_of(config, options)
        self.out: Path = options.out or Path("weights") / config.name
        self.folders = [_folder_of(config, options, n) for n in range(self.round + 1)]
        self.folder = self.folders[-1]
        self.prepared = self.work / "prepared"
        self.checkpoints: list[Path] = options.checkpoint or [self.folder / "checkpoint.pt"]
        self.initial: list[Path] = options.initial
        # A fold's own: no network that was trained on its held-out cases must teach it.
        own = self.work / f"pseudolabels{_fold(options)}"
        if self.round:  # begins where the training before it ended
            own = self.folder / "pseudolabels"
            self.initial = [self.folders[-2] / "checkpoint.pt"]
            if options.step == "pseudolabel":
                self.checkpoints = options.checkpoint or self.initial
        self.pseudolabels: Path = options.pseudolabels or own
        self.cases: list[Case] = find_cases(options.data, self.pseudolabels)
        _check_names(config, {case.name for case in self.cases}, options.data)
        self.holdout: tuple[str, ...] = ()
        if options.fold is not None:
            labelled = [case.name for case in self.cases if case.kind == "labelled"]
            self.holdout = fold_of(labelled, options.fold, config.folds, config.seed)

    def prepare(self) -> None:
        from training.prepare import prepare

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("torchrun is for the step 'train' alone; run 'prepare' before it")
        if self.config.empty and not {*self.config.empty} & {case.name for case in self.cases}:
            names = ", ".join(self.config.empty)
            print(f"empty: {self.options.data} has none of {names}", file=sys.stderr)
        ours = [
            case.name
            for case in self.cases
            if case.label_file and case.label_file.parent == self.pseudolabels
        ]
        if ours or self.round:
            self._claim(ours)
        refused = prepare(self.cases, self.prepared, self.config, self.options.workers)
        if not (ours or self.round):
            self._pseudolabelled_for.unlink(missing_ok=True)
        for line in refused:
            print(f"refused: {line}", file=sys.stderr)

    def _claim(self, names: list[str]) -> None:
        """Note for which training these pseudo-labels are prepared; no other one's stay."""
        note = self._pseudolabelled_for
        before = note.read_text() if note.exists() else "no fold"
        if before != self._training_in_words:
            for name in names:
                (self.prepared / "pseudo" / f"{name}.npz").unlink(missing_ok=True)
        self.prepared.mkdir(parents=True, exist_ok=True)
        note.write_text(self._training_in_words)

    @property
    def _pseudolabelled_for(self) -> Path:
        """For which fold and round pseudo-labels are prepared, where our networks made some."""
        return self.prepared / "pseudolabelled_for.txt"

    @property
    def _training_in_words(self) -> str:
        fold = "no fold" if self.options.fold is None else f"fold {self.options.fold}"
        return f"{fold}, {self.folder.name}" if self.round else fold

    def train(self) -> None:
        from training.config import Config
        from training.teacher import Teacher
        from training.train import train

        note, mine = self._pseudolabelled_for, self._training_in_words
        there = note.read_text() if note.exists() else None
        if self.round and there != mine:
            raise ValueError(
                f"{self.prepared}: has no pseudo-labels for this round ({mine}); run "
                f"'prepare --round {self.round}' first"
            )
        if self.options.fold is not None and there not in (None, mine):
            raise ValueError(
                f"{self.prepared}: has pseudo-labels for {there}, by networks that may "
                f"have seen what {mine} holds out; run 'prepare --fold {self.options.fold}' first"
            )
        teacher = None
        if self.options.teacher:
            path, checkpoint = self.options.teacher
            weight = self.options.teacher_weight
            teacher = Teacher(Config.load(path), checkpoint, self.config, weight)
        train(
            self.config,
            self.prepared,
            self.folder,
            self.holdout,
            self.options.compile,
            teacher,
            self.initial,
        )

    def export(self) -> None:
        from training.export import export
        from training.machine import machine_in_words
        from training.model_card import write_model_card

        agreements = export(
            self.checkpoints[0],
            self.config,
            self.prepared,
            self.out,
            self.options.accuracy_aware,
            holdout=self.holdout,
        )
        for agreement in agreements:
            print(agreement, flush=True)
        write_model_card(
            self.out,
            self.whole,
            self.cases,
            self.folders,
            self.holdout,
            agreements,
            machine_in_words(),
        )

    def pseudolabel(self) -> None:
        from inference.organs import ORGANS
        from training.cases import find_cases
        from training.corrections import load_corrections
        from training.pseudolabel import pseudolabel

        by_hand = self.options.corrections
        # What another round labelled stays pseudo-labelled: remove its folder to begin anew.
        judged, refused = pseudolabel(
            find_cases(self.options.data),
            self.checkpoints,
            self.config,
            self.pseudolabels,
            self.options.agreement,
            load_corrections(by_hand) if by_hand else None,
        )
        for line in refused:
            print(f"refused: {line}", file=sys.stderr)
        if not judged and not refused:
            print(f"nothing to do; to begin anew, remove {self.pseudolabels}", file=sys.stderr)
        for name, found in judged.items():
            kept = ", ".join(ORGANS[organ] for organ in found.kept) or "nothing"
            print(f"{name}: kept {kept}")


def _check_names(config: Config, names: set[str], data: Path) -> None:
    """Refuse cases to hold out that there are not: mistyped, they would be trained on.

    Likewise empty ones; but a list of which none is there is that of other data.
    """
    for key, wanted in (("holdout", config.holdout), ("empty", config.empty)):
        missing = [str(name) for name in wanted if name not in names]
        if missing and (key == "holdout" or len(missing) < len(wanted)):
            raise ValueError(
                f"configuration {config.name!r}: {key}: {data} has no case {', '.join(missing)}"
            )


def _work_of(config: Config, options: argparse.Namespace) -> Path:
    work: Path = options.work or Path("runs") / config.name
    return work


def _fold(options: argparse.Namespace) -> str:
    return "" if options.fold is None else f"_fold{options.fold}"


def _folder_of(config: Config, options: argparse.Namespace, number: int) -> Path:
    """The folder of the first training (0) or of a round of self-training."""
    which = f"_round{number}" if number else ""
    return _work_of(config, options) / f"{options.run}{_fold(options)}{which}"


def _steps(config: Config, options: argparse.Namespace) -> list[list[str]]:
    """The steps of a whole training that are not done yet, as arguments of this program.

    Raises:
        ValueError: options that only a single step takes, or corrections of cases that there
            are not: better said now than after the first training.
    """
    if options.round is not None:
        raise ValueError("--round is for one step alone; without one all rounds are made")
    if options.checkpoint:
        raise ValueError("--checkpoint is for the steps 'pseudolabel' and 'export' alone")
    rounds = 0 if options.pseudolabels else config.rounds
    if rounds:
        rounds = _possible_rounds(config, options)
    folders = [_folder_of(config, options, number) for number in range(rounds + 1)]
    begun = [n for n, folder in enumerate(folders) if (folder / "checkpoint.pt").exists()]
    first = max(begun, default=0)
    steps = []
    for number in range(first, rounds + 1):
        made = ["pseudolabel"] if number > first else []
        steps += [[step, f"--round={number}"] for step in (*made, "prepare", "train")]
    return [*steps, ["export", f"--round={rounds}"]]


def _possible_rounds(config: Config, options: argparse.Namespace) -> int:
    """The configuration's rounds of self-training; none where no CT lacks labels."""
    from training.cases import find_cases
    from training.corrections import load_corrections, refuse_unknown

    cases = find_cases(options.data)
    if options.corrections:
        refuse_unknown(load_corrections(options.corrections), cases)
    aside = {*config.holdout, *config.empty}
    if any(case.kind == "unlabelled" and case.name not in aside for case in cases):
        return config.rounds
    print(f"self_training: {options.data} has no CTs without labels", file=sys.stderr)
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
        with _signals_go_to(process):
            code = process.wait()
        if code:
            return code if code > 0 else 128 - code
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
def _signals_go_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave Ctrl-C to a child, which gets it too, and hand SIGTERM on to it."""
    handlers: dict[int, Any] = {
        signal.SIGINT: signal.SIG_IGN,
        signal.SIGTERM: lambda *_: process.terminate(),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
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
