"""Where a training writes: its working folder, the folders in it, and the model's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.options import Options

if TYPE_CHECKING:
    from training.config import Config


def work_of(config: Config, options: Options) -> Path:
    """The working folder: the one that was named, else the configuration's own."""
    return options.work or Path("runs") / config.name


def fold_suffix(options: Options) -> str:
    """What the names of a fold's folders end with; empty where there is none."""
    return "" if options.fold is None else f"_fold{options.fold}"


def folder_of(config: Config, options: Options, number: int) -> Path:
    """The folder of the first training (0) or of a round of self-training."""
    which = f"_round{number}" if number else ""
    return work_of(config, options) / f"{options.run}{fold_suffix(options)}{which}"


def model_folder_of(config: Config, options: Options) -> Path:
    """The folder of the model that is made: the one that was named, else in ``weights/``."""
    return options.out or Path("weights") / config.name
