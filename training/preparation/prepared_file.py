"""The files that `training.preparation.prepare` writes: where they lie, and how they are read."""

from __future__ import annotations

import struct
import tokenize
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

FOLDER_OF = {
    "synthetic": "bodies",
    "labelled": "images",  # and CTs without labels, from which no patch is drawn
    "transferred": "transferred",
    "empty": "empty",
    "pseudo": "pseudo",
}
"""Kind of patches, as in a configuration's ``shares``, to the folder of what they are drawn from.

The order is the one in which kinds are drawn by chance: another one would draw other patches.
"""

# What numpy raises of bytes that are not as they were written.
_DAMAGE = (
    BadZipFile, EOFError, KeyError, RuntimeError, SyntaxError, ValueError, struct.error,
    tokenize.TokenError, zlib.error,
)  # fmt: skip


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The arrays of a prepared file, by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or an array that is asked for is not in it.
    """
    try:
        with np.load(path) as content:
            yield content
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # the system's own reason
            raise
        raise ValueError(f"{path}: damaged; remove it and prepare again") from None


def file_of(prepared: Path, kind: str, name: str) -> Path:
    """Where a prepared file lies, whether it is there or not.

    Args:
        prepared: the folder that `training.preparation.prepare.prepare` writes.
        kind: of the patches that are drawn from it, a key of `FOLDER_OF`.
        name: ``CASE``, or ``CASE__ATLAS``.
    """
    return prepared / FOLDER_OF[kind] / f"{name}.npz"


def complete_files(prepared: Path, kind: str) -> list[Path]:
    """The prepared files of a kind, by name; hidden ones are still being written.

    Args:
        prepared: the folder that `training.preparation.prepare.prepare` writes.
        kind: of the patches that are drawn from them, a key of `FOLDER_OF`.
    """
    files = sorted((prepared / FOLDER_OF[kind]).glob("*.npz"))
    return [path for path in files if not path.name.startswith(".")]
