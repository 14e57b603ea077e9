"""What one run of a program took: seconds, memory, processor time, and how it ended."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import psutil

from inference.errors import UsageError

SAMPLING_SECONDS = 0.03

_MARK = "ABDOSEG_TIMED_RUN"
"""Environment variable by which processes are found that a run has started, wherever they went."""


@dataclass(frozen=True)
class Usage:
    """One run.

    Attributes:
        seconds: wall clock, as the caller's machine sees it.
        exit_code: the program's; negative for the signal that ended it.
        peak_memory: most bytes in use at once, ``None`` where it could not be read.
        cpu_seconds: processor time of all its threads and processes, ``None`` likewise.
        out_of_memory: whether the system killed it because it used too much memory.
        gave_up: whether it was stopped because it took too long.
    """

    seconds: float
    exit_code: int
    peak_memory: int | None
    cpu_seconds: float | None
    out_of_memory: bool = False
    gave_up: bool = False


Runner: TypeAlias = Callable[[Path, Path, Path], Usage]
"""Called with the folder of inputs, the folder of outputs and the file for what it prints."""


@contextlib.contextmanager
def run_folders(beside: Path) -> Iterator[tuple[Path, Path]]:
    """Empty folders for a run's inputs and outputs, gone afterwards.

    Args:
        beside: the folder to make them in. Not /tmp: a Docker in a virtual machine sees only some
            folders.
    """
    work = Path(tempfile.mkdtemp(prefix=".run-", dir=beside))
    try:
        inputs, outputs = work / "inputs", work / "outputs"
        inputs.mkdir()
        outputs.mkdir()
        outputs.chmod(0o777)  # the container's user may be another one
        work.chmod(0o755)
        yield inputs, outputs
    finally:
        shutil.rmtree(work, ignore_errors=True)


def command_runner(template: str, cpus: int | None, give_up: float) -> Runner:
    """Runs a command with ``{inputs}`` and ``{outputs}`` in it, without a container.

    Args:
        template: the command, split like a shell does, but not run by one.
        cpus: let it run on this many processors only (Linux).
        give_up: seconds after which it is killed.

    Raises:
        UsageError: the template lacks one of the two places, or is no command.
    """
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise UsageError(f"--command {template!r}: {error}") from None
    missing = [p for p in ("{inputs}", "{outputs}") if not any(p in word for word in words)]
    if missing:
        raise UsageError(f"--command {template!r}: {' and '.join(missing)} must be in it")

    def run(inputs: Path, outputs: Path, log: Path) -> Usage:
        command = [
            word.replace("{inputs}", str(inputs.resolve())).replace(
                "{outputs}", str(outputs.resolve())
            )
            for word in words
        ]
        return run_command(command, log, give_up=give_up, cpus=cpus)

    return run


def run_command(
    command: Sequence[str],
    log: Path,
    give_up: float | None = None,
    cpus: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Usage:
    """Run a program and measure it together with all processes that it starts.

    Processor time is exact (the kernel's account of the ended processes), but for processes that
    the command did not wait for; those are ended with it, as in a container. Memory is the sum of
    the resident memory of the program and its descendants, sampled every 30 ms, or the kernel's
    own maximum for the program itself where that is larger.

    Args:
        command: program and arguments.
        log: file that gets what it prints.
        give_up: seconds after which it and its descendants are killed.
        cpus: let it run on this many processors only (Linux).
        environment: variables in addition to this process's own.

    Raises:
        UsageError: there is no such program.
    """
    pin = None
    if cpus is not None and hasattr(os, "sched_getaffinity"):
        allowed = set(sorted(os.sched_getaffinity(0))[:cpus])
        pin = lambda: os.sched_setaffinity(0, allowed)  # noqa: E731
    mark = os.urandom(8).hex()
    with log.open("wb") as file:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=pin,
                env={**os.environ, **(environment or {}), _MARK: mark},
            )
        except OSError as error:
            raise UsageError(f"{command[0]}: cannot be run ({error.strerror})") from None
        watch = _TreeWatch(process.pid, mark, None if give_up is None else start + give_up)
        watch.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            watch.kill()
            process.wait()
            raise
        finally:
            seconds = time.perf_counter() - start
            watch.stop()
            watch.kill()  # what outlives the command would run into the next case's time
    process.returncode = os.waitstatus_to_exitcode(status)
    return Usage(
        seconds,
        process.returncode,
        watch.peak or None,
        used.ru_utime + used.ru_stime,
        gave_up=watch.killed,
    )


class _TreeWatch(threading.Thread):
    """Samples the resident memory of a process and its descendants until told to stop."""

    def __init__(self, pid: int, mark: str, deadline: float | None) -> None:
        super().__init__(daemon=True)
        self._mark = mark
        self.peak = 0
        self.killed = False
        self._pid = pid
        self._deadline = deadline
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(SAMPLING_SECONDS):
            self.peak = max(self.peak, self._resident(), self._high_water())
            if self._deadline is not None and time.perf_counter() > self._deadline:
                self.killed = True
                self.kill()
                return

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def kill(self) -> None:
        """End the process and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        for process in psutil.process_iter():  # what left its process group
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self._mark:
                    process.kill()

    def _high_water(self) -> int:
        """The kernel's maximum for the program itself (Linux; else 0).

        Not ``ru_maxrss``: that of a child starts with what its parent had when it was started.
        """
        try:
            words = Path(f"/proc/{self._pid}/status").read_text(encoding="utf-8").split()
            return int(words[words.index("VmHWM:") + 1]) * 1024
        except (OSError, ValueError):
            return 0

    def _resident(self) -> int:
        total = 0
        try:
            root = psutil.Process(self._pid)
            for process in (root, *root.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
        except psutil.Error:
            pass
        return total
