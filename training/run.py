"""One training, or one round of self-training: its steps, with their folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.options import Options
from training.work_folder import fold_suffix, folder_of, model_folder_of, work_of

if TYPE_CHECKING:
    from training.config import Config
    from training.data.case import Case


class Run:
    """The steps of one training, or of one round of self-training.

    Heavy imports wait until they are needed.

    Args:
        config: what to train.
        options: of the command line, see ``python -m training --help``.

    Attributes:
        folders: of the first training and of the rounds up to this one, which is the last.
        initial: whose weights the training begins with.
        checkpoints: what is exported, or labels CTs.
        pseudolabels: where these labels are written, or read from.
        cases: of the data folder, with these pseudo-labels.
        holdout: the cases that the fold keeps aside.

    Raises:
        ValueError: there is no such round, fold or data, or the configuration names cases that
            the data does not have.
    """

    def __init__(self, config: Config, options: Options) -> None:
        from training.data.cases import find_cases
        from training.data.folds import fold_of
        from training.networks.network import check_network

        coarse = config.coarse_first
        patches = [config.patch, *([coarse["patch"]] if coarse else [])]
        check_network(dict(config.network), patches)
        self.round: int = options.round or 0
        self.whole = config
        self.config = config.in_round(self.round)
        self.options = options
        self.work = work_of(config, options)
        self.out: Path = model_folder_of(config, options)
        self.folders = [folder_of(config, options, n) for n in range(self.round + 1)]
        self.folder = self.folders[-1]
        self.prepared = self.work / "prepared"
        self.checkpoints: list[Path] = options.checkpoint or [self.folder / "checkpoint.pt"]
        self.initial: list[Path] = options.initial
        # A fold's own: no network that was trained on its held-out cases must teach it.
        own = self.work / f"pseudolabels{fold_suffix(options)}"
        if self.round:  # begins where the training before it ended
            own = self.folder / "pseudolabels"
            self.initial = [self.folders[-2] / "checkpoint.pt"]
            if options.step == "pseudolabel":
                self.checkpoints = options.checkpoint or self.initial
        self.pseudolabels: Path = options.pseudolabels or own
        if options.step != "pseudolabel":
            check_pseudolabels(options)
        inside = {self.pseudolabels.resolve(), *self.pseudolabels.resolve().parents}
        if inside & {(options.data / own).resolve() for own in ("labelsTr", "pseudolabelsTr")}:
            raise ValueError(
                f"{self.pseudolabels}: lies among the data's labels, whose numbers are its own"
            )
        self.cases: list[Case] = find_cases(options.data, self.pseudolabels)
        _check_names(config, {case.name for case in self.cases}, options.data)
        self.holdout: tuple[str, ...] = ()
        if options.fold is not None:
            labelled = [case.name for case in self.cases if case.kind == "labelled"]
            self.holdout = fold_of(labelled, options.fold, config.folds, config.seed)
            if not self.holdout:
                raise ValueError(f"fold {options.fold} is empty: {len(labelled)} labelled case(s)")

    def prepare(self) -> None:
        """Check and resample the data."""
        from training.data.cases import what_is_not_taught
        from training.data.pseudolabel_folder import ANNOTATED
        from training.preparation.jobs import what_is_not_drawn
        from training.preparation.prepare import prepare

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("torchrun is for the step 'train' alone; run 'prepare' before it")
        if self.round and not (self.pseudolabels / ANNOTATED).is_file():
            raise ValueError(
                f"{self.pseudolabels}: no pseudo-labels here; run 'pseudolabel --round "
                f"{self.round}' first"
            )
        if self.config.empty and not {*self.config.empty} & {case.name for case in self.cases}:
            names = ", ".join(self.config.empty)
            print(f"empty: {self.options.data} has none of {names}", file=sys.stderr)
        untaught = what_is_not_taught(self.options.data, self.cases)
        for line in filter(None, (untaught, what_is_not_drawn(self.cases, self.config))):
            print(line, file=sys.stderr)
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
        from training.preparation.prepared_file import file_of

        note = self._pseudolabelled_for
        before = note.read_text() if note.exists() else "no fold"
        if before != self._training_in_words:
            for name in names:
                file_of(self.prepared, "pseudo", name).unlink(missing_ok=True)
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
        """Train, or go on."""
        from training.config import Config
        from training.loop.teacher import Teacher
        from training.loop.train import train
        from training.preparation.settings import SETTINGS, check_settings

        if (self.prepared / SETTINGS).exists():
            check_settings(self.prepared, self.config)
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
        """Write the model folder, with its card."""
        from training.agreement import Agreement
        from training.export.export import export
        from training.export.model_card import write_model_card

        if len(self.checkpoints) > 1:
            raise ValueError("'export' takes one --checkpoint")
        (checkpoint,) = self.checkpoints
        told = known_failures(self.options)

        def describe(folder: Path, agreements: list[Agreement]) -> None:
            for agreement in agreements:
                print(agreement, flush=True)
            # Another training's checkpoint has its records beside it.
            elsewhere = checkpoint if checkpoint.is_dir() else None
            runs = [checkpoint.parent] if self.options.checkpoint else self.folders
            write_model_card(
                folder,
                self.whole,
                self.cases,
                runs=[] if elsewhere else runs,
                weights_from=elsewhere,
                prepared=self.prepared,
                holdout=self.holdout,
                agreements=agreements,
                known_failures=told,
            )

        export(
            checkpoint,
            self.config,
            self.prepared,
            self.out,
            self.options.accuracy_aware,
            holdout=self.holdout,
            int8_only=self.options.int8_only,
            describe=describe,
        )

    def pseudolabel(self) -> None:
        """Label the CTs without labels, and print which organs were kept."""
        from training.data.cases import find_cases
        from training.pseudolabels.corrections import load_corrections
        from training.pseudolabels.pseudolabel import pseudolabel

        by_hand = self.options.corrections
        cases = find_cases(self.options.data)
        # What lies there stays, so that a pseudo-labelling that was cut goes on.
        judged, refused = pseudolabel(
            cases,
            self.checkpoints,
            self.config,
            self.pseudolabels,
            self.options.agreement,
            load_corrections(by_hand, cases) if by_hand else None,
            self.options.workers,
        )
        for line in refused:
            print(f"refused: {line}", file=sys.stderr)
        if not judged and not refused:
            print(f"nothing to do; to begin anew, remove {self.pseudolabels}", file=sys.stderr)
        for name, found in judged.items():
            kept = ", ".join(map(found.described, found.kept)) or "nothing"
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


def known_failures(options: Options) -> str:
    """The model card's last section; empty without one.

    Raises:
        OSError: its file cannot be read.
        ValueError: it is not UTF-8.
    """
    path = options.known_failures
    try:
        return path.read_text(encoding="utf-8") if path else ""
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8") from None


def check_pseudolabels(options: Options) -> None:
    """Refuse a folder without pseudo-labels: mistyped, it would be as if there were none.

    Raises:
        ValueError: it is one.
    """
    from training.data.pseudolabel_folder import ANNOTATED

    if options.pseudolabels and not (options.pseudolabels / ANNOTATED).is_file():
        raise ValueError(f"{options.pseudolabels}: no pseudo-labels here ({ANNOTATED} is missing)")
