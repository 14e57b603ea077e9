"""Segmenting files one after the other: what fails does not keep the others from being done."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

import SimpleITK as sitk

from inference.ahead import Reader
from inference.cases import Case
from inference.errors import AbdosegError, CaseError, last_line
from inference.file_names import preview_paths
from inference.labels.decode import Labels
from inference.machine import peak_memory, restart_peak_memory, seconds_since_start
from inference.model import Model
from inference.pipeline import segment_in_stages
from inference.progress import Progress
from inference.read.file import Scan
from inference.write.files import check_replaceable, write
from inference.write.preview import write_preview
from inference.write.report import CaseReport, write_report


def segment_files(
    cases: list[Case],
    model: Model,
    progress: Progress,
    reader: Reader,
    *,
    began: float,
    report: Path | None = None,
    preview: bool = False,
) -> int:
    """Segment CTs and write their labels.

    Args:
        cases: what to segment.
        model: with what.
        progress: is told of everything.
        reader: may have begun to read the first case.
        began: `time.perf_counter` of when the first case was begun: the model was loaded since.
        report: where to write the report, after every case anew; ``None`` for no report.
        preview: whether to write a picture beside each label file.

    Returns:
        How many cases failed; a report that cannot be written counts as one more.
    """
    reports: list[CaseReport] = []
    unwritten = False
    before = seconds_since_start() - (time.perf_counter() - began)
    loaded = time.perf_counter()
    targets = [case.target for case in cases]
    pictures = preview_paths(targets) if preview else [None] * len(cases)
    for number, (case, picture) in enumerate(zip(cases, pictures, strict=True)):
        entry = CaseReport(str(case.source), case.series or None)
        reports.append(entry)
        progress.start(case.source)
        restart_peak_memory()
        start = time.perf_counter()
        if number == 0:
            start, entry.seconds["load"] = began, loaded - began
        try:
            scans = _read(case, progress, reader, entry)
            # Is read while this one is segmented and its labels are written.
            following = next((c for c in cases[number + 1 :] if not c.problem), None)
            if following:
                reader.begin(following)
            _segment(case, scans, model, progress, entry, picture, last=following is None)
        except AbdosegError as error:
            entry.error = str(error)
        except MemoryError:
            entry.error = "is too large for the memory there is"
        except Exception as error:  # a bug here or below: the other cases still run
            entry.error = f"failed unexpectedly ({type(error).__name__}: {last_line(error)})"
            entry.traceback = traceback.format_exc()
        entry.seconds["total"] = time.perf_counter() - start
        entry.seconds = {stage: round(value, 4) for stage, value in entry.seconds.items()}
        entry.peak_memory_mb = round(peak_memory() / 2**20, 1)
        if entry.error is None:
            for warning in entry.warnings:
                progress.warn(case.source, case.about(warning))
            progress.done(case.source, case.target, entry.seconds["total"])
        else:
            progress.fail(case.source, case.about(entry.error))
        if report and not unwritten:
            try:
                write_report(report, model, before, reports)
            except OSError as error:
                unwritten = True
                progress.fail(report, f"the report cannot be written ({error.strerror})")
    return sum(entry.error is not None for entry in reports) + unwritten


def _read(case: Case, progress: Progress, reader: Reader, entry: CaseReport) -> list[Scan]:
    """Read one case's channels and fill in its report.

    Raises:
        CaseError: it cannot be read, or it is known already that it cannot be segmented.
    """
    if case.problem:
        raise CaseError(case.problem)
    check_replaceable(case.target)
    start = time.perf_counter()
    progress.stage("read", 0.0)
    scans = [reader.take(case), *case.read_further()]
    entry.warnings.extend(warning for scan in scans for warning in scan.warnings)
    entry.seconds["read"] = time.perf_counter() - start
    entry.shape = tuple(scans[0].image.GetSize())
    entry.spacing = tuple(scans[0].image.GetSpacing())
    return scans


def _segment(
    case: Case,
    scans: list[Scan],
    model: Model,
    progress: Progress,
    entry: CaseReport,
    picture: Path | None,
    last: bool,
) -> None:
    """Segment one case, write its labels (and their picture) and fill in its report.

    Raises:
        CaseError: it cannot be segmented, or its labels not be written.
    """
    images = [scan.image for scan in scans]
    result = segment_in_stages(images, model, progress.stage, last=last)
    entry.seconds.update(result.seconds)
    entry.window, entry.passes = result.window, result.passes
    entry.warnings.extend(result.warnings)

    start = time.perf_counter()
    progress.stage("write", 0.0)
    write(case.target, result.labels, scans[0], model.threads)
    entry.seconds["write"] = time.perf_counter() - start
    entry.labels = str(case.target)
    entry.millilitres = result.millilitres
    if picture:
        _write_preview(picture, scans[0].image, result.labels, result.offset, entry)


def _write_preview(
    path: Path, image: sitk.Image, labels: Labels, offset: float, entry: CaseReport
) -> None:
    """Write the picture; a failure is a warning, since the labels are there."""
    start = time.perf_counter()
    try:
        write_preview(path, image, labels, offset)
    except OSError as error:
        entry.warnings.append(f"no preview could be written ({error.strerror or error})")
    except MemoryError:
        entry.warnings.append("no preview could be written (not enough memory)")
    entry.seconds["preview"] = time.perf_counter() - start
