"""Timing: what is measured of programs whose use is known, and what is said about them."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

nibabel = pytest.importorskip("nibabel", reason="needs the extra 'evaluation'")
psutil = pytest.importorskip("psutil", reason="needs the extra 'evaluation'")

from evaluation.cli import main  # noqa: E402
from evaluation.container import Container  # noqa: E402
from evaluation.option_types import size_in_bytes  # noqa: E402
from evaluation.package import _renamed, tag_for  # noqa: E402
from evaluation.timing import CaseTiming, time_cases  # noqa: E402
from evaluation.timing_cases import SLICES, SPACING_MM, make_timing_cases  # noqa: E402
from evaluation.usage import Usage, command_runner, run_command  # noqa: E402
from inference.errors import CaseError, UsageError  # noqa: E402

MIB = 2**20
# Copies the case under the name that its labels must have.
COPY = (
    "import pathlib, shutil, sys; i, o = map(pathlib.Path, sys.argv[1:3]); "
    "[shutil.copy(f, o / f.name.replace('_0000', '')) for f in i.iterdir()]; "
)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    folder = tmp_path / "cases"
    folder.mkdir()
    for name, slices in (("a_0000", 3), ("b_0000", 5)):
        image = nibabel.Nifti1Image(np.zeros((4, 4, slices), np.int16), np.diag([1, 1, 2.5, 1]))
        nibabel.save(image, folder / f"{name}.nii.gz")
    return folder


def timed(
    cases: Path, code: str, limit: float = 30, memory: int | None = None, give_up: float = 30
) -> list[CaseTiming]:
    template = f"{sys.executable} -c {shlex.quote(code)} {{inputs}} {{outputs}}"
    runner = command_runner(template, None, give_up)
    return time_cases(cases, cases.parent / "out", runner, limit, memory, "a test", quiet=True)


def test_every_case_alone_and_a_table(cases: Path) -> None:
    timings = timed(cases, COPY + "assert len(list(i.iterdir())) == 1; print('saw', *i.iterdir())")
    assert [(t.name, t.shape[2], t.verdict) for t in timings] == [
        ("a_0000.nii.gz", 3, "ok"),
        ("b_0000.nii.gz", 5, "ok"),
    ]
    out = cases.parent / "out"
    assert sorted(path.name for path in (out / "outputs").iterdir()) == ["a.nii.gz", "b.nii.gz"]
    assert "b_0000.nii.gz" in (out / "logs" / "b_0000.txt").read_text()
    with (out / "timing.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Slices"] for row in rows] == ["3", "5"]
    assert rows[0]["Spacing_mm"] == "1 x 1 x 2.5"
    assert "2 of 2 cases pass" in (out / "timing.md").read_text()
    assert (out / "timing.png").stat().st_size > 0
    assert sorted(path.name for path in out.iterdir()) == [
        "logs", "outputs", "timing.csv", "timing.md", "timing.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "options", "verdict"),
    [
        ("import sys; sys.exit(3)", {}, "failed: exit code 3"),
        ("pass", {}, "failed: no labels written"),
        ("import os; os.kill(os.getpid(), 9)", {}, "killed by signal 9"),
        (
            COPY + "[p.write_bytes(b'') for p in o.iterdir()]",
            {},
            "failed: X.nii.gz cannot be read (Empty file: 'OUT/X.nii.gz')",
        ),
        (
            COPY + "[p.rename(o / ('w' + p.name)) for p in o.iterdir()]",
            {},
            "failed: wrote wX.nii.gz, not X.nii.gz",
        ),
        (COPY + "import time; time.sleep(0.5)", {"limit": 0.4}, "too slow"),
        ("import time; time.sleep(60)", {"give_up": 0.5}, "stopped: took too long"),
        (
            COPY + f"x = b'1' * {100 * MIB}; import time; time.sleep(0.4)",
            {"memory": 80 * MIB},
            "too much memory",
        ),
    ],
)
def test_verdicts(cases: Path, code: str, options: dict[str, float], verdict: str) -> None:
    timings = timed(cases, code, **options)  # type: ignore[arg-type]
    found = [re.sub(r"'.*/", "'OUT/", timing.verdict) for timing in timings]
    assert found == [verdict.replace("X", name) for name in "ab"]


def test_what_an_earlier_run_left_is_not_taken_for_this_one_s(cases: Path) -> None:
    assert all(timing.passed for timing in timed(cases, COPY))
    assert not any(timing.passed for timing in timed(cases, "import sys; sys.exit(3)"))
    assert not list((cases.parent / "out" / "outputs").iterdir())


@pytest.mark.parametrize(
    ("text", "size"),
    [("8g", 8 << 30), ("1.5g", 3 << 29), ("8GiB", 8 << 30), ("512m", 512 << 20), ("64", 64),
     ("2 kb", 2048), ("1t", 1 << 40), ("g", 0), ("-1g", 0), ("1x", 0)],
)  # fmt: skip
def test_sizes_are_docker_s(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


def test_measures_the_whole_tree(tmp_path: Path) -> None:
    """Two children that hold memory at the same time and use processor time."""
    child = (
        "import time; x = bytearray(b'1') * (100 * 2**20); t = time.process_time()\n"
        "while time.process_time() - t < 0.4: pass\n"
        "time.sleep(0.6)"
    )
    code = (
        "import subprocess, sys\n"
        f"c = [subprocess.Popen([sys.executable, '-c', {child!r}]) for _ in range(2)]\n"
        "sys.exit(sum(p.wait() for p in c))"
    )
    usage = run_command([sys.executable, "-c", code], tmp_path / "log.txt")
    assert usage.exit_code == 0
    assert usage.peak_memory is not None and usage.cpu_seconds is not None
    assert 200 * MIB < usage.peak_memory < 350 * MIB
    assert 0.8 <= usage.cpu_seconds < 2.5
    assert usage.seconds > 1.0


def test_memory_of_the_parent_does_not_count(tmp_path: Path) -> None:
    ballast = bytearray(b"1") * (400 * MIB)
    usage = run_command([sys.executable, "-c", "import time; time.sleep(0.3)"], tmp_path / "log")
    assert usage.peak_memory is not None
    assert usage.peak_memory < 100 * MIB < len(ballast)


def test_stopping_ends_the_children_too(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    usage = run_command([sys.executable, "-c", code], tmp_path / "log.txt", give_up=0.4)
    assert usage.gave_up
    assert usage.seconds < 1.4
    assert subprocess.run(["sleep", "1.5"], check=False).returncode == 0
    assert not mark.exists()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["", "in a session of its own"])
def test_what_outlives_a_command_is_ended_with_it(tmp_path: Path, elsewhere: bool) -> None:
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(1); pathlib.Path({str(mark)!r}).touch()"
    start = f"[sys.executable, '-c', {child!r}], start_new_session={elsewhere}"
    code = f"import subprocess, sys; subprocess.Popen({start})"
    assert run_command([sys.executable, "-c", code], tmp_path / "log.txt").exit_code == 0
    time.sleep(1.5)
    assert not mark.exists()


def test_a_signal_ends_what_is_timed_and_leaves_nothing(cases: Path) -> None:
    out = cases.parent / "out"
    template = f"{sys.executable} -c 'import time; time.sleep(60)' {{inputs}} {{outputs}}"
    arguments = ["time", "--command", template, "--cases", str(cases), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "evaluation", *arguments, "--quiet"],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (running := list(out.glob("logs/*.txt"))) and process.poll() is None:
        time.sleep(0.05)
    assert running, "the first case has begun"
    time.sleep(0.5)
    process.terminate()
    assert process.communicate(timeout=20)[1] == "stopped\n"
    assert process.returncode == 143
    assert not list(out.glob(".run-*"))
    words = [word for p in psutil.process_iter(["cmdline"]) for word in p.info["cmdline"] or []]
    assert not [word for word in words if str(out) in word]


def test_a_case_that_cannot_be_read_costs_only_itself(cases: Path) -> None:
    (cases / "0.nii.gz").symlink_to("nowhere.nii.gz")
    verdicts = [timing.verdict for timing in timed(cases, COPY)]
    assert verdicts == ["failed: cannot be read (No such file or directory)", "ok", "ok"]


def test_cases_whose_labels_would_replace_each_other_are_refused(cases: Path) -> None:
    shutil.copy(cases / "b_0000.nii.gz", cases / "b.nii.gz")
    with pytest.raises(UsageError, match=r"b_0000\.nii\.gz: its labels .* of b\.nii\.gz"):
        timed(cases, COPY)
    assert not (cases.parent / "out").exists()


def test_a_ct_of_four_axes_may_have_labels_of_three(cases: Path) -> None:
    for path in cases.iterdir():
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine), path)
    code = COPY + (
        "import nibabel as n; "
        "[n.save(n.Nifti1Image(n.load(p).get_fdata()[..., 0], None), p) for p in o.iterdir()]"
    )
    assert [timing.verdict for timing in timed(cases, code)] == ["ok", "ok"]


def test_dollars_in_a_command_are_no_formula(cases: Path) -> None:
    assert timed(cases, COPY + "'$a_$ $^'")[0].passed
    assert (cases.parent / "out" / "timing.png").stat().st_size > 0


def test_a_full_disk_leaves_no_timing_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = sitk.WriteImage

    def cut(image: sitk.Image, path: str, *rest: Any) -> None:
        real(image, path, *rest)
        Path(path).write_bytes(Path(path).read_bytes()[:-100])  # ITK says nothing of it

    monkeypatch.setattr(sitk, "WriteImage", cut)
    arguments = ["make-timing-cases", "--slices", "55", "--plane", "16", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not list((tmp_path / "o").iterdir())


def test_wrong_commands(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--cases", str(cases), "--out", str(cases.parent / "out"), "--quiet"]
    assert main(["time", "--command", "true {inputs}", *common]) == 2
    assert "{outputs} must be in it" in capsys.readouterr().err
    command = ["time", "--command", "true {inputs} {outputs}", *common]
    assert main([*command, "--docker-args", "--network none"]) == 2
    assert "--docker-args needs --image" in capsys.readouterr().err
    assert main([*command, "--cpus", "1.5"]) == 2
    assert "a whole number" in capsys.readouterr().err
    assert main(["time", "--command", "no-such-program {inputs} {outputs}", *common]) == 2
    assert "no-such-program: cannot be run" in capsys.readouterr().err
    empty = cases.parent / "empty"
    empty.mkdir()
    common[1] = str(empty)
    assert main(["time", "--command", "true {inputs} {outputs}", *common]) == 2
    assert "no .nii.gz or .nii file to time" in capsys.readouterr().err


def test_the_command(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From words to table and exit code, with a program that writes labels."""
    template = f"{sys.executable} -c {shlex.quote(COPY)} {{inputs}} {{outputs}}"
    out = cases.parent / "out"
    arguments = ["time", "--command", template, "--cases", str(cases), "--out", str(out)]
    assert main(arguments) == 0
    assert "2 of 2 cases pass (60 s each)" in capsys.readouterr().out
    assert sorted(path.name for path in (out / "outputs").iterdir()) == ["a.nii.gz", "b.nii.gz"]
    assert main([*arguments, "--time-limit", "0.001", "--quiet"]) == 1
    assert capsys.readouterr().out == ""
    with (out / "timing.csv").open(newline="") as file:
        assert [row["Verdict"] for row in csv.DictReader(file)] == ["too slow", "too slow"]


