"""What a whole training, with its rounds of self-training, has yet to do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from training.options import Options
from training.run import check_pseudolabels, known_failures
from training.work_folder import folder_of, model_folder_of, work_of

if TYPE_CHECKING:
    from training.config import Config


def steps_left(config: Config, options: Options) -> list[list[str]]:
    """The steps of a whole training that are not done yet, as arguments of this program.

    Raises:
        UsageError: the model folder's place is taken.
        ValueError: files, corrections of cases or pseudo-labels that there are not, options that
            only a single step takes, or a round without the training before it: better said now
            than after the first training.
    """
    from training.export.model_folder import check_place

    out, work = model_folder_of(config, options), work_of(config, options)
    check_place(out)
    if out.resolve() in (work.resolve(), *work.resolve().parents):
        raise ValueError(f"{out}: the model would take the place of the training in {work}")
    named = (*options.initial, *(options.teacher or ()), options.known_failures)
    for path in (*named, options.corrections):
        if path and not path.exists():
            raise ValueError(f"{path}: no such file or folder")
    known_failures(options)
    if options.corrections and (options.pseudolabels or not config.rounds):
        raise ValueError("--corrections: this training has no rounds that label CTs")
    check_pseudolabels(options)
    if options.round is not None:
        raise ValueError("--round is for one step alone; without one all rounds are made")
    if options.checkpoint:
        raise ValueError("--checkpoint is for the steps 'pseudolabel' and 'export' alone")
    rounds = 0 if options.pseudolabels else config.rounds
    if rounds:
        rounds = _possible_rounds(config, options)
    folders = [folder_of(config, options, number) for number in range(rounds + 1)]
    begun = [n for n, folder in enumerate(folders) if (folder / "checkpoint.pt").exists()]
    first = max(begun, default=0)
    if begun and 0 not in begun:
        raise ValueError(
            f"{folders[0]}: has no checkpoint, but {folders[first]} has; to begin anew, remove that"
        )
    steps = []
    for number in range(first, rounds + 1):
        made = ["pseudolabel"] if number > first else []
        steps += [[step, f"--round={number}"] for step in (*made, "prepare", "train")]
    return [*steps, ["export", f"--round={rounds}"]]


def _possible_rounds(config: Config, options: Options) -> int:
    """The configuration's rounds of self-training; none where no CT lacks labels."""
    from training.data.cases import find_cases
    from training.pseudolabels.corrections import load_corrections

    cases = find_cases(options.data)
    if options.corrections:
        load_corrections(options.corrections, cases)  # for what is wrong in it
    aside = {*config.holdout, *config.empty}
    if any(case.kind == "unlabelled" and case.name not in aside for case in cases):
        return config.rounds
    print(f"self_training: {options.data} has no CTs without labels", file=sys.stderr)
    return 0
