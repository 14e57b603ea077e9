"""Scores against an implementation that shares nothing with ours: loops and all pairs."""

from __future__ import annotations

import csv
import gzip
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

nibabel = pytest.importorskip("nibabel", reason="needs the extra 'evaluation'")
surface_distance = pytest.importorskip("surface_distance", reason="needs the extra 'evaluation'")

from evaluation.cli import main  # noqa: E402
from evaluation.metrics import surface_dice  # noqa: E402
from evaluation.scoring import CaseScore, score_case, score_folders, score_labels  # noqa: E402
from evaluation.summary import summarise  # noqa: E402

NAMES = [
    "Liver", "RK", "Spleen", "Pancreas", "Aorta", "IVC", "RAG", "LAG", "Gallbladder",
    "Esophagus", "Stomach", "Duodenum", "LK",
]  # fmt: skip
TOLERANCES = [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3]
SLAB = {"Aorta", "IVC", "Esophagus"}
AREAS = surface_distance.lookup_tables.create_table_neighbour_code_to_surface_area


def corners(mask: np.ndarray, spacing: tuple[float, ...]) -> list[tuple[np.ndarray, float]]:
    """Every corner on the surface: its place in mm and its area, voxel by voxel."""
    table = AREAS(spacing)
    big = np.pad(mask.astype(int), 1)
    found = []
    for i in range(mask.shape[0] + 1):
        for j in range(mask.shape[1] + 1):
            for k in range(mask.shape[2] + 1):
                code = 0
                for bit, (a, b, c) in enumerate(np.ndindex(2, 2, 2)):
                    code |= int(big[i + a, j + b, k + c]) << (7 - bit)
                if code not in (0, 255):
                    place = np.array(
                        [float(n) * float(s) for n, s in zip((i, j, k), spacing, strict=True)]
                    )
                    found.append((place, float(table[code])))
    return found


def brute_force(
    truth: np.ndarray, guess: np.ndarray, spacing: tuple[float, ...]
) -> dict[str, float]:
    """The challenge's rules, as they are written."""
    row: dict[str, float] = {}
    for label, (name, tolerance) in enumerate(zip(NAMES, TOLERANCES, strict=True), start=1):
        a, b = truth == label, guess == label
        if not a.any() and not b.any():
            dsc, nsd = 1.0, 1.0
        elif not a.any() or not b.any():
            dsc, nsd = 0.0, 0.0
        else:
            if name in SLAB:
                slices = [k for k in range(truth.shape[2]) if a[:, :, k].any()]
                a, b = a[:, :, slices[0] : slices[-1]], b[:, :, slices[0] : slices[-1]]
            total = int(a.sum()) + int(b.sum())
            if total == 0:
                row[f"{name}_DSC"], row[f"{name}_NSD"] = 1.0, 1.0
                continue
            dsc, nsd = 2 * int((a & b).sum()) / total, 0.0
            if dsc >= 0.2:
                on_a, on_b = corners(a, spacing), corners(b, spacing)
                near = 0.0
                for own, others in ((on_a, on_b), (on_b, on_a)):
                    for place, area in own:
                        if min(math.dist(place, other) for other, _ in others) <= tolerance + 1e-9:
                            near += area
                nsd = near / (sum(area for _, area in on_a) + sum(area for _, area in on_b))
        row[f"{name}_DSC"], row[f"{name}_NSD"] = dsc, nsd
    return row


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that may touch the border, a noisy copy, single voxels and organs that are absent."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 10, 3))
    truth = np.zeros(shape, np.uint8)
    for label in rng.permutation(np.arange(1, 14))[: rng.integers(1, 8)]:
        low = [int(rng.integers(0, n)) for n in shape]
        size = rng.integers(1, 6, 3)
        truth[tuple(slice(a, a + s) for a, s in zip(low, size, strict=True))] = label
    guess = np.roll(truth, rng.integers(-1, 2, 3), (0, 1, 2))
    noise = rng.random(shape)
    guess[noise < 0.05] = 0
    guess[noise > 0.95] = rng.integers(1, 14)
    return truth, guess


def save(array: np.ndarray, spacing: tuple[float, ...], path: Path, shift: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[0, 3] = shift
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.75, 0.75, 5.0), (2.5, 0.8, 1.25)])
def test_scores_equal_brute_force(seed: int, spacing: tuple[float, float, float]) -> None:
    truth, guess = random_pair(seed)
    spacing32 = tuple(float(np.float32(s)) for s in spacing)
    expected = brute_force(truth, guess, spacing32)
    for (metric, label), value in score_labels(truth, guess, spacing32).items():
        assert value == pytest.approx(expected[f"{NAMES[label - 1]}_{metric}"], abs=5.1e-5)
        assert value == round(value, 4)


