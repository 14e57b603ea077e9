"""Turns a data folder into what the training loop reads: bodies and resampled images.

Output, all in LPS orientation with arrays (z, y, x):

- ``images/NAME.npz``: real CTs, cropped and resampled by inference's own code: ``hu`` int16,
  ``labels`` uint8, ``annotated`` (label values that were annotated; empty for a CT without
  labels), ``spacing`` in mm;
- ``empty/NAME.npz``: the same, of CTs that the configuration says hold no organ;
- ``pseudo/NAME.npz``: the same, labels made by a network;
- ``bodies/NAME.npz``: tissue maps of whole bodies (`training.synthetic.bodies.Body`), for
  synthesis, and which organs are the patient's own (``annotated``); a patient with organ labels
  alone appears once per atlas, as ``NAME__ATLAS.npz``;
- ``transferred/NAME__ATLAS.npz``: an atlas's real CT and labels, bent to a patient's anatomy
  (as ``images``, at the bodies' spacing);
- ``refused.txt``: which cases were refused, and why.

What exists already is kept: an interrupted preparation goes on where it was. Each file says what
it was made of (`training.preparation.fingerprint`); when that is no longer what the data has, it is
made anew. Files of cases that are gone or refused are removed, since the training draws from all
that it finds.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from inference.errors import AbdosegError, last_line, os_error_line
from inference.machine import free_memory, usable_threads
from inference.write.files import write_text
from training.config import Config
from training.data.case import Case
from training.preparation.arrays import arrays_of
from training.preparation.fingerprint import MADE_OF, fingerprint, is_up_to_date
from training.preparation.jobs import Job, body_jobs, image_jobs
from training.preparation.prepared_file import FOLDER_OF, complete_files, write
from training.preparation.settings import check_settings, note_settings

_PER_PROCESS = 4_000_000_000
"""Bytes that a process may take: for a CT of 512 x 512 x 300 voxels 1.4 GB, of 1000 slices 3.7."""


def prepare(cases: list[Case], out: Path, config: Config, workers: int | None = None) -> list[str]:
    """Prepare cases.

    Held-out cases are prepared as images (to be scored on), never as bodies or atlases.

    Args:
        cases: what `training.data.cases.find_cases` found.
        out: where the output is written.
        config: its grid, HU range, hold-out list, and whether it trains on synthetic CT.
        workers: processes; ``None`` for as many as there are CPUs to use and memory for.

    Returns:
        One line per case that was refused, with the reason.

    Raises:
        KeyboardInterrupt: as it came; what is complete is kept, and no process goes on.
        OSError: ``out`` cannot be written.
        ValueError: ``out`` holds images that were prepared for another grid, or one of the
            processes was killed.
    """
    for folder in FOLDER_OF.values():
        (out / folder).mkdir(parents=True, exist_ok=True)
    check_settings(out, config)
    note_settings(out, config)
    jobs = image_jobs(cases, out, config) + body_jobs(cases, out, config)
    _remove_others(jobs, cases, out, config)
    jobs = [job for job in jobs if not is_up_to_date(job.target, job.cases)]
    refused = []
    others = active_children()
    workers = workers or max(1, min(usable_threads(), free_memory() // _PER_PROCESS))
    with ProcessPoolExecutor(workers, initializer=_end_when_told) as pool:
        running = {pool.submit(_run, job): job for job in jobs}
        try:
            for future in tqdm(as_completed(running), total=len(jobs), desc="prepare", unit="file"):
                if problem := future.result():
                    job = running[future]
                    job.target.unlink(missing_ok=True)  # made when the case was another one
                    refused.append(f"{job.name}: {problem}")
        except BrokenProcessPool:
            raise ValueError(
                "a process that prepared cases was killed; if memory is short, --workers 1 needs "
                "least"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()).difference(others):
                process.terminate()
            raise
    write_text(out / "refused.txt", "".join(f"{line}\n" for line in sorted(refused)))
    return sorted(refused)


def _remove_others(jobs: list[Job], cases: list[Case], out: Path, config: Config) -> None:
    """Remove prepared files that no case makes any more.

    Bodies that are only not drawn, or held out, stay: the training passes over them, and the
    next configuration may want them.

    Raises:
        ValueError: that would be all of them: the folder is of other data.
    """
    drawn = {"synthetic": 1.0, "transferred": 1.0}
    possible = body_jobs(cases, out, replace(config, holdout=(), shares=drawn))
    kept = {job.target for job in (*jobs, *possible)}
    found = [path for kind in FOLDER_OF for path in complete_files(out, kind)]
    removed = [path for path in found if path not in kept]
    if removed and len(removed) == len(found):
        raise ValueError(f"{out}: was prepared from other data; name another --work, or remove it")
    for path in removed:
        path.unlink()
    if removed:
        print(f"removed {len(removed)} prepared file(s) that no case makes now", file=sys.stderr)


_told_to_end = False
"""Whether this process was. Between two jobs the pool swallows what is raised."""


def _end_when_told() -> None:
    """Ctrl-C is the parent's to hear; when it says so, end without leaving half a file."""

    def end(*_: object) -> None:
        global _told_to_end
        _told_to_end = True
        sys.exit()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


def _run(job: Job) -> str | None:
    """Do one job; returns why the case was refused, or None."""
    try:
        if _told_to_end:
            sys.exit()
        torch.set_num_threads(1)
        return _try(job)
    except SystemExit:
        os._exit(0)  # else the pool would give this process its next job


def _try(job: Job) -> str | None:
    try:
        made_of = fingerprint(job.cases)  # before they are read: what changes meanwhile is noticed
        arrays = arrays_of(job)
    except MemoryError:
        return "there is too little memory for it"
    except OSError as error:
        return os_error_line(error)
    except (AbdosegError, ValueError, RuntimeError) as error:
        return last_line(error)  # SimpleITK writes several
    except (
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
    ) as error:  # odd names or numbers of tissues
        return f"failed unexpectedly ({type(error).__name__}: {last_line(error)})"
    write(job.target, {**arrays, MADE_OF: np.array(made_of)})
    return None
