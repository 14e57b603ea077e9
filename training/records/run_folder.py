"""A training's folder: nobody else is at work in it, and what goes on in it is that training."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from inference.write.files import write_text
from training.config import Config
from training.json_file import read_json

_SETTINGS = "settings.json"


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """See that no other process trains in a folder.

    Args:
        run: the training's folder; made if it is missing.

    Raises:
        ValueError: one does.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{run}: another process is training there") from None
        yield


def changed_settings(
    run: Path, config: Config, holdout: Sequence[str] = (), done: int = 0
) -> list[str]:
    """Which settings are not those with which a training was begun or went on last.

    They are noted for the next time.

    Args:
        run: the training's folder.
        config: with what it goes on.
        holdout: cases that are held out besides the configuration's.
        done: steps that were made.

    Raises:
        ValueError: a case is held out that was not before: it would be called unseen.
    """
    aside = sorted({*config.holdout, *holdout})
    path, now = run / _SETTINGS, json.loads(json.dumps(asdict(config) | {"holdout": aside}))
    before = read_json(path) if path.is_file() else now
    if done and (seen := sorted({*aside} - {*before.get("holdout", aside)})):
        raise ValueError(
            f"{run}: {', '.join(seen)} cannot be held out any more, after {done} steps with it; "
            "another --run begins anew"
        )
    write_text(path, json.dumps(now, indent=1) + "\n")
    return sorted(key for key in {*now, *before} if now.get(key) != before.get(key))