def test_csv_is_the_organisers_table(tmp_path: Path) -> None:
    """Columns, order, and every cell of the file, brute force against the command."""
    spacing = (0.8, 0.9, 3.0)
    expected = {}
    for seed in range(20, 26):
        truth, guess = random_pair(seed)
        save(truth, spacing, tmp_path / "r" / f"case_{seed}.nii.gz")
        save(guess, spacing, tmp_path / "p" / f"case_{seed}.nii.gz")
        row = brute_force(truth, guess, tuple(float(np.float32(s)) for s in spacing))
        expected[f"case_{seed}.nii.gz"] = row
    arguments = ["--reference", tmp_path / "r", "--prediction", tmp_path / "p"]
    command = ["score", *arguments, "--out", tmp_path / "o", "--workers", "2", "--quiet"]
    assert main([str(word) for word in command]) == 0

    header = (tmp_path / "o" / "scores.csv").read_text().splitlines()[0].split(",")
    assert header == ["Name"] + [f"{n}_DSC" for n in NAMES] + [f"{n}_NSD" for n in NAMES]
    rows = read(tmp_path / "o" / "scores.csv")
    assert [row["Name"] for row in rows] == sorted(expected)
    for cells in rows:
        for column in header[1:]:
            assert cells[column] == f"{expected[cells['Name']][column]:.4f}", (
                cells["Name"],
                column,
            )
    for name in ("cases.csv", "summary.csv", "summary.md", "worst.md", "boxplots.png"):
        assert (tmp_path / "o" / name).stat().st_size > 0
    assert len(list((tmp_path / "o" / "overlays").glob("*.png"))) == 5


