"""What file names mean: a CT or not, which channel, and how its labels and picture are called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
"""File name endings of the formats that are read."""

_CHANNEL = "_0000"  # nnU-Net's and the challenge's mark of the first (often: only) channel


def ending(path: Path) -> str | None:
    """The ending (of `ENDINGS`, in lower case) of a file's name; ``None`` for any other file."""
    name = path.name.lower()
    return next((e for e in ENDINGS if name.endswith(e) and name != e), None)


def stem_of(path: Path) -> str:
    """The file's name without the whole ending, ``.nii.gz`` say."""
    return path.name[: len(path.name) - len(ending(path) or "")]  # whatever its case


def label_name(name: str, keep_number: bool = False) -> str:
    """The name of the label file of a CT.

    ``X_0000.nii.gz`` and ``X.nii.gz`` both give ``X.nii.gz``. Other formats keep their ending,
    but ``.mhd``, which is a pair of files, gives the single file ``.mha``.

    Args:
        name: the CT's.
        keep_number: whether ``_0000`` is no channel but the CT's own number.

    Raises:
        ValueError: the name has none of `ENDINGS`.
    """
    suffix = ending(Path(name))
    if suffix is None:
        raise ValueError(f"{name} has none of the endings {', '.join(ENDINGS)}")
    stem = name[: -len(suffix)]
    if stem.endswith(_CHANNEL) and stem != _CHANNEL and not keep_number:
        stem = stem[: -len(_CHANNEL)]
    return stem + (".mha" if suffix == ".mhd" else suffix)


def names_with_numbers(images: Sequence[Path]) -> set[str]:
    """Names of ``X_0000`` beside which ``X_0001`` or another lies: 0000 is a number like theirs."""
    groups: dict[str, dict[str, str]] = {}  # of X: names of files to their numbers
    for image in images:
        if match := re.fullmatch(r"(.+)_(\d{4})", stem_of(image)):
            groups.setdefault(match[1], {})[image.name] = match[2]
    return {name for group in groups.values() if len({*group.values()}) > 1 for name in group}


def first_channel(image: Path) -> Path | None:
    """The file ``X_0000`` of the case that a channel's file belongs to; ``None`` for no channel."""
    match = re.fullmatch(r"(.+)_\d{4}", stem_of(image))
    if match is None:
        return None
    return image.with_name(f"{match[1]}{_CHANNEL}{image.name[len(match[0]) :]}")


def channel_file(first: Path, index: int) -> Path:
    """The file of another channel of a case, whose first one is ``X_0000``."""
    stem = stem_of(first)
    return first.with_name(stem.removesuffix(_CHANNEL) + f"_{index:04d}" + first.name[len(stem) :])


def preview_paths(labels: Sequence[Path]) -> list[Path]:
    """Where the picture of each label file goes, in the same order.

    Beside ``X.nii.gz`` that is ``X_preview.png``; where label files differ in their ending alone,
    it is part of the name (``X.nii.gz_preview.png``, ``X.mha_preview.png``).
    """
    stems = [path.with_name(stem_of(path)) for path in labels]
    times = Counter(stems)
    chosen = [stem if times[stem] == 1 else t for stem, t in zip(stems, labels, strict=True)]
    return [path.with_name(f"{path.name}_preview.png") for path in chosen]
