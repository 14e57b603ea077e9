"""Reading a CT in the background, while OpenVINO is loaded or another CT is segmented.

Inflating uses one core; the others would wait for it. Only one CT is read ahead, and only where
it is small beside the free memory, since it is not known yet what the one before it will need.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import SimpleITK as sitk

from inference.cases import Case
from inference.errors import CaseError
from inference.machine import free_memory
from inference.nifti import Header
from inference.reading import Scan, ending

_SHARE = 0.125  # of the free memory: larger CTs are read when it is their turn


class Reader:
    """Reads CTs, one of them ahead of time.

    To be used in a ``with`` block: when that is left, a reading that goes on is broken off.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "read")
        self._left = threading.Event()
        self._case: Case | None = None
        self._task: Future[Scan] | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, case: Case) -> None:
        """Begin to read a CT, if it is one that can be read ahead; does not wait.

        That is a ``.nii.gz`` file or a DICOM series: its size is known at once, and it can be
        broken off.
        """
        if self._task is None and _is_small(case):
            self._case, self._task = case, self._pool.submit(case.read, self._watch)

    def take(self, case: Case) -> Scan:
        """A CT, read ahead or now.

        Raises:
            CaseError: as `inference.cases.Case.read`.
        """
        if self._task is None or self._case != case:
            return case.read()
        task, self._task = self._task, None
        return task.result()

    def _watch(self, image: sitk.Image, ready: int) -> None:
        if self._left.is_set():
            raise CaseError("was not read to the end")


def _is_small(case: Case) -> bool:
    most = _SHARE * free_memory()
    try:
        if case.slices:
            from inference.dicom.read import bytes_needed

            return bytes_needed(case.slices) < most
        if ending(case.source) != ".nii.gz":
            return False
        header = Header.read(case.source)
    except (CaseError, OSError):  # `take` will say it
        return False
    return header.compressed and header.plain and header.bytes_needed < most