def test_only_the_worst_cases_are_drawn(tmp_path: Path) -> None:
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[1:7, 1:7, 1:7] = 1
    for name, kept in (("a", 7), ("b", 2), ("c", 6), ("d", 4)):
        guess = truth.copy()
        guess[kept:] = 0
        save(truth, (1, 1, 1), tmp_path / "r" / f"{name}.nii.gz")
        save(guess, (1, 1, 1), tmp_path / "p" / f"{name}.nii.gz")
    folders = ["--reference", tmp_path / "r", "--prediction", tmp_path / "p", "--out", tmp_path]
    options = ["--worst", "2", "--organs", "liver", "--workers", "1", "--quiet"]
    assert main(["score", *map(str, folders), *options]) == 0
    pictures = sorted((tmp_path / "overlays").iterdir())
    assert [path.name for path in pictures] == ["b.png", "d.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    lines = (tmp_path / "worst.md").read_text().splitlines()
    assert [line.split()[1] for line in lines if "overlays/" in line] == ["b.nii.gz", "d.nii.gz"]


def test_a_ct_that_cannot_lie_under_a_picture_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one of another size; the picture is drawn without it, and the scores stand."""
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[1:7, 1:7, 1:7] = 1
    for folder in ("r", "p", "i"):
        for name in ("broken", "larger", "good"):
            volume = np.zeros((8, 8, 9), np.uint8) if (folder, name) == ("i", "larger") else truth
            save(volume, (1, 1, 1), tmp_path / folder / f"{name}.nii.gz")
    (tmp_path / "i" / "broken.nii.gz").write_bytes(b"no CT")
    folders = [f"--{name}={tmp_path / name[0]}" for name in ("reference", "prediction", "images")]
    options = ["--out", str(tmp_path / "o"), "--workers", "1", "--quiet"]
    assert main(["score", *folders, *options]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("note: no CT in the picture") for line in lines)
    assert {name for name in ("broken", "larger") for line in lines if f"i/{name}." in line} == {
        "broken", "larger",
    }  # fmt: skip
    assert len(list((tmp_path / "o" / "overlays").glob("*.png"))) == 3
    text = (tmp_path / "o" / "worst.md").read_text()
    assert all(line.removeprefix("note: ") in text for line in lines)


def test_a_ct_lies_under_the_labels_as_it_does_in_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is stored: with an axis reversed here, and a fourth one. One elsewhere is none."""
    drawn: list[np.ndarray] = []

    def imshow(axes: Any, image: np.ndarray, **look: Any) -> None:
        drawn.append(image)

    monkeypatch.setattr("matplotlib.axes.Axes.imshow", imshow)
    truth = np.zeros((9, 8, 7), np.uint8)
    truth[1:4, 1:7, 2:5] = 1
    save(truth, (1, 1, 2), tmp_path / "r" / "a.nii.gz")
    save(truth[..., None], (1, 1, 2), tmp_path / "p" / "a.nii.gz")
    ct = np.where(truth == 1, 100, -900).astype(np.int16)
    reversed_ = np.diag([-1.0, 1, 2, 1])
    reversed_[0, 3] = 8
    (tmp_path / "i").mkdir()
    folders = [f"--{name}={tmp_path / name[0]}" for name in ("reference", "prediction", "images")]
    options = ["--out", str(tmp_path / "o"), "--workers", "1", "--quiet"]
    image = nibabel.Nifti1Image(ct[::-1, ..., None], reversed_)
    nibabel.save(image, tmp_path / "i" / "a.nii.gz")
    assert main(["score", *folders, *options]) == 0
    assert "no CT" not in (tmp_path / "o" / "worst.md").read_text()
    for under, over in zip(drawn[::2], drawn[1::2], strict=True):
        if over[..., 3].any():  # where there are labels, and there alone, the CT is bright
            assert np.array_equal(under > 0, over[..., 3] > 0)
    assert len(drawn) == 18 and sum(over[..., 3].any() for over in drawn[1::2]) == 6

    reversed_[0, 3] += 30
    nibabel.save(nibabel.Nifti1Image(ct[::-1], reversed_), tmp_path / "i" / "a.nii.gz")
    assert main(["score", *folders, *options]) == 0
    assert "mm away from the labels" in (tmp_path / "o" / "worst.md").read_text()


def test_the_picture_is_of_the_file_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strict mode scores X.nii.gz for X.nii.gz, whatever else lies beside it."""
    drawn = []
    monkeypatch.setattr("evaluation.overlay.draw", lambda *given: drawn.append(given[2]))
    truth, _ = random_pair(2)
    for name in ("r/b.nii.gz", "p/b.nii.gz", "p/b.nii"):
        save(truth, (1, 1, 1), tmp_path / name)
    command = ["score", f"--reference={tmp_path / 'r'}", f"--prediction={tmp_path / 'p'}"]
    command += [f"--out={tmp_path / 'o'}", "--strict-challenge", "--workers", "1", "--quiet"]
    assert main(command) == 0
    assert drawn == [tmp_path / "p" / "b.nii.gz"]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0])] * 3),
    tolerance=st.sampled_from([2.0, 3.0, 5.0, 7.0]),
    density=st.floats(0.02, 0.9),
)
def test_surface_dice_equals_the_library(
    seed: int, spacing: tuple[float, float, float], tolerance: float, density: float
) -> None:
    """Distances that equal the tolerance are frequent on these grids, and must not flip.

    Shares that end on half of the fourth decimal are as well, so the sums must be the same.
    """
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, 3))
    a, b = rng.random(shape) < density, rng.random(shape) < density
    a.flat[0] = b.flat[-1] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        distances = surface_distance.compute_surface_distances(a, b, spacing)
    expected = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
    found = surface_dice(a, b, spacing, tolerance)
    assert found == pytest.approx(expected, abs=1e-12)
    assert np.round(found, 4) == np.round(expected, 4)


def test_special_cases() -> None:
    truth = np.zeros((12, 6, 6), np.uint8)
    guess = truth.copy()
    truth[:3, :3, :3] = 2  # only in the reference
    guess[3:6, :3, :3] = 3  # only in the prediction
    truth[6:9, :3, :3] = 4  # overlap below 0.2
    guess[8:11, 2:4, 2:4] = 4
    scores = score_labels(truth, guess, (1.0, 1.0, 1.0))
    assert scores["DSC", 1] == scores["NSD", 1] == 1  # both empty
    assert scores["DSC", 2] == scores["NSD", 2] == 0
    assert scores["DSC", 3] == scores["NSD", 3] == 0
    assert 0 < scores["DSC", 4] < 0.2
    assert scores["NSD", 4] == 0  # though every voxel lies within 5 mm


@pytest.mark.parametrize(("label", "slab"), [(5, True), (6, True), (10, True), (1, False)])
def test_slab_leaves_the_last_slice_out(label: int, slab: bool) -> None:
    """Tubes: what the prediction does above, below and on the last slice does not count."""
    truth = np.zeros((5, 5, 10), np.uint8)
    truth[1:4, 1:4, 3:7] = label
    guess = truth.copy()
    guess[1:4, 1:4, 0:3] = label  # below
    guess[1:4, 1:4, 7:] = label  # above
    guess[:, :, 6] = 0  # the last labelled slice
    scores = score_labels(truth, guess, (1.0, 1.0, 1.0))
    if slab:
        assert scores["DSC", label] == scores["NSD", label] == 1
    else:
        assert scores["DSC", label] == round(2 * 27 / (36 + 81), 4)
    guess[2, 2, 3] = 0  # the first one does count
    assert score_labels(truth, guess, (1.0, 1.0, 1.0))["DSC", label] < 1


def test_far_stray_voxel_costs_no_memory() -> None:
    """A voxel far off makes the box the whole volume: memory must follow the surface."""
    import tracemalloc

    truth = np.zeros((160, 160, 160), np.uint8)
    truth[:20, :20, :20] = 1
    guess = truth.copy()
    guess[-1, -1, -1] = 1
    tracemalloc.start()
    value = score_labels(truth, guess, (1.0, 1.0, 1.0))["NSD", 1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.999 < value < 1
    assert peak < 8 * truth.size  # a distance map alone is 8 bytes per voxel, and needs indices


@pytest.mark.parametrize("there", ["a.mha", "deeper/a.nii.gz"])
def test_a_prediction_that_is_not_read_is_named(
    tmp_path: Path, there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(np.ones((4, 4, 4), np.uint8), (1.0, 1.0, 1.0), tmp_path / "truth" / "a.nii.gz")
    path = tmp_path / "guess" / there
    path.parent.mkdir(parents=True)
    path.write_bytes(b"labels")
    folders = ["--reference", str(tmp_path / "truth"), "--prediction", str(tmp_path / "guess")]
    assert main(["score", *folders, "--out", str(tmp_path / "out"), "--quiet"]) == 1
    said = capsys.readouterr().err
    assert "a.nii.gz: prediction is missing" in said
    assert f"{path} is there, but only NIfTI files in the folder itself are read" in said


def test_missing_and_extra_predictions(tmp_path: Path) -> None:
    truth, guess = random_pair(1)
    for name in ("a", "b"):
        save(truth, (1, 1, 1), tmp_path / "r" / f"{name}.nii.gz")
    save(guess, (1, 1, 1), tmp_path / "p" / "a.nii.gz")
    save(guess, (1, 1, 1), tmp_path / "p" / "c.nii.gz")
    honest = score_folders(tmp_path / "r", tmp_path / "p", quiet=True)
    assert [(s.name, s.status) for s in honest] == [
        ("a.nii.gz", "scored"), ("b.nii.gz", "missing"), ("c.nii.gz", "extra"),
    ]  # fmt: skip
    assert set(honest[1].values.values()) == {0.0}
    assert not honest[2].values
    strict = score_folders(tmp_path / "r", tmp_path / "p", strict=True, quiet=True)
    assert strict[0].values == honest[0].values
    assert not strict[1].values
    assert strict[1].notes

    def overall(scores: list[CaseScore]) -> float:
        return next(
            line.mean for line in summarise(scores, range(1, 14)) if line.organ == "Overall"
        )

    assert overall(honest) == pytest.approx(overall(strict) / 2)


def test_a_case_that_is_there_twice_costs_no_other(tmp_path: Path) -> None:
    truth, guess = random_pair(1)
    for name in ("a", "b", "c"):
        save(truth, (1, 1, 1), tmp_path / "r" / f"{name}.nii.gz")
        save(guess, (1, 1, 1), tmp_path / "p" / f"{name}.nii.gz")
    save(truth, (1, 1, 1), tmp_path / "r" / "a.nii")
    save(guess, (1, 1, 1), tmp_path / "p" / "b.nii")
    scores = score_folders(tmp_path / "r", tmp_path / "p", quiet=True)
    assert [score.status for score in scores] == ["error", "error", "scored"]
    assert [score.name[0] for score in scores] == ["a", "b", "c"]
    assert scores[0].values == {}
    assert set(scores[1].values.values()) == {0.0}
    for score, folder in zip(scores, ("r", "p"), strict=False):
        (note,) = score.notes
        assert str(tmp_path / folder / score.name[0]) in note and "there twice" in note
    strict = score_folders(tmp_path / "r", tmp_path / "p", strict=True, quiet=True)
    assert [(score.name, score.status) for score in strict[1:]] == [
        ("b.nii.gz", "scored"), ("c.nii.gz", "scored"), ("b.nii", "extra"),
    ]  # fmt: skip
    assert strict[0].status == "error"
    command = ["score", "--reference", tmp_path / "r", "--prediction", tmp_path / "p"]
    command += ["--out", tmp_path / "out"]
    assert main([str(word) for word in command]) == 1
    assert (tmp_path / "out" / "worst.md").is_file()


def test_nothing_is_said_of_a_case_whose_reference_cannot_be_read(tmp_path: Path) -> None:
    """A missing prediction beside it is no organ missed: there is nothing to compare."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "a.nii.gz").write_bytes(b"no image")
    (tmp_path / "p").mkdir()
    (score,) = score_folders(tmp_path / "r", tmp_path / "p", quiet=True)
    assert (score.status, score.values) == ("error", {})
    assert "a.nii.gz" in score.notes[0]


def test_a_prediction_without_voxels_costs_its_own_case_alone(tmp_path: Path) -> None:
    truth, guess = random_pair(3)
    for name in ("a", "b"):
        save(truth, (1, 1, 1), tmp_path / "r" / f"{name}.nii.gz")
    save(guess[:0], (1, 1, 1), tmp_path / "p" / "a.nii.gz")
    save(guess, (1, 1, 1), tmp_path / "p" / "b.nii.gz")
    scores = score_folders(tmp_path / "r", tmp_path / "p", quiet=True)
    assert [s.status for s in scores] == ["error", "scored"]
    assert set(scores[0].values.values()) == {0.0}


def test_names_are_printed_whatever_the_terminal_can_show(tmp_path: Path) -> None:
    truth, _ = random_pair(4)
    save(truth, (1, 1, 1), tmp_path / "r" / "\u4e2d.nii.gz")
    (tmp_path / "p").mkdir()
    folders = ["--reference", str(tmp_path / "r"), "--prediction", str(tmp_path / "p")]
    done = subprocess.run(
        [sys.executable, "-m", "evaluation", "score", *folders, "--out", str(tmp_path / "\u4e2d")],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "\\u4e2d.nii.gz: prediction is missing" in done.stderr


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, _ = random_pair(2)
    save(truth, (1, 1, 1), tmp_path / "r" / "a.nii.gz")
    (tmp_path / "p").mkdir()
    common = ["--reference", str(tmp_path / "r"), "--out", str(tmp_path / "o"), "--quiet"]
    assert main(["score", *common, "--prediction", str(tmp_path / "p")]) == 1
    assert "a.nii.gz: prediction is missing" in capsys.readouterr().err
    assert main(["score", *common, "--prediction", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    strict = ["score", *common, "--prediction", str(tmp_path / "p"), "--strict-challenge"]
    assert main(strict) == 0
    assert "a.nii.gz: prediction is missing" in capsys.readouterr().err
    assert read(tmp_path / "o" / "scores.csv") == []


def test_the_organisers_open_the_file_of_the_same_name(tmp_path: Path) -> None:
    truth, _ = random_pair(2)
    for name in ("r/a.nii.gz", "p/a.nii", "r/b.nii.gz", "p/b.nii.gz", "p/b.nii"):
        save(truth, (1, 1, 1), tmp_path / name)
    states = {
        strict: [
            (score.name, score.status)
            for score in score_folders(tmp_path / "r", tmp_path / "p", strict=strict, quiet=True)
        ]
        for strict in (False, True)
    }
    assert states[False] == [("a.nii.gz", "scored"), ("b.nii.gz", "error")]
    assert states[True] == [
        ("a.nii.gz", "missing"), ("b.nii.gz", "scored"), ("a.nii", "extra"), ("b.nii", "extra"),
    ]  # fmt: skip


def test_an_axis_of_one_is_none_unless_strict(tmp_path: Path) -> None:
    truth, _ = random_pair(3)
    save(truth, (1, 2, 3), tmp_path / "r" / "a.nii.gz")
    save(truth[..., None], (1, 2, 3), tmp_path / "p" / "a.nii.gz")
    honest, strict = (
        score_folders(tmp_path / "r", tmp_path / "p", strict=strict, quiet=True)[0]
        for strict in (False, True)
    )
    assert honest.status == "scored" and set(honest.values.values()) == {1.0}
    assert strict.status == "error"


def test_no_box_plot_of_a_run_before(tmp_path: Path) -> None:
    truth, _ = random_pair(2)
    for name in ("r/a.nii.gz", "p/a.nii.gz"):
        save(truth, (1, 1, 1), tmp_path / name)
    command = ["score", "--reference", str(tmp_path / "r"), "--prediction", str(tmp_path / "p")]
    command += ["--out", str(tmp_path / "o"), "--quiet", "--strict-challenge"]
    plot = tmp_path / "o" / "boxplots.png"
    assert main(command) == 0 and plot.exists()
    (tmp_path / "p" / "a.nii.gz").unlink()
    assert main(command) == 0 and not plot.exists()


def test_two_folders_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The difference is that of their scores; what one of them lacks is said, and is an error."""
    for seed, name in enumerate(("a.nii.gz", "b.nii.gz")):
        truth, guess = random_pair(seed)
        save(truth, (1, 1, 1), tmp_path / "r" / name)
        save(guess, (1, 1, 1), tmp_path / "p" / name)
        save(truth, (1, 1, 1), tmp_path / "q" / name)
    common = [
        "compare",
        "--reference",
        str(tmp_path / "r"),
        "--out",
        str(tmp_path / "o"),
        "--quiet",
    ]
    common += ["--first", str(tmp_path / "p"), "--second", str(tmp_path / "q")]
    assert main(common) == 0
    scored = read(tmp_path / "o" / "scores_first.csv")
    liver = next(r for r in read(tmp_path / "o" / "comparison.csv") if r["Organ"] == "Liver")
    mean = np.mean([float(row["Liver_DSC"]) for row in scored])
    assert float(liver["Difference"]) == pytest.approx(1 - mean, abs=1e-4)
    capsys.readouterr()

    (tmp_path / "p" / "b.nii.gz").unlink()
    assert main(common) == 1
    assert "first: b.nii.gz: prediction is missing" in capsys.readouterr().err
    assert main([*common, "--strict-challenge"]) == 0
    assert "b.nii.gz: only in the second" in capsys.readouterr().err


def header_of(path: Path, **fields: Any) -> None:
    """Change fields of a NIfTI header, in the file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = np.frombuffer(content, nibabel.nifti1.header_dtype, 1)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim": [1, np.nan, 1, 2, 0, 0, 0, 0]},
        {"sform_code": 1, "srow_x": 0, "srow_y": 0, "srow_z": 0},
        {"sform_code": 1, "srow_x": np.nan},
    ],
)
@pytest.mark.parametrize("side", ["r", "p", "both"])
def test_headers_that_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], side: str
) -> None:
    """Nothing is known of a prediction whose reference says nothing; the other case is scored."""
    truth = np.zeros((6, 7, 8), np.uint8)
    truth[1:5, 1:5, 1:6] = 1
    for folder in ("r", "p"):
        for name in ("a", "b"):
            save(truth, (1, 1, 2), tmp_path / folder / f"{name}.nii.gz")
        if side in (folder, "both"):
            header_of(tmp_path / folder / "a.nii.gz", **fields)
    folders = ["--reference", tmp_path / "r", "--prediction", tmp_path / "p"]
    out = tmp_path / "o"
    assert main(["score", *map(str, folders), "--out", str(out), "--workers", "1", "--quiet"]) == 1
    rows = read(out / "scores.csv")
    assert [row["Name"] for row in rows] == (["a.nii.gz"] if side == "p" else []) + ["b.nii.gz"]
    assert side != "p" or rows[0]["Liver_DSC"] == "0.0000"
    assert rows[-1]["Liver_DSC"] == rows[-1]["Liver_NSD"] == "1.0000"
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{'p' if side == 'p' else 'r'}/a.nii.gz: its header" in line
    assert (out / "worst.md").is_file()


