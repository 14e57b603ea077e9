"""Labels for unlabelled CTs from networks' own predictions, kept only where they are sure.

Each CT is looked at several times: by every network that is given, at its own spacing, enlarged
and shrunk a little with shifted intensities, and, by networks that were trained on mirrored
patients, mirrored. A voxel is kept where the looks agree, an organ only where they agree as a
whole and it is anatomically plausible; everything else is unknown to the training. Who has looked
at the pictures may correct that (`training.pseudolabels.corrections`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from inference.console import terminal
from inference.errors import AbdosegError
from inference.machine import free_memory, usable_threads
from inference.organs import ORGANS
from inference.preprocess.orientation import turn_to
from inference.preprocess.preprocess import preprocess
from inference.preprocess.resample import resize_labels
from inference.read.file import Scan
from inference.write.files import remove_unfinished, write, write_text
from inference.write.preview import write_preview
from training.config import Config
from training.data.case import Case
from training.data.pseudolabel_folder import ANNOTATED, label_file, read_annotated
from training.data.tissues import UNKNOWN
from training.json_file import read_json
from training.loop.checkpoint import load_average
from training.pseudolabels.corrections import Edit, correct, of_kind
from training.pseudolabels.fat import drop_fat
from training.pseudolabels.judge import PseudoLabels, judge
from training.pseudolabels.looks import look_at

_CORRECTED = "corrected.json"

_PER_CT = 6_000_000_000
"""Bytes that a CT may take while it is labelled: two sets of logits and the CT are, for 1,000
slices, 4 GB with ``abdoseg`` and 5.5 GB with ``dsunet_eca``."""


def pseudolabel(
    cases: Sequence[Case],
    checkpoints: Sequence[Path],
    config: Config,
    out: Path,
    least: float = 0.85,
    corrections: Mapping[str, Sequence[Edit]] | None = None,
    workers: int | None = None,
) -> tuple[dict[str, PseudoLabels], list[str]]:
    """Label the CTs that have no labels.

    Writes ``NAME.nii.gz`` on each CT's own grid (255 where unknown), ``NAME_preview.png`` and
    ``annotated.json`` (which organs were kept in which case) into ``out``, from where
    `training.preparation.prepare` takes them, for this network or another one. What is there
    already is kept, so an interrupted run goes on; but a CT whose corrections are other ones than
    before is labelled anew (``corrected.json`` has a mark of each CT's).

    Args:
        cases: of a data folder; those with labels, held out, or known to be empty are passed
            over.
        checkpoints: of one network or several, all of the same configuration (folds, say);
            model folders too.
        config: theirs.
        out: the folder.
        least: DSC between looks that an organ needs to be kept.
        corrections: by hand, by case (`training.pseudolabels.corrections`); without, those that
            were made stay.
        workers: CTs at a time beside a GPU, where the networks look at one after the other;
            ``None`` for as many as there are CPUs to use and memory for. On a CPU, which the
            networks keep busy, it is one.

    Returns:
        What was judged, by case (a case without any organ is not written), and a line per CT
        that was refused.

    Raises:
        KeyboardInterrupt: as it came; what had begun beside a GPU was finished.
        FileNotFoundError: a checkpoint is missing.
        ModelError: a folder in the place of one holds no model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    networks = [load_average(checkpoint, config).to(device) for checkpoint in checkpoints]
    out.mkdir(parents=True, exist_ok=True)
    remove_unfinished(out)
    made = Made(out)
    passed_over = {*config.holdout, *config.empty, *made.as_wanted(corrections)}
    todo = [case for case in cases if case.kind == "unlabelled" and case.name not in passed_over]
    label = partial(_label, networks, config, made, least, corrections or {})
    result, refused = {}, []
    with terminal:
        bar = tqdm(total=len(todo), desc="pseudolabel", unit="CT")
    try:
        for case, found in _each(label, todo, _at_a_time(device, workers)):
            if isinstance(found, str):
                refused.append(f"{case.name}: {found}")
            else:
                result[case.name] = found
            with terminal:  # else it might go where ITK's noise goes
                bar.update()
    finally:
        with terminal:
            bar.close()
    return dict(sorted(result.items())), sorted(refused)


class Made:
    """Which CTs a folder of pseudo-labels has, on disk after each of them.

    Args:
        folder: of the pseudo-labels.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._annotated = read_annotated(folder)
        corrected = folder / _CORRECTED
        self._marks = read_json(corrected) if corrected.is_file() else {}
        self._lock = Lock()

    def as_wanted(self, corrections: Mapping[str, Sequence[Edit]] | None) -> set[str]:
        """The cases that need no labelling: without labels to be found, or with their file.

        Args:
            corrections: that they must have been made with; ``None`` for any.
        """
        return {
            name
            for name, kept in self._annotated.items()
            if (not kept or label_file(self.folder, name).exists())
            and (
                corrections is None or self._marks.get(name, "") == _mark(corrections.get(name, ()))
            )
        }

    def forget(self, name: str) -> None:
        """What is told of a case holds no more: its labels are to be replaced."""
        with self._lock:
            if self._annotated.pop(name, None) is not None:
                self._write(ANNOTATED, self._annotated)

    def note(self, name: str, kept: Sequence[int], edits: Sequence[Edit]) -> None:
        """A case has its labels, of these organs and with these corrections."""
        with self._lock:
            self._marks[name] = _mark(edits)
            self._write(_CORRECTED, self._marks)
            self._annotated[name] = [ORGANS[organ] for organ in kept]
            self._write(ANNOTATED, self._annotated)

    def _write(self, name: str, content: object) -> None:
        write_text(self.folder / name, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _at_a_time(device: str, workers: int | None) -> int:
    """How many CTs are labelled at a time."""
    if device == "cpu":
        return 1
    return workers or max(1, min(usable_threads(), free_memory() // _PER_CT))


def _each(
    label: Callable[[Case], PseudoLabels | str], cases: Sequence[Case], workers: int
) -> Iterator[tuple[Case, PseudoLabels | str]]:
    """What becomes of each case, as it comes; those that have not begun end with the iterator."""
    if workers == 1:  # without a thread, which nothing would interrupt
        yield from ((case, label(case)) for case in cases)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        running = {pool.submit(label, case): case for case in cases}
        for future in as_completed(running):
            yield running[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _label(
    networks: Sequence[nn.Module],
    config: Config,
    made: Made,
    least: float,
    corrections: Mapping[str, Sequence[Edit]],
    case: Case,
) -> PseudoLabels | str:
    """Label one CT and write that; returns what was judged, without labels, or why not."""
    try:
        ct = case.ct()
    except (AbdosegError, ValueError) as error:
        return str(error)
    prepared = preprocess(ct.hu, ct.spacing, config.plan_in_hu)
    edits = corrections.get(case.name, ())
    looks = look_at(networks, prepared.values, prepared.spacing, config)
    trusted, doubted = of_kind(edits, "trust"), of_kind(edits, "doubt")
    found = judge(looks, prepared.spacing, least, trusted, doubted)
    found = replace(found, kept=tuple(sorted({*found.kept, *of_kind(edits, "grow", "draw")})))
    made.forget(case.name)  # labels to be replaced teach nothing
    if found.kept:
        labels = np.zeros(ct.hu.shape, np.uint8)
        part = labels[prepared.box]
        part[...] = resize_labels(found.labels, part.shape)
        drop_fat(labels, ct.hu, ct.spacing)
        try:
            correct(labels, ct.hu, ct.spacing, edits)
        except ValueError as error:
            return str(error)
        stored = np.zeros(ct.image.GetSize()[::-1], np.uint8)
        turn_to(ct.image.GetDirection()).apply(stored)[...] = labels
        write(label_file(made.folder, case.name), stored, Scan(ct.image))
        seen = np.where(stored == UNKNOWN, 0, stored)
        write_preview(made.folder / f"{case.name}_preview.png", ct.image, seen, ct.offset)
    made.note(case.name, found.kept, edits)
    # Without the labels: those of thousands of CTs would fill the memory.
    return replace(found, labels=np.empty(0, np.uint8))


def _mark(edits: Sequence[Edit]) -> str:
    """What tells corrections of a CT from others; empty where there are none."""
    return f"{zlib.crc32(repr(tuple(edits)).encode()):08x}" if edits else ""
