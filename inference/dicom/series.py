"""Which of a folder's files make up a CT: the DICOM series in it and below."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.dicom.file import SLICE_ENDINGS, is_dicom
from inference.dicom.header import Slice, numbers, read_slices
from inference.dicom.stack import SAME_PLACE, axes_of, check_alike, stack
from inference.errors import CaseError
from inference.paths import is_file, is_folder, is_there

_START = 1024  # bytes


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
    """The CT series in a folder and its subfolders, or in a file: folder by folder, by number.

    Left alone: hidden files and folders, other modalities, reports, pictures of a screen,
    localizers, single slices, and series in one place (they watch the contrast agent come). A file
    that may be a slice but cannot be read is a problem of all series beside it.

    A series that lies in several folders is one CT where its parts lie beside each other, or are
    one stack together. Else (copies; CTs whose UIDs somebody made the same) each folder has one.
    """
    parts: dict[tuple[str, ...], dict[Path, list[Slice]]] = {}  # by series, then by folder
    lost: dict[Path, str] = {}
    order: dict[Path, int] = {}
    for folder, files, reason in _folders(top):
        order[folder] = len(order)
        slices, damage = _slices(files)
        if reason or damage:
            lost[folder] = reason or damage or ""
        for one in slices:
            if one.volume:
                key = (*one.patient, one.series) if one.series else (*one.patient, "", str(folder))
                parts.setdefault(key, {}).setdefault(folder, []).append(one)
    found = [
        series
        for folders in parts.values()
        for group in _together(list(folders.values()))
        if (series := _series_of(group, lost)) is not None
    ]
    known = {one.path.parent for series in found for one in series.slices}
    found += [
        Series(folder, "", "", (), reason) for folder, reason in lost.items() if folder not in known
    ]

    def rank(series: Series) -> tuple[float, float, str]:
        number = next(iter(numbers(series.number)), math.inf)
        return order.get(series.folder, -1), number, series.uid

    return sorted(found, key=rank)


def _series_of(group: Sequence[Slice], lost: Mapping[Path, str]) -> Series | None:
    """The CT that slices make up; ``None`` if they are none and need not be one."""
    placed = [one for one in group if one.placed]
    sizes = {one.size for one in placed}
    # Without a place and of another size: a page of text, say, in the series that it is about.
    slices = [one for one in group if one.placed or one.problem or one.size in sizes or not sizes]
    problem = _problem(slices)
    if problem is None and not (placed and _is_volume(placed)):
        return None
    places = list(dict.fromkeys(one.path.parent for one in slices))
    folder = places[0] if len(places) == 1 else Path(os.path.commonpath(places))
    damage = next((lost[place] for place in places if place in lost), None)
    return Series(folder, group[0].series, group[0].number, tuple(slices), damage or problem)


def _folders(top: Path) -> Iterator[tuple[Path, list[Path], str | None]]:
    """Every folder with its files, sorted (or a file's, with it); why it cannot be read, if so.

    Links to folders are followed, but none is taken twice, and rather by its own name.
    """
    seen: set[str] = set()
    if not top.is_dir():
        yield top.parent, [top], None
        return
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
    slices: list[Slice] = []
    others: list[Path] = []
    unread: dict[Path, str] = {}
    lost = None
    for path in files:
        if is_there(path) and not is_file(path):  # a device
            continue
        try:
            found = read_slices(path)
        except OSError as error:
            unread[path] = f"cannot be read ({error.strerror})"
        except CaseError as error:
            lost = str(error)
        else:
            slices += found
            if not found:
                others.append(path)
    usual = {_pattern(one.path) for one in slices}
    for path in others:  # another kind of DICOM file may lie there, but not what is none
        if _pattern(path) in usual and not is_dicom(path):
            unread[path] = "is empty" if _is_blank(path) else "is no DICOM file"
    for path, reason in unread.items():
        # Where there is no slice to compare with, it may be a link to a patient's folder.
        maybe = path.suffix.lower() in SLICE_ENDINGS or (not slices and not path.suffix)
        if maybe or _pattern(path) in usual:
            lost = f"may lack a slice: {path.name} {reason}"
    return slices, lost


def _pattern(path: Path) -> str:
    """What the names of a series' files have in common: all but their numbers, mostly."""
    return re.sub(r"\d+", "0", path.name)


def _is_blank(path: Path) -> bool:
    """Whether nothing, or nothing but zeros, is where a file should say what it is."""
    with path.open("rb") as file:
        return not file.read(_START).strip(b"\0")


def _together(parts: list[list[Slice]]) -> list[list[Slice]]:
    """The parts of a series in several folders: as one where they lie beside each other.

    Also where they ought to but do not fit: what is wrong is then said of the whole. A part of one
    slice is no CT by itself, and would be left alone without a word.
    """
    whole = [one for part in parts for one in part]
    if len(parts) == 1:
        return parts
    try:
        check_alike(whole)
        if not all(one.placed for one in whole):
            return parts
        normal = np.cross(*axes_of(whole[0])[0])
        ranges = sorted(
            (min(heights), max(heights))
            for heights in ([float(np.dot(one.position, normal)) for one in part] for part in parts)
        )
        if any(low <= high for (_, high), (low, _) in itertools.pairwise(ranges)):
            stack(whole)
    except CaseError:
        return [whole] if _need_each_other(parts) else parts
    return [whole]


def _need_each_other(parts: list[list[Slice]]) -> bool:
    """Whether parts are no CTs by themselves: one of one place, or two that meet in a slice."""
    placed = [[one for one in part if one.placed] for part in parts]
    return any(some and not _is_volume(some) for some in placed) or any(
        _meet(a, b) for a, b in itertools.combinations(filter(None, placed), 2)
    )


def _meet(a: Sequence[Slice], b: Sequence[Slice]) -> bool:
    """Whether two parts have slices in the same places, but only where one of them ends."""
    if {tuple(one.position) for one in a}.isdisjoint(tuple(one.position) for one in b):
        return False
    ours, theirs = (np.array([one.position for one in part]) for part in (a, b))
    axis = np.ptp(np.concatenate([ours, theirs]), axis=0).argmax()
    ours, theirs = ours[:, axis], theirs[:, axis]
    common = min(ours.max(), theirs.max()) - max(ours.min(), theirs.min())
    return bool(common < min(np.ptp(ours), np.ptp(theirs)) / 2)


def _problem(group: Sequence[Slice]) -> str | None:
    """Why slices are no CT although they should be one."""
    if said := next((one.problem for one in group if one.problem), None):
        return said
    files, known = max(one.files for one in group), len({one.path for one in group})
    if known < files:
        return f"is cut into {files} files, of which there are {known} here"
    unplaced = [one for one in group if not one.placed]
    if unplaced and len(group) > 1:
        return f"has slices that do not say where they lie: {unplaced[0].name}"
    return None


def _is_volume(placed: Sequence[Slice]) -> bool:
    positions = np.array([one.position for one in placed])
    return bool(np.ptp(positions, axis=0).max() > SAME_PLACE)
