"""Reading a CT in the background, while OpenVINO is loaded or another CT is segmented.

Inflating uses one core; the others would wait for it. Only one CT is read ahead, and only where
it is small beside the free memory, since it is not known yet what the one before it will need.
"""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import SimpleITK as sitk

from inference.cases import Case
from inference.errors import CaseError
from inference.file_names import ending
from inference.machine import free_memory
from inference.read.file import Scan
from inference.read.nifti_header import Header

_SHARE = 0.125  # of the free memory: larger CTs are read when it is their turn


class Reader:
    """Reads CTs, one of them ahead of time.

    To be used in a ``with`` block: when that is left, a reading that goes on is broken off.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "read")
        self._reading: _Reading | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, case: Case) -> None:
        """Begin to read a CT, if it is one that can be read ahead; does not wait.

        That is a ``.nii.gz`` file or a DICOM series: its size is known at once, and it can be
        broken off. One that was begun before and never taken is let go of.
        """
        if self._reading and self._reading.case == case:
            return
        self._drop()
        if _is_small(case):
            self._reading = _Reading(case, self._pool)

    def take(self, case: Case) -> Scan:
        """A CT, read ahead or now.

        Raises:
            CaseError: as `inference.cases.Case.read`.
        """
        reading = self._reading
        if reading is None or reading.case != case:
            self._drop()
            return case.read()
        self._reading = None
        return reading.scan.result()

    def _drop(self) -> None:
        if self._reading:
            self._reading.break_off()
        self._reading = None


class _Reading:
    """A CT that is being read.

    Attributes:
        case: which.
        scan: what will have been read.
    """

    def __init__(self, case: Case, pool: Executor) -> None:
        self.case = case
        self._unwanted = threading.Event()
        self.scan: Future[Scan] = pool.submit(case.read, self._watch)

    def break_off(self) -> None:
        """Stop where it is; does not wait."""
        self._unwanted.set()
        self.scan.cancel()

    def _watch(self, image: sitk.Image, ready: int) -> None:
        if self._unwanted.is_set():
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
