"""predict.sh, with a stand-in for Python that prints what it is asked to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "predict.sh"
SHELL = shutil.which("dash") or shutil.which("sh")

pytestmark = pytest.mark.skipif(
    SHELL is None or any(Path(p).exists() for p in ("/workspace/inputs", "/inputs")),
    reason="no POSIX shell, or the default folders of a container exist here",
)


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    python = tmp_path / "stand-in"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho "HOME=$HOME" >&2\n')
    python.chmod(0o755)
    return python


def call(
    echo: Path, folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SHELL), str(SCRIPT), *arguments],
        cwd=folder,
        env={**os.environ, "ABDOSEG_PYTHON": str(echo), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def asked(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()
    assert words[0] == "-c" and "from inference.cli import program" in words[1]
    return words[2:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder"
    folder.mkdir()
    return folder


def test_default_folders(echo: Path, folder: Path) -> None:
    (folder / "inputs").mkdir()
    assert asked(call(echo, folder)) == ["-i", "./inputs", "-o", "./outputs"]


def test_no_folder_at_all(echo: Path, folder: Path) -> None:
    result = call(echo, folder)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "./inputs" in result.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["in", "out"], ["-i", "in", "-o", "out"]),
        (["in"], ["-i", "in", "-o", "./outputs"]),
        (["a b", "c d", "--report", "e f"], ["-i", "a b", "-o", "c d", "--report", "e f"]),
        (["in", "--quiet"], ["-i", "in", "-o", "./outputs", "--quiet"]),
        (["-i", "in", "-o", "out", "--quiet"], ["-i", "in", "-o", "out", "--quiet"]),
        (["--demo", "here", "--quiet"], ["--demo", "here", "--quiet"]),
        (["--demo"], ["--demo", "demo"]),
        (["--demo", "--preview"], ["--demo", "demo", "--preview"]),
    ],
)
def test_arguments(echo: Path, folder: Path, given: list[str], expected: list[str]) -> None:
    assert asked(call(echo, folder, *given)) == expected


def test_options_alone_use_the_default_folders(echo: Path, folder: Path) -> None:
    (folder / "inputs").mkdir()
    words = asked(call(echo, folder, "--threads", "2"))
    assert words == ["-i", "./inputs", "-o", "./outputs", "--threads", "2"]


def test_demo_takes_a_fresh_folder(echo: Path, folder: Path) -> None:
    (folder / "demo").mkdir()
    (folder / "demo-2").mkdir()
    assert asked(call(echo, folder, "--demo")) == ["--demo", "demo-3"]


def test_exit_code_is_handed_on(echo: Path, folder: Path) -> None:
    echo.write_text("#!/bin/sh\nexit 1\n")
    assert call(echo, folder, "in", "out").returncode == 1


def test_a_user_without_home_gets_one(echo: Path, folder: Path) -> None:
    result = call(echo, folder, "in", HOME="/nonexistent", TMPDIR=str(folder))
    assert f"HOME={folder}" in result.stderr


def test_code_comes_from_beside_the_script(folder: Path) -> None:
    """A folder "inference" where the script is called must not be taken for the program."""
    (folder / "inference").mkdir()
    (folder / "inference" / "__init__.py").write_text("raise SystemExit(77)")
    result = subprocess.run(
        [str(SHELL), str(SCRIPT), "no such inputs", "out"],
        cwd=folder,
        env={**os.environ, "ABDOSEG_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "no such inputs" in result.stderr


def test_a_link_to_the_script_is_the_script(folder: Path) -> None:
    (folder / "segment").symlink_to(os.path.relpath(SCRIPT, folder))
    (folder / "second").symlink_to("segment")
    result = subprocess.run(
        [str(SHELL), "./second", "no such inputs", "out"],
        cwd=folder,
        env={**os.environ, "ABDOSEG_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, "no such inputs" in result.stderr) == (2, True), result.stderr


def test_options_that_need_no_folder(echo: Path, folder: Path) -> None:
    assert asked(call(echo, folder, "--version")) == ["--version"]
    assert asked(call(echo, folder, "--quiet", "--demo", "x")) == ["--quiet", "--demo", "x"]
    assert asked(call(echo, folder, "-iin", "-oout")) == ["-iin", "-oout"]


def without_dependencies(
    tmp_path: Path, folder: Path, python: str, arguments: Sequence[str] = ("in", "out")
) -> subprocess.CompletedProcess[str]:
    """Call a copy of the script where the only Python is a stand-in that has no packages.

    Args:
        tmp_path: where the copy goes, into "checkout".
        folder: where it is called.
        python: what the stand-in does, asked for anything but its packages.
        arguments: the script's.
    """
    checkout, bin_ = tmp_path / "checkout", tmp_path / "bin"
    (checkout / "inference").mkdir(parents=True)
    shutil.copy(SCRIPT, checkout)
    (checkout / "inference" / "requirements.lock").write_text("")
    bin_.mkdir(exist_ok=True)
    for tool in ("dirname", "cmp", "rm", "mkdir", "sed", "cp"):
        (bin_ / tool).symlink_to(str(shutil.which(tool)))
    stand_in = bin_ / "python3"
    stand_in.write_text(f'#!/bin/sh\ncase "$2" in *metadata*) exit 1;; {python} esac\nexit 0\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": str(bin_)}
    environment.pop("ABDOSEG_PYTHON", None)
    return subprocess.run(
        [str(SHELL), str(checkout / "predict.sh"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("option", ["-h", "--help", "--version"])
def test_nothing_is_installed_to_print_the_help(tmp_path: Path, folder: Path, option: str) -> None:
    result = without_dependencies(tmp_path, folder, "", [option])
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "checkout" / ".venv").exists()


def test_an_environment_of_others_is_left_alone(tmp_path: Path, folder: Path) -> None:
    theirs = tmp_path / "checkout" / ".venv" / "bin" / "theirs"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("work of a week")
    result = without_dependencies(tmp_path, folder, "")
    assert result.returncode == 2
    assert ".venv is not mine" in result.stderr
    assert theirs.read_text() == "work of a week"


def test_an_environment_whose_python_has_gone_is_made_anew(tmp_path: Path, folder: Path) -> None:
    """As after an upgrade of the system: the folder says that it is complete."""
    venv = tmp_path / "checkout" / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to("/nowhere/python3.9")
    (venv / "installed.lock").write_text("")
    # The stand-in makes an environment whose Python prints what it is asked.
    making = """*) case "$1" in -m) mkdir -p "$3/bin"
        printf '#!/bin/sh\\necho "$@"\\n' >"$3/bin/python"; chmod +x "$3/bin/python";; esac;;"""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "chmod").symlink_to(str(shutil.which("chmod")))
    result = without_dependencies(tmp_path, folder, making)
    assert result.returncode == 0, result.stderr
    assert "installing the dependencies" in result.stderr
    assert result.stdout.splitlines()[-1].endswith(" -i in -o out")


def test_what_is_asked_for_is_what_pyproject_asks_for() -> None:
    project = (SCRIPT.parent / "pyproject.toml").read_text()
    named = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    asked_for = re.search(r'needed = """(.*?)"""', SCRIPT.read_text(), re.DOTALL)
    assert named and asked_for
    least = [word.split(",")[0] for word in re.findall(r'"(.*?)"', named[1])]
    assert asked_for[1].split() == least


@pytest.mark.parametrize(
    ("version", "taken"), [("2026.2.0", True), ("2026.10", True), ("2025.9.1", False)]
)
def test_packages_that_are_too_old_are_not_taken(tmp_path: Path, version: str, taken: bool) -> None:
    program = re.search(r"""complete\(\) \{\n.*?-c '(.*?)' 2>""", SCRIPT.read_text(), re.DOTALL)
    assert program
    for name, has in {"openvino": version, "tqdm": "4.66"}.items():
        metadata = tmp_path / f"{name}-{has}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {has}\n")
    result = subprocess.run(
        [sys.executable, "-c", program[1]],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (result.returncode == 0) == taken, result.stderr


def test_incomplete_python_is_not_taken(tmp_path: Path, folder: Path) -> None:
    """Without the dependencies .venv is made; here that fails, in plain words."""
    # Supported by its version, but nothing is installed and "-m venv" fails.
    result = without_dependencies(tmp_path, folder, "venv) exit 1;;")
    assert result.returncode == 2
    assert "installing the dependencies" in result.stderr
    assert "python3-venv" in result.stderr
