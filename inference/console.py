"""A command and the console it was started from: printing there, being ended from there."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading

_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2

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
