"""ITK's C and C++ libraries print on standard error what no user wants to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import SimpleITK as sitk

from inference.console import terminal


@contextmanager
def without_noise() -> Iterator[list[str]]:
    """Keep what ITK's C and C++ libraries print on standard error from the user's terminal.

    Yields:
        A list that holds the printed lines afterwards.
    """
    with terminal:
        yield from _noise_kept()


def _noise_kept() -> Iterator[list[str]]:
    lines: list[str] = []
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        # A pipe, since a hardened container need not have any writable folder. Nobody reads it
        # meanwhile, so what does not fit is dropped.
        source, sink = os.pipe()
        os.set_blocking(sink, False)
        shown = os.dup(2)
        os.dup2(sink, 2)
        os.close(sink)
        try:
            yield lines
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            with os.fdopen(source, "rb") as printed:
                lines += printed.read().decode(errors="replace").splitlines()
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
