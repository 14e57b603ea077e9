"""Which of a folder's files make up a CT: the DICOM series in it and below."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.dicom import SAME_PLACE, Slice, numbers, read_slice, stack
from inference.errors import CaseError
from inference.paths import is_file, is_folder, is_there

_PREAMBLE = 128  # bytes


@dataclass(frozen=True)
class Series:
    """One CT.

    Attributes:
        folder: where it lies.
        uid: the Series Instance UID; may be empty.
        number: the Series Number, as text; may be empty.
        slices: all of it, in no order that means anything.
        problem: why it cannot be read, known before; ``None`` if it can.
    """

    folder: Path
    uid: str
    number: str
    slices: tuple[Slice, ...]
    problem: str | None = None


def find_series(top: Path) -> list[Series]:
    """The CT series in a folder and its subfolders: folder by folder, sorted by number.

    Left alone: hidden files and folders, other modalities, reports, pictures of a screen,
    localizers, single slices, and series in one place (they watch the contrast agent come). A file
    that may be a slice but cannot be read is a problem of all series beside it.

    A series that lies in several folders is one where its slices are one stack together; else
    (copies; several patients whose UIDs somebody made the same) there is one in each folder.
    """
    parts: dict[str, dict[Path, list[Slice]]] = {}  # by series, then by folder
    lost: dict[Path, str] = {}
    order: dict[Path, int] = {}
    for folder, files, reason in _folders(top):
        order[folder] = len(order)
        slices, reason_here = _slices(files)
        if reason or reason_here:
            lost[folder] = reason or reason_here or ""
        for one in slices:
            if one.volume or one.enhanced:
                parts.setdefault(one.series, {}).setdefault(folder, []).append(one)
    found = []
    for uid, folders in parts.items():
        for group in _together(list(folders.values())) if uid else list(folders.values()):
            problem = _problem(group)
            if problem is None and not _is_volume(group):
                continue
            places = [
                folder for folder in folders if any(one.path.parent == folder for one in group)
            ]
            folder = places[0] if len(places) == 1 else Path(os.path.commonpath(places))
            problem = next((lost[place] for place in places if place in lost), problem)
            found.append(Series(folder, uid, group[0].number, tuple(group), problem))
    known = {one.path.parent for series in found for one in series.slices}
    found += [
        Series(folder, "", "", (), reason) for folder, reason in lost.items() if folder not in known
    ]
    return sorted(
        found,
        key=lambda series: (
            order.get(series.folder, -1),
            next(iter(numbers(series.number)), math.inf),
            series.uid,
        ),
    )


def _folders(top: Path) -> Iterator[tuple[Path, list[Path], str | None]]:
    """Every folder with its files, sorted; and why it cannot be read, if so.

    Links to folders are followed, but none is taken twice, and rather by its own name.
    """
    seen: set[str] = set()
    waiting, links = [top], list[Path]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            yield folder, [], f"cannot be read ({error.strerror})"
            continue
        below = {path for path in paths if is_folder(path)}
        yield folder, [path for path in paths if path not in below], None
        waiting += sorted((path for path in below if not path.is_symlink()), reverse=True)
        links += [path for path in below if path.is_symlink()]


def _slices(files: Sequence[Path]) -> tuple[list[Slice], str | None]:
    """The CT slices among files, and what is wrong with one that may be a slice too."""
    slices, lost = [], None
    others = []
    for path in files:
        if is_there(path) and not is_file(path):  # a device
            continue
        try:
            one = read_slice(path)
        except OSError as error:
            lost = f"may lack a slice: {path.name} cannot be read ({error.strerror})"
        except CaseError as error:
            lost = str(error)
        else:
            if one is None:
                others.append(path)
            else:
                slices.append(one)
    endings = {one.path.suffix for one in slices}
    for path in others:
        if path.suffix in endings and _is_blank(path):
            lost = f"has a slice that is empty: {path.name}"
    return slices, lost


def _is_blank(path: Path) -> bool:
    """Whether nothing is in a file, or no more than the zeros with which DICOM begins."""
    with path.open("rb") as file:
        start = file.read(_PREAMBLE + 1)
    return len(start) <= _PREAMBLE and not start.strip(b"\0")


def _together(parts: Sequence[list[Slice]]) -> list[list[Slice]]:
    """The parts of a series in several folders: as one, if that is a regular stack."""
    whole = [one for part in parts for one in part]
    if len(parts) > 1:
        try:
            stack([one for one in whole if one.placed])
        except CaseError:
            return list(parts)
    return [whole]


def _problem(group: Sequence[Slice]) -> str | None:
    """Why slices are no CT although they should be one."""
    if any(one.enhanced for one in group):
        # The order of the slices lies in sequences of the header that SimpleITK does not show.
        return "is enhanced (multi-frame) DICOM; convert it to NIfTI first, by dcm2niix for example"
    unplaced = [one for one in group if not one.placed]
    if unplaced and len(group) > 1:
        return f"has slices that do not say where they lie: {unplaced[0].path.name}"
    return None


def _is_volume(group: Sequence[Slice]) -> bool:
    positions = np.array([one.position for one in group])
    return bool(np.ptp(positions, axis=0).max() > SAME_PLACE)
