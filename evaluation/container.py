r"""Runs an image on one folder as the organisers do, and reads what the container used.

The command is theirs::

    docker container run -m 8G --name NAME --rm -v IN:/workspace/inputs/ \
        -v OUT:/workspace/outputs/ IMAGE /bin/bash -c "sh predict.sh"

but for ``--rm``: an ended container must be asked why it ended before it is removed. Removing it
is timed too, since ``docker run --rm`` waits for that. While it runs, its control group is read
(version 1 or 2); where that cannot be seen, as with Docker in a virtual machine, ``docker stats``
is.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.challenge import MEMORY
from evaluation.usage import SAMPLING_SECONDS, Usage
from inference.errors import CaseError, UsageError

PREDICT = ("/bin/bash", "-c", "sh predict.sh")
"""What the organisers run in the container."""

_CGROUPS = Path("/sys/fs/cgroup")
_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def docker(*arguments: str) -> str:
    """Run a docker command and return what it prints.

    Raises:
        UsageError: docker is not installed, or the command failed; its own words are the reason.
    """
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(
            f"docker cannot be run ({error.strerror}); without it, time with --command"
        ) from None
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        reason = words[-1] if words else f"exit code {done.returncode}"
        raise UsageError(f"docker {' '.join(arguments[:2])}: {reason}")
    return done.stdout.strip()


def image_of(name: str) -> dict[str, Any]:
    """What ``docker image inspect`` says about an image.

    Raises:
        UsageError: no such image, or no Docker.
    """
    found: list[dict[str, Any]] = json.loads(docker("image", "inspect", name))
    return found[0]


@dataclass(frozen=True)
class Container:
    """How an image is run; an object of it is a `evaluation.usage.Runner`.

    Attributes:
        image: the image's name.
        memory: Docker's memory limit ("8g").
        cpus: Docker's CPU limit, ``None`` for all.
        arguments: more words for ``docker container run``, before the image.
        give_up: seconds after which the container is killed.
    """

    image: str
    memory: str = MEMORY
    cpus: float | None = None
    arguments: Sequence[str] = ()
    give_up: float | None = None

    def command(self, name: str, inputs: Path, outputs: Path) -> list[str]:
        """The whole command line for one run."""
        limits = ["-m", self.memory]
        if self.cpus is not None:
            limits += ["--cpus", f"{self.cpus:g}"]
        return [
            *("docker", "container", "run", *limits, "--name", name),
            *("-v", f"{inputs.resolve()}:/workspace/inputs/"),
            *("-v", f"{outputs.resolve()}:/workspace/outputs/"),
            *self.arguments,
            self.image,
            *PREDICT,
        ]

    def __call__(self, inputs: Path, outputs: Path, log: Path) -> Usage:
        """Run it once.

        Args:
            inputs: folder with the case.
            outputs: folder for the labels; a container's user must be able to write into it.
            log: file that gets what the container prints.

        Raises:
            UsageError: docker is not installed.
            CaseError: the container could not be started.
        """
        name = f"abdoseg-timing-{uuid.uuid4().hex[:12]}"
        watch = _Watch(name, self.give_up)
        try:
            with log.open("wb") as file:
                start = time.perf_counter()
                try:
                    process = subprocess.Popen(
                        self.command(name, inputs, outputs),
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                except OSError as error:
                    raise UsageError(f"docker cannot be run ({error.strerror})") from None
                watch.start()
                process.wait()
                ran = time.perf_counter() - start
            watch.stop()
            try:
                state = json.loads(docker("inspect", "--format", "{{json .State}}", name))
            except UsageError:
                raise CaseError(f"the container did not start: {_first_line(log)}") from None
            if state["Status"] == "created":
                raise CaseError(
                    f"the container did not start: {state['Error'] or _first_line(log)}"
                )
        finally:
            watch.stop()
            start = time.perf_counter()
            with suppress(OSError):  # no docker: said above
                subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=False)
            removed = time.perf_counter() - start
        return Usage(
            ran + removed,
            int(state["ExitCode"]),
            watch.peak or None,
            watch.cpu_seconds,
            out_of_memory=bool(state["OOMKilled"]) or watch.oom_kills > 0,
            gave_up=watch.killed,
        )


class _Watch(threading.Thread):
    """Reads a container's memory and processor time until told to stop."""

    def __init__(self, name: str, give_up: float | None) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.cpu_seconds: float | None = None
        self.oom_kills = 0
        self.killed = False
        self._name = name
        self._deadline = None if give_up is None else time.perf_counter() + give_up
        self._stopped = threading.Event()

    def run(self) -> None:
        group = None
        while group is None and not self._stopped.wait(SAMPLING_SECONDS):
            found = self._state()
            if found is not None:
                group = _Group.of(*found)
                if group is None:
                    self._follow_stats()
                    return
            elif self._is_late():  # it hangs before it has begun
                subprocess.run(["docker", "rm", "-f", self._name], capture_output=True, check=False)
        while group is not None and not self._stopped.wait(SAMPLING_SECONDS):
            self.peak = max(self.peak, group.memory())
            self.cpu_seconds = max(self.cpu_seconds or 0.0, group.cpu_seconds())
            self.oom_kills = max(self.oom_kills, group.oom_kills())
            self._kill_if_late()

    def stop(self) -> None:
        self._stopped.set()
        if self.is_alive():
            self.join()

    def _is_late(self) -> bool:
        """Whether the time is up; says so once."""
        if self._deadline is None or time.perf_counter() <= self._deadline:
            return False
        self._deadline = None
        self.killed = True
        return True

    def _kill_if_late(self) -> None:
        if self._is_late():
            subprocess.run(["docker", "kill", self._name], capture_output=True, check=False)

    def _state(self) -> tuple[str, int] | None:
        """Id and process number of the container, once it runs."""
        try:
            found = docker("inspect", "--format", "{{.Id}} {{.State.Pid}}", self._name).split()
        except UsageError:
            return None
        return (found[0], int(found[1])) if int(found[1]) else None

    def _follow_stats(self) -> None:
        """About one sample a second; processor time is the sum of its percentages."""
        # Its first sample is there at once, the next ones follow while the container runs.
        with subprocess.Popen(
            ["docker", "stats", "--no-trunc", "--format", "{{json .}}", self._name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as stats:
            closer = threading.Thread(target=self._end_with_the_container, args=(stats,))
            closer.start()
            before = time.perf_counter()
            for line in stats.stdout or ():
                if not (match := re.search(r"\{.*\}", line)):
                    continue
                sample = json.loads(match.group())
                now = time.perf_counter()
                self.peak = max(self.peak, _bytes(sample["MemUsage"].split("/")[0]))
                share = float(sample["CPUPerc"].rstrip("%").replace("--", "0")) / 100
                self.cpu_seconds = (self.cpu_seconds or 0.0) + share * (now - before)
                before = now
            closer.join()

    def _end_with_the_container(self, stats: subprocess.Popen[str]) -> None:
        while not self._stopped.wait(SAMPLING_SECONDS):
            self._kill_if_late()
        stats.kill()  # it does not always end when asked to


@dataclass(frozen=True)
class _Group:
    """The control group of a container, of version 1 or 2."""

    memory_folder: Path
    cpu_folder: Path
    version: int

    @staticmethod
    def of(container: str, pid: int) -> _Group | None:
        """The group of a process, where this machine shows it and it is the container's."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return None
        paths = {}
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if container in path:  # else: a process of ours that happens to have that number
                paths.update({name: path.lstrip("/") for name in controllers.split(",")})
        if {"memory", "cpuacct"} <= set(paths):
            group = _Group(
                _CGROUPS / "memory" / paths["memory"], _CGROUPS / "cpuacct" / paths["cpuacct"], 1
            )
        elif "" in paths:
            group = _Group(_CGROUPS / paths[""], _CGROUPS / paths[""], 2)
        else:
            return None
        return group if group.memory_folder.is_dir() and group.cpu_folder.is_dir() else None

    def memory(self) -> int:
        """Bytes in use now, without file cache that the kernel drops when it needs to."""
        usage, key = {
            1: ("memory.usage_in_bytes", "total_inactive_file"),
            2: ("memory.current", "inactive_file"),
        }[self.version]
        cache = self._value(self.memory_folder / "memory.stat", key)
        return max(0, self._value(self.memory_folder / usage) - cache)

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        if self.version == 1:
            return self._value(self.cpu_folder / "cpuacct.usage") / 1e9
        return self._value(self.cpu_folder / "cpu.stat", "usage_usec") / 1e6

    def oom_kills(self) -> int:
        """How many of its processes were killed for memory."""
        file = {1: "memory.oom_control", 2: "memory.events"}[self.version]
        return self._value(self.memory_folder / file, "oom_kill")

    @staticmethod
    def _value(path: Path, key: str | None = None) -> int:
        """A number of a file, 0 once the group has gone."""
        try:
            words = path.read_text().split()
            return int(words[0] if key is None else words[words.index(key) + 1])
        except (OSError, ValueError, IndexError):
            return 0


def _bytes(text: str) -> int:
    """``1.5GiB`` as docker prints it, in bytes."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]+)\s*", text)
    return int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0


def _first_line(log: Path) -> str:
    """Docker's reason; what follows it is a hint at its help."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in lines if line.strip()), "no reason was given")
