"""Cross-validation: which cases are kept aside in which fold."""

from __future__ import annotations

import zlib
from collections.abc import Iterable


def fold_of(names: Iterable[str], fold: int, folds: int, seed: int) -> tuple[str, ...]:
    """The cases that are kept aside in a fold.

    Args:
        names: of the labelled cases.
        fold: 0 .. folds - 1.
        folds: how many there are.
        seed: another seed divides the cases otherwise.

    Returns:
        Names in alphabetical order. Folds differ by at most one case in size and share none.

    Raises:
        ValueError: there is no such fold.
    """
    if not 0 <= fold < folds:
        raise ValueError(f"there is no fold {fold}: folds are 0 to {folds - 1}")
    shuffled = sorted(names, key=lambda name: (zlib.crc32(f"{seed} {name}".encode()), name))
    return tuple(sorted(shuffled[fold::folds]))
