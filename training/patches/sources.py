"""Which prepared files patches come from, and which organs each of them tells."""

from __future__ import annotations

from pathlib import Path

from inference.organs import ORGANS
from training.config import Config
from training.preparation.prepared_file import FOLDER_OF, complete_files, opened

_OFTEN = 4.0  # as often is a body drawn whose organs are all of one patient


class Sources:
    """The prepared files that patches are drawn from, and which organs each of them tells.

    A file is opened once to see what it tells, when that is first asked for: there may be
    thousands.

    Args:
        folder: what `training.preparation.prepare.prepare` wrote.
        config: what to draw.
        holdout: cases that no patch may come from, besides the configuration's.

    Attributes:
        files: kind of patches to the files that they come from; kinds without any are left out.

    Raises:
        ValueError: a prepared file is damaged.
    """

    def __init__(self, folder: Path, config: Config, holdout: tuple[str, ...] = ()) -> None:
        self._annotated: dict[Path, tuple[int, ...]] = {}
        kept_aside = {*config.holdout, *holdout}
        everything = {kind: complete_files(folder, kind) for kind in FOLDER_OF}
        everything["labelled"] = [path for path in everything["labelled"] if self.annotated(path)]
        self.files = {
            kind: kept
            for kind, paths in everything.items()
            if config.shares.get(kind, 0) > 0
            and (kept := [p for p in paths if not any(shows(p.stem, n) for n in kept_aside)])
        }

    def annotated(self, path: Path) -> tuple[int, ...]:
        """Label values of the organs of a prepared file that are true to the patient.

        Raises:
            ValueError: the file is damaged.
        """
        if path not in self._annotated:
            with opened(path) as content:
                self._annotated[path] = tuple(content["annotated"].tolist())
        return self._annotated[path]

    def untold(self) -> tuple[int, ...]:
        """Label values of the organs that none of the files tells.

        Raises:
            ValueError: a prepared file is damaged.
        """
        told = {
            organ
            for kind, paths in self.files.items()
            for path in paths
            for organ in (ORGANS if kind == "synthetic" else self.annotated(path))
        }
        return tuple(organ for organ in ORGANS if organ not in told)

    def frequency(self, body: Path) -> float:
        """How often a body is drawn, beside the others: the more, the more of it is true.

        Raises:
            ValueError: the file is damaged.
        """
        return _OFTEN if len(self.annotated(body)) == len(ORGANS) else 1.0


def what_is_there(folder: Path, config: Config) -> str:
    """What a folder holds in which there is nothing to train on, to end a sentence with.

    Args:
        folder: what `training.preparation.prepare.prepare` wrote, or should have.
        config: what was to be drawn.
    """
    there = {kind: len(paths) for kind in FOLDER_OF if (paths := complete_files(folder, kind))}
    if there:
        found = ", ".join(f"{number} {kind}" for kind, number in there.items())
        wanted = ", ".join(kind for kind, share in config.shares.items() if share > 0)
        return f": it has {found} (some perhaps held out), and the shares are of {wanted}"
    refused = folder / "refused.txt"
    if refused.is_file() and refused.stat().st_size:
        return f": every case was refused ({refused} says why)"
    return " (run the preparation first)"


def shows(stem: str, name: str) -> bool:
    """Whether a prepared file, ``CASE`` or ``CASE__ATLAS``, holds something of a case."""
    return stem == name or stem.startswith(f"{name}__") or stem.endswith(f"__{name}")
