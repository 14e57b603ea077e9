"""Threads and memory from made-up control groups."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from inference.machine import free_memory, peak_memory, restart_peak_memory, usable_threads

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 16),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "10000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 16),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": ""}, 16),
        # The tightest group around this one counts, not its own alone.
        (
            {
                "proc/self/cgroup": "0::/slice/job",
                "sys/fs/cgroup/slice/job/cpu.max": "800000 100000",
                "sys/fs/cgroup/slice/cpu.max": "300000 100000",
                "sys/fs/cgroup/cpu.max": "max 100000",
            },
            3,
        ),
        # Version 1; the second one with the host's path, which a container does not see.
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n3:memory:/job",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/docker/1234\n0::/docker/1234",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            5,
        ),
    ],
)
def test_threads_follow_the_quota(tmp_path: Path, files: dict[str, str], threads: int) -> None:
    assert usable_threads(write(tmp_path, files)) == threads


def test_threads_follow_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7}, raising=False)
    quota = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "800000 100000"}
    assert usable_threads(write(tmp_path, quota)) == 2


MEMINFO = f"MemTotal: {32 * GIB // 1024} kB\nMemAvailable: {20 * GIB // 1024} kB"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/meminfo": MEMINFO}, 20 * GIB),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.max": str(8 * GIB),
                "sys/fs/cgroup/memory.current": str(3 * GIB),
                "sys/fs/cgroup/memory.stat": f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}",
            },
            7 * GIB,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/",
                "sys/fs/cgroup/memory.max": "max",
                "sys/fs/cgroup/memory.current": str(3 * GIB),
            },
            20 * GIB,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "7:memory:/docker/1234",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(4 * GIB),
                "sys/fs/cgroup/memory/memory.usage_in_bytes": str(3 * GIB),
                "sys/fs/cgroup/memory/memory.stat": (
                    f"total_inactive_file {GIB // 2}\ntotal_active_file {GIB // 4}"
                ),
            },
            4 * GIB - 3 * GIB + GIB // 2 + GIB // 4,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "7:memory:/",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": str(3 * GIB),
            },
            20 * GIB,
        ),
    ],
)
def test_memory_follows_the_limit(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert free_memory(write(tmp_path, files)) == free


def test_memory_follows_the_process_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As clusters set it: ``ulimit -v``."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + 512 * 2**20
    monkeypatch.setattr("inference.machine.resource.getrlimit", lambda kind: (limit, limit))
    assert 400 * 2**20 < free_memory() < 520 * 2**20


def test_here_there_is_some_of_both() -> None:
    assert usable_threads() >= 1
    assert free_memory() > 2**20


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the system cannot restart the peak"
)
def test_peak_memory_sees_an_allocation() -> None:
    restart_peak_memory()
    before = peak_memory()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_memory() > before + 32 * 2**20
