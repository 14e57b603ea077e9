"""What a prepared file was made of, and whether the data still has just that.

A fingerprint names the files of the cases that a prepared file shows, with their sizes, times and
digests, and says what their labels mean: all that it depends on beside the folder's settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference.file_names import ending
from inference.read.text_header import WITH_TEXT_HEADER, TextHeader
from training.data.case import Case
from training.preparation.prepared_file import opened

MADE_OF = "made_of"
"""The array of a prepared file that holds its fingerprint."""

_FORM = 5  # of what is made of the same data: files of another one are made anew


def fingerprint(cases: Sequence[Case]) -> str:
    """What says that a file was made of these cases, as they are now.

    Raises:
        OSError: a file of theirs cannot be read.
        CaseError: likewise, a header whose voxels lie beside it.
    """
    parts: list[Any] = [_FORM]
    for case in cases:
        files = []
        for path in _files_of(case):
            state = path.stat()
            files.append([path.name, state.st_size, state.st_mtime_ns, _digest(path)])
        parts.append([files, _meaning(case)])
    return json.dumps(parts)


def is_up_to_date(prepared: Path, cases: Sequence[Case]) -> bool:
    """Whether a prepared file is there, and made of what these cases have now."""
    if not prepared.exists():
        return False
    try:
        with opened(prepared) as content:
            return _is_still(json.loads(str(content[MADE_OF])), cases)
    except (OSError, ValueError):
        return False  # damaged, or its case cannot be read: that is said when it is tried


def _is_still(before: list[Any], cases: Sequence[Case]) -> bool:
    """Whether `fingerprint` would say so again; files are read only where their times differ.

    Copied data has other times, and the same content.
    """
    if len(before) != 1 + len(cases) or before[0] != _FORM:
        return False
    for (files, meaning), case in zip(before[1:], cases, strict=True):
        paths = _files_of(case)
        if meaning != _meaning(case):
            return False
        if [name for name, *_ in files] != [path.name for path in paths]:
            return False
        for (_, size, time, digest), path in zip(files, paths, strict=True):
            if not path.exists() or path.stat().st_size != size:
                return False
            if path.stat().st_mtime_ns != time and _digest(path) != digest:
                return False
    return True


def _meaning(case: Case) -> str:
    values = sorted(case.values.items()) if case.values is not None else None
    names = sorted(case.tissue_names.items())
    return json.dumps([case.annotated, values, names])


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _files_of(case: Case) -> list[Path]:
    named = [path for path in (case.image, case.label_file, case.tissue_file) if path]
    return [file for path in named for file in (path, *_voxels_beside(path))]


def _voxels_beside(path: Path) -> list[Path]:
    """The file with the voxels of a header that stands alone."""
    if ending(path) not in WITH_TEXT_HEADER or not path.is_file():
        return []
    name = TextHeader.read(path).voxel_file
    return [path.parent / name] if name and (path.parent / name).is_file() else []
