"""Reads what a training has recorded, whatever a power cut left of it."""

from __future__ import annotations

import csv
import io
from pathlib import Path


def read_lines(path: Path) -> list[str]:
    """The lines of a record; none where there is no such file."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a record; none where there is no such file.

    What a power cut left of a row, or made of it, is passed over.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    return [row for row in csv.DictReader(io.StringIO(text, newline="")) if _is_whole(row)]


def _is_whole(row: dict[str, str]) -> bool:
    if None in row or None in row.values() or ("loss" in row and "" in row.values()):
        return False
    try:
        int(row["iteration"])
        for name, cell in row.items():
            if name != "case" and cell:
                float(cell)
    except (KeyError, ValueError):
        return False
    return True
