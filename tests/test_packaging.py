"""What is installed, and what an installed program must not do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def locked(*files: str) -> dict[str, str]:
    """Name to version of every requirement in lock files."""
    versions = {}
    for file in files:
        path = REPOSITORY / file
        if not path.is_file():
            pytest.skip(f"no {file} here (the image holds less than a checkout)")
        for line in path.read_text().splitlines():
            line = line.split("#")[0].split(";")[0].strip()
            if line and not line.startswith("-r"):
                name, version = line.split("==")
                assert re.fullmatch(r"[0-9][0-9a-z.]*", version), line
                assert name not in versions, f"{name} is locked twice"
                versions[name] = version
    return versions


def test_lock_files_are_exact_and_do_not_contradict() -> None:
    inference = locked("inference/requirements.lock")
    assert set(inference) == {
        "connected-components-3d",
        "isal",
        "numpy",
        "openvino",
        "pydicom",
        "simpleitk",
        "tqdm",
    }
    everything = locked("inference/requirements.lock", ".ci/test.lock", ".ci/requirements.lock")
    assert {"torch", "pytest", "scipy", "ruff", "mypy"} <= set(everything)


def test_lock_is_within_what_the_package_asks_for() -> None:
    from packaging.requirements import Requirement

    versions = locked("inference/requirements.lock")
    text = (REPOSITORY / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)
    assert block
    asked = [Requirement(word) for word in re.findall(r'"(.+?)"', block[1])]
    assert {r.name.lower() for r in asked} == set(versions)
    for requirement in asked:
        assert requirement.specifier.contains(versions[requirement.name.lower()])


def test_nothing_is_reported_over_the_network(tmp_path: Path) -> None:
    """OpenVINO imports openvino_telemetry and reports its use, if it can: it must not."""
    package = tmp_path / "openvino_telemetry"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('telemetry was imported')")
    code = "import inference.network.network, sys; print(sys.modules['openvino_telemetry'])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "None\n"), result.stderr


def test_inference_does_not_import_training_or_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, inference\n"
        "for module in pkgutil.walk_packages(inference.__path__, 'inference.'):\n"
        "    if module.name != 'inference.__main__':\n"
        "        importlib.import_module(module.name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}"
        " & {'torch', 'nncf', 'scipy', 'training', 'evaluation'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr
