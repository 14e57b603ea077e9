"""Reading of the files that `training.prepare` writes."""

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


def complete_files(folder: Path) -> list[Path]:
    """The prepared files of a folder, by name; hidden ones are still being written."""
    return [p for p in sorted(folder.glob("*.npz")) if not p.name.startswith(".")]