def test_odd_names_and_a_scale_cost_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = np.zeros((6, 7, 8), np.uint8)
    truth[1:5, 1:5, 1:6] = 1
    names = [b"a$1_$b.nii.gz", b"caf\xe9.nii.gz", "病人, 一.nii.gz".encode()]
    for folder in ("r", "p"):
        for name in names:
            path = tmp_path / folder / "x.nii.gz"
            scaled = nibabel.Nifti1Image(truth.astype(np.int16) * 10, np.eye(4))
            save(truth, (1, 1, 1), path)
            if folder == "p":
                nibabel.save(scaled, path)
                header_of(path, scl_slope=0.1, scl_inter=0)
            path.rename(path.with_name(os.fsdecode(name)))
    mine = tmp_path / "o" / "overlays" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    folders = ["--reference", tmp_path / "r", "--prediction", tmp_path / "p"]
    command = ["score", *map(str, folders), "--out", str(tmp_path / "o"), "--workers", "1"]
    for _ in range(2):
        assert main([*command, "--quiet"]) == 0
        assert capsys.readouterr().err == ""
        rows = read(tmp_path / "o" / "scores.csv")
        assert [row["Name"] for row in rows] == [
            "a$1_$b.nii.gz", "caf\\xe9.nii.gz", "病人, 一.nii.gz",
        ]  # fmt: skip
        assert {row["Liver_DSC"] for row in rows} == {"1.0000"}
        links = re.findall(r"\(overlays/(.*)\)", (tmp_path / "o" / "worst.md").read_text())
        assert len(links) == 3 and not any(set(link) & set(" ,") for link in links)
        assert all((mine.parent / unquote(link)).is_file() for link in links)
    assert mine.read_text() == "keep" and len(list(mine.parent.iterdir())) == 4


