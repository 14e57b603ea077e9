"""Cross-validation: nothing learns from what its fold holds out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from small_dataset import add, configuration, dataset, liver_and_spleen, stored, write

from training.__main__ import main
from training.data.folds import fold_of
from training.data.tissues import UNKNOWN

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(max_examples=30, deadline=None)
@given(
    names=st.sets(st.text("abc_019", min_size=1, max_size=6), max_size=30),
    folds=st.integers(1, 7),
    seed=st.integers(0, 5),
)
def test_folds_divide_the_cases(names: set[str], folds: int, seed: int) -> None:
    parts = [fold_of(names, fold, folds, seed) for fold in range(folds)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == [fold_of(sorted(names)[::-1], fold, folds, seed) for fold in range(folds)]


def test_a_fold_is_scored_on_and_not_trained_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = dataset(tmp_path / "data")
    for number in range(5):
        add(data, f"P{number}", *liver_and_spleen())
    arguments = ["--config", str(configuration(tmp_path, folds=2)), "--data", str(data)]
    arguments += ["--work", str(tmp_path / "work"), "--workers", "1"]
    assert main(["prepare", *arguments]) == 0
    scored = {}
    for fold in ("0", "1"):
        assert main(["train", *arguments, "--fold", fold]) == 0
        rows = (tmp_path / "work" / f"run_fold{fold}" / "scores.csv").read_text().splitlines()[1:]
        scored[fold] = {row.split(",")[1] for row in rows}
        assert f"training on {5 - len(scored[fold])} labelled" in capfd.readouterr().out
    assert scored["0"] | scored["1"] == {f"P{number}" for number in range(5)}
    assert not scored["0"] & scored["1"]
    assert main(["train", *arguments, "--fold", "2"]) == 2
    assert "there is no fold 2: folds are 0 to 1" in capfd.readouterr().err


def test_no_fold_learns_from_the_pseudo_labels_of_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hu, labels = liver_and_spleen()
    data, work = dataset(tmp_path / "data"), tmp_path / "work"
    for number in range(4):
        add(data, f"P{number}", hu, labels)
    add(data, "bare", hu, None)
    shares = {"labelled": 0.5, "pseudo": 0.5}
    config = str(configuration(tmp_path, folds=2, shares=shares))
    arguments = ["--config", config, "--data", str(data), "--work", str(work), "--workers", "1"]

    def done(step: str, *options: str) -> str:
        """What a step says."""
        code = main([step, *arguments, *options])
        out, error = capfd.readouterr()
        assert code == (2 if "training: " in error else 0)
        return str(out + error)

    done("prepare")
    assert "training on 2 labelled" in done("train", "--fold", "0")  # no pseudo-labels: as before
    done("pseudolabel", "--fold", "0")
    assert [path.name for path in work.glob("pseudo*")] == ["pseudolabels_fold0"]
    for name in ("pseudolabels", "pseudolabels_fold0"):  # as if they had been sure of the liver
        made = np.where(labels == 1, 1, UNKNOWN if name == "pseudolabels" else 0)
        write(work / name / "bare.nii.gz", made.astype(np.uint8))
        (work / name / "annotated.json").write_text('{"bare": ["liver"]}')

    pseudo = work / "prepared" / "pseudo" / "bare.npz"
    done("prepare", "--fold", "0")
    assert stored(pseudo, "labels") == [0, 1]
    assert "2 labelled, 1 pseudo" in done("train", "--fold", "0", "--run", "second")
    assert "run 'prepare --fold 1' first" in done("train", "--fold", "1")
    assert "4 labelled, 1 pseudo" in done("train")  # scored on neither fold
    done("prepare", "--fold", "1")
    assert not pseudo.exists()
    assert "training on 2 labelled\n" in done("train", "--fold", "1")
    done("prepare")
    assert stored(pseudo, "labels") == [1, UNKNOWN]
    assert "has pseudo-labels for no fold" in done("train", "--fold", "0", "--run", "third")
