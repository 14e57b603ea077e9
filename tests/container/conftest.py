"""Run the image ``abdoseg`` with a Docker engine. ``bash .ci/container`` builds it first."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import SimpleITK as sitk

from inference.phantom import make_phantom

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
REAL = {
    "tcga_coad": SHARED / "unlabelled" / "tcga_coad_AY-4070A_abdpel_5mm" / "ct.nii.gz",
    "totalseg": SHARED / "cases" / "totalseg_example_ct_3mm" / "ct.nii.gz",
}

# A container needs no network: what runs without one never sends anything.
ISOLATED = ("--network", "none")
HARDENED = (
    *ISOLATED, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--pids-limit", "256", "--memory", "8g",
    "--memory-swap", "8g", "--cpus", "2", "--user", "10001:10001",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.container)


@dataclass
class Folders:
    """Inputs and outputs for one run, and what was in the inputs before."""

    inputs: Path
    outputs: Path

    def add(self, name: str, source: Path | sitk.Image) -> None:
        if isinstance(source, Path):
            shutil.copy(source, self.inputs / name)
        else:
            sitk.WriteImage(source, str(self.inputs / name), True, 1)

    def fingerprint(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.inputs)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.inputs.rglob("*")
            if path.is_file()
        }

    def written(self) -> set[str]:
        return {str(path.relative_to(self.outputs)) for path in self.outputs.rglob("*")}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    inputs.mkdir()
    outputs.mkdir()
    outputs.chmod(0o777)  # as any user may be asked to write here
    return Folders(inputs, outputs)


@pytest.fixture(scope="session")
def phantom() -> sitk.Image:
    return make_phantom((80, 160, 160), (4.0, 2.5, 2.5), seed=11)[0]


def docker(*arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run docker; the weights of $ABDOSEG_TEST_WEIGHTS are used instead of the image's if set."""
    weights = os.environ.get("ABDOSEG_TEST_WEIGHTS")
    words = list(arguments)
    if weights and "run" in words[:2]:
        after = words.index("run") + 1
        words[after:after] = ["-v", f"{weights}:/weights:ro"]
    return subprocess.run(
        ["docker", *words], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture
def kept() -> Iterator[str]:
    """A name for a container that is looked at after it ended."""
    name = f"abdoseg-test-{uuid.uuid4().hex[:8]}"
    yield name
    docker("rm", "-f", name)