@pytest.mark.parametrize(
    ("before", "number", "code"),
    [("", signal.SIGTERM, 143), ("", signal.SIGHUP, 129), ("trap '' HUP; ", signal.SIGHUP, 0)],
)
def test_a_signal_ends_all_processes(
    tmp_path: Path, before: str, number: signal.Signals, code: int
) -> None:
    """But one that is ignored, as by nohup, stays so."""
    truth = np.random.default_rng(0).integers(0, 14, (40, 40, 40)).astype(np.uint8)
    for folder in ("r", "p"):
        save(truth, (1, 1, 1), tmp_path / folder / "0.nii.gz")
        for case in range(1, 400 if code else 3):  # far more than are scored until the signal
            (tmp_path / folder / f"{case}.nii.gz").hardlink_to(tmp_path / folder / "0.nii.gz")
    folders = ["--reference", tmp_path / "r", "--prediction", tmp_path / "p"]
    command = [sys.executable, "-m", "evaluation", "score", *map(str, folders)]
    command += ["--out", str(tmp_path / "o"), "--workers", "2", "--worst", "0", "--quiet"]
    process = subprocess.Popen(
        ["sh", "-c", before + "exec " + shlex.join(command)],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # if nohup runs the tests
    )
    while not (tmp_path / "o").is_dir() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == ("stopped\n" if code else "")
    assert process.returncode == code
    assert (tmp_path / "o" / "scores.csv").exists() == (code == 0)


