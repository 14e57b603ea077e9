"""What all images of a prepared folder have in common: their grid and the HU that were kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.write.files import write_text
from training.config import Config
from training.json_file import read_json
from training.preparation.prepared_file import FOLDER_OF

SETTINGS = "settings.json"
"""In a prepared folder: what all images there have in common."""


def note_settings(out: Path, config: Config) -> None:
    """Write down what the images of a prepared folder have in common, for `check_settings`.

    Args:
        out: the prepared folder.
        config: with which it is prepared.

    Raises:
        OSError: the folder cannot be written.
    """
    write_text(out / SETTINGS, json.dumps(_settings(config)) + "\n")


def check_settings(out: Path, config: Config) -> None:
    """See that what was prepared is what a configuration wants.

    Args:
        out: the prepared folder.
        config: what is wanted.

    Raises:
        ValueError: images were prepared for another grid, or it cannot be told.
    """
    wanted = _settings(config)
    path = out / SETTINGS
    there = read_json(path) if path.exists() else None
    # Bodies have a grid of their own.
    folders = [folder for kind, folder in FOLDER_OF.items() if kind != "synthetic"]
    old = [folder for folder in folders if any((out / folder).glob("*.npz"))]
    if there != wanted and old:
        raise ValueError(
            f"{out}: images were prepared with other settings ({there}); remove "
            f"{', '.join(f'{folder}/' for folder in old)} there, or choose another --work"
        )


def _settings(config: Config) -> dict[str, Any]:
    """What all images of a prepared folder have in common, as JSON gives it back."""
    names = ("spacing", "size", "crop", "stored")
    wanted: dict[str, Any] = json.loads(json.dumps({n: getattr(config, n) for n in names}))
    return wanted
