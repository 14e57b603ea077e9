"""Which files are segmented, and under which names their labels are written."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inference.errors import CaseError, UsageError
from inference.file_names import (
    ENDINGS,
    channel_file,
    ending,
    first_channel,
    label_name,
    names_with_numbers,
)
from inference.paths import is_file, is_there, is_unicode
from inference.read.file import Scan, Watch, read

# What DICOM needs is imported where there is DICOM: start-up counts for those who have none.
if TYPE_CHECKING:
    from inference.dicom.header import Slice
    from inference.dicom.series import Series

_LONGEST = 255  # bytes of a file's name


@dataclass(frozen=True)
class Case:
    """One CT to segment.

    Attributes:
        source: the CT's file, or the folder with its DICOM files.
        target: where its labels go.
        problem: why it cannot be segmented, known before it is read; ``None`` if it can.
        further_channels: the files of further channels, for a model of several.
        slices: those of a DICOM series; empty for any other CT.
        series: what tells it from others in the same folder, its number mostly; empty where it is
            alone.
    """

    source: Path
    target: Path
    problem: str | None = None
    further_channels: tuple[Path, ...] = ()
    slices: tuple[Slice, ...] = ()
    series: str = ""

    def read(self, watch: Watch | None = None) -> Scan:
        """Read the CT; of several channels the first.

        Args:
            watch: is called with what there is so far, where that can be told.

        Raises:
            CaseError: it cannot be read. The message does not name the source.
        """
        if not self.slices:
            return read(self.source, watch)
        from inference.dicom.read import read_series

        return read_series(self.slices, watch)

    def read_further(self) -> list[Scan]:
        """Read the channels after the first.

        Raises:
            CaseError: one of them cannot be read. The message names the channel.
        """
        scans = []
        for path in self.further_channels:
            try:
                scan = read(path)
            except CaseError as error:
                raise CaseError(f"its channel {path.name} {error}") from None
            doubts = tuple(f"channel {path.name}: {warning}" for warning in scan.warnings)
            scans.append(replace(scan, warnings=doubts))
        return scans

    def about(self, text: str) -> str:
        """What is said of the case beside its source's name."""
        return f"series {self.series}: {text}" if self.series else text


def find_cases(source: Path, folder: Path, channels: int = 1) -> list[Case]:
    """List the CTs to segment.

    In a folder, files are taken by their ending, sorted by name; hidden files and subfolders
    are left alone. Where none has such an ending, the folder and its subfolders are searched for
    DICOM series.

    Args:
        source: a CT, a folder of CTs or a folder of DICOM series.
        folder: where labels go.
        channels: how many files a case has; several are named ``X_0000``, ``X_0001``, ..., and a
            single CT's further channels lie beside it.

    Returns:
        At least one case. Those that lack a channel have a ``problem``, and those whose labels
        would have the same name as another's: none of them is written, or the last would replace
        the others.

    Raises:
        UsageError: there is nothing to segment, or labels would replace a CT or lie among those
            of a folder.
    """
    images, beside = _images(source)
    cases = (
        _cases_of_files(source, images, beside, folder, channels)
        if images
        else _cases_of_series(source, beside, folder, channels)
    )
    claims: dict[Path, list[Case]] = {}
    for case in cases:
        claims.setdefault(case.target, []).append(case)
    return [replace(case, problem=_name_problem(case, claims) or case.problem) for case in cases]


def only_case(source: Path, channels: int = 1) -> Case:
    """The one CT that a path names; nothing is meant to be written.

    Args:
        source: a CT's file, or a folder that holds one CT or one DICOM series.
        channels: how many files a case has.

    Raises:
        UsageError: there is none, or more than one.
    """
    cases = find_cases(source, Path(os.devnull, "labels"), channels)
    if len(cases) > 1:
        raise UsageError(f"{source}: holds {len(cases)} CTs; name one of them")
    return cases[0]


def _name_problem(case: Case, claims: dict[Path, list[Case]]) -> str | None:
    """What is wrong with the name that a case's labels would have."""
    name = case.target.name
    rivals = [other.source for other in claims[case.target] if other is not case]
    if case.source in rivals:
        return "another series in this folder has the same number and UID (another patient's?)"
    if rivals:
        names = ", ".join(source.name for source in rivals)
        return f"its labels would have the same name ({name}) as those of {names}"
    if case.slices and not is_unicode(case.target):
        return "has a name that is not UTF-8; rename it"
    if len(os.fsencode(name)) > _LONGEST:
        return f"its labels' name would be too long ({name})"
    return None


def _refuse_among(folder: Path, sources: set[Path]) -> None:
    """Raise UsageError where labels would lie in a folder that is read for CTs."""
    if _identity(folder) in map(_identity, sources):
        raise UsageError(f"{folder}: labels would lie among CTs; choose another output folder")


def _identity(path: Path) -> tuple[int, int] | str:
    """What a file or folder has in common under all its names.

    One folder may be mounted twice, as a container's inputs and its outputs, or be spelt in
    another case: its real paths differ then.
    """
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def _cases_of_files(
    source: Path, images: list[Path], beside: list[Path], folder: Path, channels: int
) -> list[Case]:
    """A case for each CT, or for the channels of each.

    Args:
        source: a CT or a folder of CTs.
        images: the CTs to segment.
        beside: all that lie in their folder.
        folder: where labels go.
        channels: how many files a case has.

    Raises:
        UsageError: labels would replace a CT, or lie among those of a folder.
    """
    lacks: dict[Path, str | None] = {}
    if channels > 1:
        lacks = _first_channels(images, channels, whole_folder=source.is_dir())
        images = list(lacks)
    numbered = names_with_numbers(beside) if channels == 1 else set()
    targets = [folder / label_name(path.name, keep_number=path.name in numbered) for path in images]
    if source.is_dir():
        _refuse_among(folder, {source})
    kept = {_identity(path) for path in beside}
    for image, target in zip(images, targets, strict=True):
        if _identity(target) in kept:
            raise UsageError(
                f"{target}: the labels of {image.name} would replace a CT, or labels among CTs;"
                " choose another output folder"
            )
    return [
        Case(
            image,
            target,
            lacks.get(image),
            tuple(channel_file(image, index) for index in range(1, channels)),
        )
        for image, target in zip(images, targets, strict=True)
    ]


