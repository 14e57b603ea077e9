"""Processes of our own, which end when the command is stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes to work in; on Ctrl-C or a signal they end at once, and what waits is not begun.

    Args:
        count: how many, at most.

    Yields:
        The pool that gives them work.
    """
    others = active_children()
    # Started afresh, not forked: the parent may have threads (matplotlib, OpenVINO). At Ctrl-C
    # they just end, as what they would print says nothing.
    pool = ProcessPoolExecutor(
        count,
        get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        for process in active_children():
            if process not in others:
                process.terminate()
        # Waited for: while its thread is at it the interpreter, if it ends meanwhile, may write to
        # a pipe that the thread has just closed, and complain.
        pool.shutdown(cancel_futures=True)
        raise
