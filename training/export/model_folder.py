"""Where a model folder is written: whole or not at all, and in nothing else's place."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.errors import UsageError


def check_place(out: Path) -> None:
    """See that a model folder can be written at ``out``, before there is one.

    Raises:
        UsageError: ``out`` exists and is no model folder, so it must not be replaced, it is a
            mount point, which cannot be, or it lies below a file.
    """
    if out.is_mount():
        raise UsageError(f"{out}: is a mount point; name a folder in it")
    if out.exists() and not (out / "plan.json").is_file():
        raise UsageError(f"{out}: exists and is no model folder; it is not replaced")
    for folder in out.parents:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{out}: {folder} is a file, not a folder")


@contextmanager
def model_folder(out: Path) -> Iterator[Path]:
    """A folder to write a model into, which takes the place of ``out`` when all is done.

    It lies in a temporary folder beside ``out``; if something goes wrong, ``out`` stays as it was.
    Where ``out`` is a link to a model folder, that folder is replaced.

    Raises:
        UsageError: as of `check_place`.
    """
    check_place(out)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as made:
        folder = Path(made) / out.name
        folder.mkdir()
        yield folder
        folder.chmod(0o755)
        before = Path(made) / "before"
        if out.exists():
            out.rename(before)
        try:
            folder.rename(out)
        except BaseException:
            if before.exists():
                before.rename(out)
            raise