def _cases_of_series(source: Path, files: list[Path], folder: Path, channels: int) -> list[Case]:
    """A case for each DICOM series in a folder and its subfolders, or for a file of many slices.

    Labels are named after the folder (``patient_study`` for ``patient/study``), and after the
    series' number too where there are several in it, or its UID where they share a number. Those
    of a file are named after it.

    Args:
        source: the folder or file.
        files: its own files, of which none is a CT by its ending.
        folder: where labels go.
        channels: how many files a case has.

    Raises:
        UsageError: there is no series, or labels would lie where they are taken for CTs.
    """
    from inference.dicom.series import find_series

    found = find_series(source)
    alone = files == [source]
    if not found and alone:
        raise UsageError(
            f"{source}: is DICOM, but no CT by itself; name the folder with all the slices"
        )
    if not found and (deeper := _first_below(source)):
        raise UsageError(
            f"{source}: no CT lies in this folder itself; name the one that holds them"
            f" ({deeper} is a CT by its ending)"
        )
    if not found:
        endings = ", ".join(ENDINGS)
        some = ", ".join(path.name for path in files[:3]) + (" ..." if files[3:] else "")
        raise UsageError(
            f"{source}: no CT here ({endings} or a DICOM series), only {some}"
            if files
            else f"{source}: no file is in this folder, no DICOM series below it"
        )
    if channels > 1:
        raise UsageError(f"{source}: the model wants {channels} channels, not DICOM series")
    _refuse_among(folder, {source, *(one.path.parent for series in found for one in series.slices)})
    beside: dict[Path, list[Series]] = {}
    for series in found:
        beside.setdefault(series.folder, []).append(series)
    cases = []
    for series in found:
        told = _distinguishing(series, beside[series.folder])
        if alone:
            place, parts = source, [_without_ending(source)]
        else:
            place = series.folder
            parts = [*place.relative_to(source).parts] or [source.resolve().name or "ct"]
        name = "_".join([*parts, told] if told else parts)
        target = folder / f"{name}.nii.gz"
        cases.append(Case(place, target, series.problem, slices=series.slices, series=told))
    return cases


def _first_below(folder: Path) -> Path | None:
    """A CT by its ending in one of the subfolders, which are searched for DICOM alone."""
    files = (path for path in sorted(folder.rglob("[!.]*")) if is_file(path))
    return next(filter(ending, files), None)


def _without_ending(file: Path) -> str:
    """The name of a DICOM file; UIDs have dots in them, and often no ending."""
    from inference.dicom.file import SLICE_ENDINGS

    return file.stem if file.suffix.lower() in SLICE_ENDINGS else file.name


def _distinguishing(series: Series, beside: Sequence[Series]) -> str:
    """What tells a series from others in its folder, fit for a file's name: nothing if none are."""
    if len(beside) == 1:
        return ""
    number, uid = (re.sub(r"[^0-9A-Za-z.-]+", "-", text) for text in (series.number, series.uid))
    same = [other for other in beside if other.number == series.number]
    return number if number and len(same) == 1 else uid


def _images(source: Path) -> tuple[list[Path], list[Path]]:
    """The CTs to segment by their ending, and all files that lie in their folder, these included.

    Raises:
        UsageError: there is no such file or folder, or it is none of those.
    """
    try:
        source.stat()
        if not source.is_dir():
            if not source.is_file():
                raise UsageError(f"{source}: is neither a file nor a folder")
            if not ending(source):
                from inference.dicom.file import is_dicom

                if is_dicom(source):
                    return [], [source]
                raise UsageError(f"{source}: not a CT by its ending ({', '.join(ENDINGS)})")
            with suppress(OSError):  # a folder that must not be listed
                return [source], [source, *filter(ending, _files(source.parent))]
            return [source], [source]
        files = _files(source)
    except FileNotFoundError:
        raise UsageError(f"{source}: no such file or folder") from None
    except OSError as error:
        raise UsageError(f"{source}: cannot be read ({error.strerror})") from None
    images = [path for path in files if ending(path)]
    return images, images or files


def _files(folder: Path) -> list[Path]:
    """The files of a folder that are not hidden, sorted.

    A link that leads nowhere is among them: it is a CT that is lost, and that must be said.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (is_file(path) or (path.is_symlink() and not is_there(path)))
    )


def _first_channels(
    images: Sequence[Path], channels: int, whole_folder: bool
) -> dict[Path, str | None]:
    """The first channel of each case, and what the case lacks."""
    found: dict[Path, str | None] = {}
    known = set(images)
    for image in images:
        first = first_channel(image)
        if first is None:
            found[image] = f"the model wants {channels} channels: X_0000, X_0001, ..."
            continue
        if first in found:
            continue
        files = [first, *(channel_file(first, index) for index in range(1, channels))]
        missing = [
            path.name for path in files if path not in known and (whole_folder or not is_file(path))
        ]
        found[first] = f"{', '.join(missing)} is missing" if missing else None
    return found
