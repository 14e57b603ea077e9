"""Prepared files, which the training reads: where they lie, written, read and mapped."""

from __future__ import annotations

import errno
import struct
import tokenize
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np

from inference.write.files import appearing

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

_NO_MEMORY = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # or no further file, which a map takes

_LENGTHS = 26
"""Offset, in the header before an entry of a zip file, of the lengths of its name and of its extra
field: two numbers of 16 bits, the header's last."""


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a prepared file in one step: an npz file, not compressed, so that it can be `mapped`.

    Args:
        path: of the file.
        arrays: what it holds, by name.

    Raises:
        OSError: it cannot be written.
    """
    with appearing(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The arrays of a prepared file, by name: each is read whole when asked for, and checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or an array that is asked for is not in it.
    """
    with _named_if_damaged(path), np.load(path) as content:
        yield content


def mapped(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of a prepared file that are read where they are touched, from the system's cache.

    All processes share what is in that cache, and it gives way where memory is short. Nothing
    checks what is read so: `opened` does, once before. What an older version of this program
    compressed is read whole.

    Args:
        path: what `write` wrote.
        names: of the arrays that are wanted; those that the file lacks are left out.

    Raises:
        OSError: there is no such file, or too little memory to map it.
        ValueError: it is damaged.
    """
    with _named_if_damaged(path), ZipFile(path) as archive:
        there = set(archive.namelist())
        entries = {name: f"{name}.npy" for name in names if f"{name}.npy" in there}
        return {name: _map(path, archive, entry) for name, entry in entries.items()}


def _map(path: Path, archive: ZipFile, entry_name: str) -> np.ndarray:
    entry = archive.getinfo(entry_name)
    with archive.open(entry) as content:
        if entry.compress_type != ZIP_STORED:
            whole: np.ndarray = np.lib.format.read_array(content)  # type: ignore[no-untyped-call]
            return whole
        np.lib.format.read_magic(content)  # type: ignore[no-untyped-call]
        header = np.lib.format.read_array_header_1_0(content)  # type: ignore[no-untyped-call]
        shape, by_columns, dtype = header
        own_header = content.tell()
    with path.open("rb") as file:
        file.seek(entry.header_offset + _LENGTHS)
        lengths = struct.unpack("<HH", file.read(4))
        begin = file.tell() + sum(lengths) + own_header
        order = "F" if by_columns else "C"
        # "c": what is written stays in this process's memory (PyTorch warns of read-only arrays).
        return np.memmap(file, dtype, "c", begin, shape, order)  # type: ignore[call-overload]


@contextmanager
def _named_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # the system's own reason
            raise
        if isinstance(error, OSError) and error.errno in _NO_MEMORY:
            raise OSError(error.errno, error.strerror, str(path)) from None
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
