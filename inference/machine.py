"""What this process may use: threads and memory, as the container allows, not as the host has.

Neither OpenVINO nor SimpleITK looks at a cgroup's CPU quota: under ``docker run --cpus 2`` on a
64-core host they would start 64 threads that wait for each other. Linux' control groups are
read in both versions; elsewhere the operating system's numbers are used.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2**63 where there is no limit


def usable_threads(root: Path = Path("/")) -> int:
    """Number of threads that can run at once: affinity mask and cgroup CPU quota.

    Args:
        root: where ``/proc`` and ``/sys`` are (tests give a folder of their own).

    Returns:
        At least 1. A quota of 1.5 CPUs gives 2 threads.
    """
    if hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    else:
        threads = os.cpu_count() or 1
    for folder in _groups(root, "cpu"):
        words = _words(folder / "cpu.max")  # version 2: "200000 100000" or "max 100000"
        if not words:
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0] not in ("max", "-1") and float(words[1]) > 0:
            threads = min(threads, math.ceil(float(words[0]) / float(words[1])))
    return max(1, threads)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that can still be used without swapping or being killed.

    The least of what the system has available, what each cgroup around this process leaves and
    what its own limit does (``ulimit -v``). File cache counts as free: the kernel drops it first.

    Args:
        root: where ``/proc`` and ``/sys`` are.
    """
    free = _UNLIMITED
    for words in _lines(root / "proc/meminfo"):
        if words[0] == "MemAvailable:":
            free = int(words[1]) * 1024
    for folder in _groups(root, "memory"):
        for limit_file, usage_file, caches in (
            ("memory.max", "memory.current", ("inactive_file", "active_file")),
            (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                ("total_inactive_file", "total_active_file"),
            ),
        ):
            limit, usage = _words(folder / limit_file), _words(folder / usage_file)
            if limit and usage and limit[0] != "max" and int(limit[0]) < _UNLIMITED:
                cache = sum(
                    int(words[1]) for words in _lines(folder / "memory.stat") if words[0] in caches
                )
                free = min(free, int(limit[0]) - int(usage[0]) + cache)
    if (left := _address_space_left()) is not None:
        free = min(free, left)
    if free == _UNLIMITED:  # neither Linux' files nor a limit: all of the machine's memory
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(0, free)


def seconds_since_start() -> float:
    """Seconds since this process was started (elsewhere than on Linux its processor time)."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        ticks = int(stat.rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError, AttributeError):
        return time.process_time()


def restart_peak_memory() -> None:
    """Let `peak_memory` count from now on (where the system cannot, it counts from the start)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Most bytes of memory this process has had resident since `restart_peak_memory`."""
    for words in _lines(Path("/proc/self/status")):
        if words[0] == "VmHWM:":
            return int(words[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _address_space_left() -> int | None:
    """Bytes that this process may still map; ``None`` without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    pages = int((_words(Path("/proc/self/statm")) or ["0"])[0])
    return limit - pages * os.sysconf("SC_PAGE_SIZE")


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, innermost first.

    Inside a container the path in ``/proc/self/cgroup`` may be the host's, which is not mounted
    there; then the mounted root is the container's own group.
    """
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = " ".join(line).split(":", 2)
        if controllers == "":
            base = mount
        elif controller in controllers.split(","):
            base = next(
                (mount / name for name in (controllers, controller) if (mount / name).is_dir()),
                mount,
            )
        else:
            continue
        folder = base / path.lstrip("/")
        while folder != base and base in folder.parents:
            if folder.is_dir():
                yield folder
            folder = folder.parent
        yield base


def _lines(path: Path) -> list[list[str]]:
    """The words of each line that has any; no lines where the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [words for line in text.splitlines() if (words := line.split())]


def _words(path: Path) -> list[str]:
    """The words of a file of one line."""
    lines = _lines(path)
    return lines[0] if lines else []
