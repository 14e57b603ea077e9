"""Reading a CT in the background, while OpenVINO is loaded or another CT is segmented.

Inflating uses one core; the others would wait for it. Only one CT is read ahead, and only where
it is small beside the free memory, since it is not known yet what the one before it will need.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import SimpleITK as sitk

from inference.errors import CaseError
from inference.machine import free_memory
from inference.nifti import Header
from inference.reading import Scan, ending, read

_SHARE = 0.125  # of the free memory: larger CTs are read when it is their turn


class Reader:
    """Reads CTs, one of them ahead of time.

    To be used in a ``with`` block: when that is left, a reading that goes on is broken off.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "read")
        self._left = threading.Event()
        self._path: Path | None = None
        self._task: Future[Scan] | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, path: Path) -> None:
        """Begin to read a CT, if it is one that can be read ahead; does not wait.

        That is a ``.nii.gz`` file: its size is known at once, and it can be broken off.
        """
        if self._task is None and _is_small(path):
            self._path, self._task = path, self._pool.submit(read, path, self._watch)

    def take(self, path: Path) -> Scan:
        """A CT, read ahead or now.

        Raises:
            CaseError: as `inference.reading.read`.
        """
        if self._task is None or self._path != path:
            return read(path)
        task, self._task = self._task, None
        return task.result()

    def _watch(self, image: sitk.Image, ready: int) -> None:
        if self._left.is_set():
            raise CaseError("was not read to the end")


def _is_small(path: Path) -> bool:
    if ending(path) != ".nii.gz":
        return False
    try:
        header = Header.read(path)
    except (CaseError, OSError):  # `take` will say it
        return False
    return header.compressed and header.plain and header.bytes_needed < _SHARE * free_memory()