def test_without_docker_that_is_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="docker cannot be run"):
        Container("team:latest")(tmp_path, tmp_path, tmp_path / "log.txt")


def test_container_is_called_as_the_organisers_do(tmp_path: Path) -> None:
    """Their command, word for word, but for --rm (see the module)."""
    theirs = shlex.split(
        f"docker container run -m 8G --name team --rm -v {tmp_path}/inputs:/workspace/inputs/ "
        f'-v {tmp_path}/outputs:/workspace/outputs/ team:latest /bin/bash -c "sh predict.sh"'
    )
    container = Container("team:latest", "8G")
    command = container.command("team", tmp_path / "inputs", tmp_path / "outputs")
    assert command == [word for word in theirs if word != "--rm"]
    limited = Container("team:latest", cpus=2, arguments=["--network", "none"])
    command = limited.command("team", tmp_path, tmp_path)
    assert command[command.index("--cpus") + 1] == "2"
    assert command.index("--network") < command.index("team:latest")


def test_models_of_an_image_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(container: Container, inputs: Path, outputs: Path, log: Path) -> Usage:
        name = next(word for word in container.arguments if word.startswith("ABDOSEG_MODEL="))
        assert list(container.arguments[:2]) == ["--network", "none"]
        for case in inputs.iterdir():
            shutil.copy(case, outputs / case.name.replace("_0000", ""))
        return Usage(2.5 if name.endswith("=fast") else 70.0, 0, 3 * 2**20, 1.25)

    monkeypatch.setattr("evaluation.container.image_of", lambda name: {})
    monkeypatch.setattr(Container, "__call__", run)
    make_timing_cases(tmp_path / "cases", (55, 124), plane=16, quiet=True)
    arguments = ["time", "--cases", str(tmp_path / "cases"), "--out", str(tmp_path / "out")]
    arguments += ["--model", "fast", "--model", "slow"]
    assert main([*arguments, "--command", "sh {inputs} {outputs}"]) == 2
    assert "--model needs --image" in capsys.readouterr().err
    assert main([*arguments, "--image", "it:latest", "--docker-args=--network none"]) == 1
    table = capsys.readouterr().out
    assert "it:latest, measured on" in table and "slow: verdict" in table
    with (tmp_path / "out/timing.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1][:2] == ["timing_055_0000.nii.gz", "16 x 16 x 55"]
    assert rows[1][2:] == ["2.50", "3", "1.25", "ok", "70.00", "3", "1.25", "too slow"]
    assert len(rows) == 3
    assert (tmp_path / "out/slow/outputs/timing_055.nii.gz").is_file()
    assert (tmp_path / "out/fast/timing.png").is_file()


def test_timing_cases(tmp_path: Path) -> None:
    assert SLICES == (55, 124, 152, 218, 299, 316, 457, 597)
    paths = make_timing_cases(tmp_path, (55, 124), plane=32, quiet=True)
    assert [path.name for path in paths] == ["timing_055_0000.nii.gz", "timing_124_0000.nii.gz"]
    assert sorted(tmp_path.iterdir()) == paths
    for path, slices in zip(paths, (55, 124), strict=True):
        image = nibabel.load(path)
        assert image.shape == (32, 32, slices)
        assert image.get_data_dtype() == np.int16
        z, y, x = SPACING_MM[slices]
        assert image.header.get_zooms() == pytest.approx((16 * x, 16 * y, z))
        values = np.asanyarray(image.dataobj)
        assert values.min() < -900  # air around the patient
        assert values.max() > 200  # bone, contrast
        assert len(np.unique(values)) > 500  # noise: nothing compresses better than a patient
    again = make_timing_cases(tmp_path / "again", (55,), plane=32, quiet=True)[0]
    assert np.array_equal(nibabel.load(again).dataobj, nibabel.load(paths[0]).dataobj)
    assert main(["make-timing-cases", "--out", str(tmp_path), "--slices", "56"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["package", "--case", "{long}", "--out", "{tmp}/a.tar.gz"], "no such file"),
        (["package", "--case", "{tmp}/slice.dcm", "--out", "{tmp}/a.tar.gz"], "not a CT by its"),
        (["package", "--out", "{long}/a.tar.gz"], "File name too long"),
        (["benchmark", "--case", "{long}", "--out", "{tmp}/b"], "no such file"),
        (
            ["compare", "--first", "{long}", "--second", "{tmp}", "--out", "{tmp}/c"],
            "no such folder",
        ),
    ],
)
def test_impossible_paths_are_one_line(
    words: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slice.dcm").touch()
    names = {"tmp": tmp_path, "long": tmp_path / ("a" * 300)}
    words = [word.format(**names) for word in words]
    if words[0] == "package":
        words += ["--image", "none"]
    assert main(words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}") and said in line


def test_names_of_packages() -> None:
    assert tag_for(Path("x/Team_A.tar.gz")) == "team_a:latest"
    for name in ("team.tar", "a b.tar.gz", ".tar.gz", "-x.tar.gz", "team.v2.tar.gz"):
        with pytest.raises(UsageError, match="name"):
            tag_for(Path(name))
    manifest = [{"Config": "c", "RepoTags": ["team:latest"], "Layers": ["l"]}]
    assert _renamed(manifest, "t:u") == [{"Config": "c", "RepoTags": ["t:u"], "Layers": ["l"]}]
    index = {"manifests": [{"digest": "d", "annotations": {"keep": "me"}}]}
    (entry,) = _renamed(index, "t:u")["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "docker.io/library/t:u"
    assert entry["annotations"]["keep"] == "me"


PREDICT = """
cd /workspace/inputs || exit 9
python3 -c "
import os, time
x = bytearray(b'1') * (int(os.environ.get('EAT', '100')) * 2**20)
while time.process_time() < 0.5: pass
time.sleep(0.2)"  || exit 4
for f in *; do cp "$f" "/workspace/outputs/$(echo "$f" | sed s/_0000//)"; done
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stand-in for a submission, made from an image that must be there already."""
    base = "python:3.11-slim"
    if shutil.which("docker") is None:
        pytest.skip("Docker is not installed: it is what is timed")
    if subprocess.run(["docker", "image", "inspect", base], capture_output=True).returncode:
        pytest.skip(f"no Docker engine, or no image {base}: tests download none")
    folder = tmp_path_factory.mktemp("image")
    (folder / "predict.sh").write_text(PREDICT)
    (folder / "Dockerfile").write_text(f"FROM {base}\nWORKDIR /workspace\nCOPY predict.sh .\n")
    name = "abdoseg-evaluation-test:latest"
    subprocess.run(
        ["docker", "build", "-q", "--network=none", "-t", name, folder],
        check=True, capture_output=True,
    )  # fmt: skip
    yield name
    subprocess.run(["docker", "image", "rm", name], capture_output=True, check=True)


NO_NETWORK = ("--network", "none")


@pytest.mark.container
def test_container(image: str, cases: Path) -> None:
    def timing(memory: str, **environment: str) -> CaseTiming:
        variables = [word for k, v in environment.items() for word in ("-e", f"{k}={v}")]
        runner = Container(image, memory, arguments=[*NO_NETWORK, *variables], give_up=60)
        return time_cases(cases, cases.parent / "out", runner, title="a test", quiet=True)[1]

    good = timing("8g")
    assert good.verdict == "ok"
    assert (cases.parent / "out" / "outputs" / "b.nii.gz").is_file()
    usage = good.usage
    assert usage is not None and usage.peak_memory is not None and usage.cpu_seconds is not None
    assert 100 * MIB < usage.peak_memory < 160 * MIB
    assert 0.5 <= usage.cpu_seconds < 1.5
    assert usage.seconds > 0.7
    assert timing("64m").verdict == "out of memory"
    assert timing("8g", EAT="nonsense").verdict == "failed: exit code 4"
    listed = subprocess.run(["docker", "ps", "-a"], capture_output=True, text=True, check=True)
    assert "abdoseg-timing" not in listed.stdout  # nothing is left behind


@pytest.mark.container
def test_container_that_does_not_start(image: str, tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="unknown flag"):
        Container(image, arguments=["--no-such-flag"])(tmp_path, tmp_path, tmp_path / "log.txt")
    with pytest.raises(CaseError, match="did not start"):
        Container(image, arguments=["--network", "no-such"])(tmp_path, tmp_path, tmp_path / "log")


@pytest.mark.container
def test_package(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    archive = tmp_path / "Evaluation_Test.tar.gz"
    command = ["package", "--image", image, "--out", str(archive), "--quiet"]
    try:
        assert main([*command, "--docker-args", "--network none"]) == 0
        said = capsys.readouterr().out
        assert "image evaluation_test:latest" in said
        assert hashlib.sha256(archive.read_bytes()).hexdigest() in said
        before = archive.read_bytes()
        assert main([*command, "--docker-args", "--network none -e EAT=x"]) == 1
        assert "the loaded image failed on the case (exit code 4" in capsys.readouterr().err
        assert archive.read_bytes() == before, "what does not work does not replace what does"
    finally:
        subprocess.run(
            ["docker", "image", "rm", "evaluation_test:latest"], capture_output=True, check=False
        )
    names = subprocess.run(["docker", "images"], capture_output=True, text=True, check=True).stdout
    assert "abdoseg-check" not in names
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]
