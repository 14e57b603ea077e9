"""A command and the console it was started from: printing there, being ended from there."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C."""

terminal = threading.RLock()
"""Is held while standard error is another file: who writes there meanwhile must wait."""


def open_standard_streams() -> None:
    """See that 0, 1 and 2 are open, and that any text can be printed.

    Where one is closed, the next file that is opened would get its number.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(_STANDARD_OUTPUT, "w")
    sys.stderr = sys.stderr or os.fdopen(_STANDARD_ERROR, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """A text as one line: names of files may have line breaks and terminals' codes in them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: str, error: bool = False) -> None:
    """Print, whether or not anyone reads it: what is written to files is what counts."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:  # nobody reads any more (``| head -1``), or the disk with the log is full
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # what is still in the buffer must go somewhere
        os.close(nowhere)


def ending_signals() -> list[signal.Signals]:
    """SIGTERM, and SIGHUP (the terminal was closed) unless it is ignored, as by nohup."""
    signals = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


@contextmanager
def handling(
    signals: Iterable[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Have a function called when one of these signals comes; afterwards all is as it was."""
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():  # None: set by no Python program
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def leave(code: int) -> NoReturn:
    """End the program. Once it was interrupted, another Ctrl-C does not disturb its ending."""
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