def test_too_little_memory_costs_its_own_case_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(name: str, *arguments: Any) -> CaseScore:
        if name.startswith("large"):
            raise MemoryError
        return score_case(name, *arguments)

    monkeypatch.setattr("evaluation.scoring.score_case", score)
    for folder in ("r", "p"):
        for name in ("large", "small"):
            save(np.ones((3, 3, 3), np.uint8), (1, 1, 1), tmp_path / folder / f"{name}.nii.gz")
    large, small = score_folders(tmp_path / "r", tmp_path / "p", quiet=True)
    assert (large.status, small.status) == ("error", "scored")
    assert "ran out of memory" in large.notes[0]


def test_what_memory_cannot_hold_is_no_fault_of_the_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But its size is known before its voxels are read: a wrong one is a fault."""
    truth, _ = random_pair(2)
    for name in ("r/a.nii.gz", "p/a.nii.gz", "r/b.nii.gz"):
        save(truth, (1, 1, 1), tmp_path / name)
    save(truth[:-1], (1, 1, 1), tmp_path / "p/b.nii.gz")
    read_voxels = nibabel.arrayproxy.ArrayProxy.__array__

    def read(proxy: Any, *arguments: Any, **options: Any) -> np.ndarray:
        if "/p/" in str(proxy.file_like):
            raise MemoryError
        voxels: np.ndarray = read_voxels(proxy, *arguments, **options)
        return voxels

    monkeypatch.setattr("nibabel.arrayproxy.ArrayProxy.__array__", read)
    a, b = score_folders(tmp_path / "r", tmp_path / "p", workers=1, quiet=True)
    assert not a.values and "ran out of memory" in a.notes[0]
    assert set(b.values.values()) == {0.0} and "size" in b.notes[0]


RGB = np.dtype([(colour, np.uint8) for colour in "RGB"])


@pytest.mark.parametrize(
    ("spoil", "words", "scored_in_strict"),
    [
        (lambda t, p: save(t[:-1], (1, 1, 2), p), ["size", "x"], False),
        (lambda t, p: save(t, (1, 1, 2.5), p), ["spacing", "2.5", "2"], True),
        (lambda t, p: save(t, (1, 1, 2), p, shift=7), ["7 mm", "origin"], True),
        (lambda t, p: save(t + np.float32(0.5), (1, 1, 2), p), ["whole numbers"], True),
        (lambda t, p: save(t.astype(np.int16) - 300, (1, 1, 2), p), ["-300"], True),
        (lambda t, p: save(np.stack([t, t], -1), (1, 1, 2), p), ["3D"], False),
        (lambda t, p: save(t.astype(RGB), (1, 1, 2), p), ["not numbers"], False),
        (lambda t, p: save(t.astype(np.complex64), (1, 1, 2), p), ["not numbers"], False),
        (lambda t, p: p.write_text("not a volume"), ["cannot be read"], False),
        (lambda t, p: p.write_bytes(p.read_bytes()[:-40]), ["cannot be read"], False),
    ],
)
def test_spoilt_predictions(
    tmp_path: Path,
    spoil: Callable[[np.ndarray, Path], object],
    words: list[str],
    scored_in_strict: bool,
) -> None:
    truth = np.zeros((6, 7, 8), np.uint8)
    truth[1:5, 1:5, 1:6] = 1
    other, path = tmp_path / "p" / "b.nii.gz", tmp_path / "p" / "a.nii.gz"
    for target in (tmp_path / "r" / "a.nii.gz", tmp_path / "r" / "b.nii.gz", other, path):
        save(truth, (1, 1, 2), target)
    spoil(truth, path)
    spoilt, good = score_folders(tmp_path / "r", tmp_path / "p", quiet=True)
    assert spoilt.status == "error"
    assert set(spoilt.values.values()) == {0.0}
    assert str(path) in spoilt.notes[0]
    assert all(word in spoilt.notes[0] for word in words), spoilt.notes
    assert "\n" not in spoilt.notes[0]
    assert good.status == "scored"
    assert set(good.values.values()) == {1.0}
    strict, _ = score_folders(tmp_path / "r", tmp_path / "p", strict=True, quiet=True)
    assert bool(strict.values) == scored_in_strict


def test_a_prediction_that_fails_its_checksum_is_not_scored(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 3, (40, 40, 40)).astype(np.uint8)
    path = tmp_path / "p" / "a.nii.gz"
    for target in (tmp_path / "r" / "a.nii.gz", path):
        save(truth, (1, 1, 2), target)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # gzip's checksum, which lies behind all that nibabel asks for
    path.write_bytes(content)
    (spoilt,) = score_folders(tmp_path / "r", tmp_path / "p", quiet=True)
    assert spoilt.status == "error" and "cannot be read" in spoilt.notes[0]
    assert set(spoilt.values.values()) == {0.0}


def _dies(name: str, *arguments: Any) -> CaseScore:
    """Score a case; the process dies of the case that is too large for it."""
    if name.startswith("large"):
        os._exit(137)
    return score_case(name, *arguments)


def test_a_process_that_dies_costs_its_own_case_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a", "b", "large1", "large2", "y", "z")
    for name in names:
        truth, guess = random_pair(1)
        save(truth, (1, 1, 1), tmp_path / "r" / f"{name}.nii.gz")
        save(guess, (1, 1, 1), tmp_path / "p" / f"{name}.nii.gz")
    monkeypatch.setattr("evaluation.scoring.score_case", _dies)
    scores = score_folders(tmp_path / "r", tmp_path / "p", workers=2, quiet=True)
    assert [score.name.split(".")[0] for score in scores] == list(names)
    for score in scores:
        assert score.status == ("error" if score.name.startswith("large") else "scored")
        assert bool(score.values) == (score.status == "scored")
    assert "a process was killed or ran out of memory" in scores[2].notes[0]


def test_the_summary_says_what_its_means_leave_out(tmp_path: Path) -> None:
    """An unreadable reference says nothing about the prediction; a missing prediction does."""
    truth = np.ones((6, 6, 6), np.uint8)
    for name in ("good", "missing", "unknown"):
        save(truth, (1, 1, 1), tmp_path / "r" / f"{name}.nii.gz")
        save(truth, (1, 1, 1), tmp_path / "p" / f"{name}.nii.gz")
    (tmp_path / "p" / "missing.nii.gz").unlink()
    arguments = ["score", "--reference", tmp_path / "r", "--prediction", tmp_path / "p"]
    arguments += ["--out", tmp_path / "o", "--organs", "Liver", "--workers", "1", "--quiet"]

    def said() -> str:
        assert main([str(word) for word in arguments]) == 1
        (liver,) = {
            r["Mean"] for r in read(tmp_path / "o" / "summary.csv") if r["Organ"] == "Liver"
        }
        text = (tmp_path / "o" / "summary.md").read_text().split("\n\n")[0]
        return f"{liver}: {text}"

    assert said().startswith("0.6667") and said().endswith("count as zero.")
    (tmp_path / "r" / "unknown.nii.gz").write_text("not a volume")
    assert said().startswith("0.5000: 1 cases scored, 1 predictions missing, 1 pairs that cannot")
    assert said().endswith("count as zero; pairs left out, since nothing is known of them: 1.")


def test_summary_numbers(tmp_path: Path) -> None:
    """Mean, sample standard deviation, median, quartiles, by the standard library."""
    import statistics

    for name, cut in (("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 0)):
        truth = np.zeros((6, 6, 6), np.uint8)
        truth[1:5, 1:5, 1:6] = 1
        save(truth, (1, 1, 1), tmp_path / "r" / f"{name}.nii.gz")
        truth[:, :, :cut] = 0
        save(truth, (1, 1, 1), tmp_path / "p" / f"{name}.nii.gz")
    scores = score_folders(tmp_path / "r", tmp_path / "p", quiet=True)
    values = [score.values["DSC", 1] for score in scores]
    line = next(line for line in summarise(scores, (1, 2)) if line.organ == "Liver")
    assert line.cases == 5
    assert line.mean == pytest.approx(statistics.mean(values))
    assert line.sd == pytest.approx(statistics.stdev(values))
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    assert [line.lower, line.median, line.upper] == pytest.approx(quartiles)
    absent = next(line for line in summarise(scores, (1, 2)) if line.organ == "RK")
    assert (absent.absent, absent.mean) == (5, 1.0)


def test_only_some_organs(tmp_path: Path) -> None:
    truth, guess = random_pair(3)
    save(truth, (1, 1, 1), tmp_path / "r" / "a.nii")
    save(guess, (1, 1, 1), tmp_path / "p" / "a.nii.gz")
    arguments = ["--reference", tmp_path / "r", "--prediction", tmp_path / "p", "--out", tmp_path]
    options = ["--organs", "lk,Liver", "--quiet", "--workers", "1"]
    assert main(["score", *map(str, arguments), *options]) == 0
    (row,) = read(tmp_path / "scores.csv")
    assert list(row) == ["Name", "Liver_DSC", "LK_DSC", "Liver_NSD", "LK_NSD"]
