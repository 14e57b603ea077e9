"""Tables as text: CSV for programs, Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV with plain line ends."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def markdown_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as Markdown: the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(
        "| " + " | ".join(_in_a_cell(str(cell)) for cell in line) + " |\n" for line in lines
    )


def _in_a_cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", "\\|")


def number(value: float, decimals: int = 4) -> str:
    """A number with fixed decimals, ``-`` where there is none."""
    return "-" if value != value else f"{value:.{decimals}f}"
