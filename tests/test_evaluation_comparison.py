"""The paired comparison against textbook calculations."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

pytest.importorskip("nibabel", reason="needs the extra 'evaluation'")
pytest.importorskip("surface_distance", reason="needs the extra 'evaluation'")

from evaluation.challenge import columns
from evaluation.cli import main
from evaluation.compare_command import read_scores
from evaluation.comparison import Values, compare, interval
from inference.errors import UsageError
from inference.organs import ORGANS

Sides: TypeAlias = dict[str, Values]


def exact_signed_rank(delta: list[float]) -> float:
    """Two-sided p by going through all signs of the ranks."""
    ranks = np.argsort(np.argsort(np.abs(delta))) + 1
    observed = min(ranks[np.array(delta) > 0].sum(), ranks[np.array(delta) < 0].sum())
    sums = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s)
        for signs in itertools.product((0, 1), repeat=len(delta))
    ]
    return min(1.0, 2 * float(np.mean([s <= observed for s in sums])))


def sides(deltas: dict[int, list[float]]) -> tuple[Sides, Sides]:
    number = len(next(iter(deltas.values())))
    first: Sides = {
        f"{i}": {(m, v): 0.5 for m in ("DSC", "NSD") for v in deltas} for i in range(number)
    }
    second: Sides = {
        f"{i}": {(m, v): 0.5 + d[i] for m in ("DSC", "NSD") for v, d in deltas.items()}
        for i in range(number)
    }
    return first, second


def test_wilcoxon_and_holm() -> None:
    deltas = {
        1: [0.011, -0.002, 0.03, 0.04, 0.05, 0.06, 0.017, 0.08],
        2: [0.01, -0.02, 0.03, -0.04, 0.05, -0.06, 0.07, -0.08],
        3: [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08],
    }
    rows = [row for row in compare(*sides(deltas), (1, 2, 3)) if row.metric == "DSC"]
    p = [exact_signed_rank(deltas[label]) for label in (1, 2, 3)]
    assert [row.p for row in rows[:3]] == pytest.approx(p)
    assert p[2] < p[0] < p[1]
    holm = [max(3 * p[2], 2 * p[0]), max(3 * p[2], 2 * p[0], p[1]), 3 * p[2]]
    assert [row.p_holm for row in rows[:3]] == pytest.approx(holm)
    assert rows[0].mean == pytest.approx(np.mean(deltas[1]))
    assert (rows[0].better, rows[0].worse) == (7, 1)
    assert rows[3].organ == "Overall"
    assert rows[3].mean == pytest.approx(np.mean(list(deltas.values())))


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    """Coverage of 200 skewed samples; the share itself is random, by 1.7 points."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = interval(rng.exponential(1.0, 40))
        hits += low <= 1.0 <= high
    assert 0.87 <= hits / 200 <= 0.99


def test_no_difference_and_one_case() -> None:
    row = compare(*sides({1: [0.0, 0.0, 0.0]}), (1,))[0]
    assert (row.mean, row.low, row.high, row.p) == (0, 0, 0, 1)
    row = compare(*sides({1: [0.1]}), (1,))[0]
    assert row.mean == pytest.approx(0.1)
    assert np.isnan(row.low) and np.isnan(row.high)


def test_command_on_two_tables(tmp_path: Path) -> None:
    def write(name: str, rows: dict[str, float]) -> Path:
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns())
            for case, value in rows.items():
                writer.writerow([case, *[f"{value:.4f}"] * 26])
        return tmp_path / name

    first = write("one.csv", {"a": 0.8, "b": 0.7, "c": 0.6})
    second = write("two.csv", {"a": 0.9, "b": 0.75, "d": 0.6})
    out = tmp_path / "out"
    command = ["compare", "--first", first, "--second", second, "--out", out, "--quiet"]
    assert main([str(word) for word in command]) == 1  # c and d have no partner
    with (out / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 28
    assert {row["Difference"] for row in rows} == {"0.07500"}
    assert {row["Cases"] for row in rows} == {"2"}
    assert (out / "differences.png").stat().st_size > 0
    assert (
        main(["compare", "--first", str(first), "--second", str(tmp_path), "--out", str(out)]) == 2
    )
    (tmp_path / "bad.csv").write_text("Name,Liver_DSC\na,b\n")
    command = ["compare", "--first", first, "--second", tmp_path / "bad.csv", "--out", out]
    assert main([str(word) for word in command]) == 2


def test_tables_are_read_with_care(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    head = ",".join(columns()) + "\n"
    path.write_text("\ufeff" + head + "a" + ",0.5" * 26 + "\n", encoding="utf-8")  # Excel's mark
    assert set(read_scores(path, tuple(ORGANS))["a"].values()) == {0.5}
    path.write_text(head + ("a" + ",0.5" * 26 + "\n") * 2)
    with pytest.raises(UsageError, match="a case is there twice"):
        read_scores(path, tuple(ORGANS))
    # As spreadsheets leave it: columns without a name or a value, rows of nothing.
    path.write_text(head.strip() + ",,\n\n" + "a" + ",0.5" * 26 + ",,\n")
    assert set(read_scores(path, tuple(ORGANS))["a"].values()) == {0.5}
    for wrong in ("nan", "50"):
        path.write_text(head + "a" + f",{wrong}" * 26 + "\n")
        with pytest.raises(
            UsageError, match=f"row 2, Liver_DSC: '{wrong}' is no score from 0 to 1"
        ):
            read_scores(path, tuple(ORGANS))
    for text, said in (
        (head.replace(",", ";"), "are its cells separated by commas"),
        ("", "no column"),
        (head + "a,0.5\n", "row 2 has not 27 cells"),
        (head + "a" + ",0.5" * 27 + "\n", "row 2 has not 27 cells"),
        (head + "," * 26 + "\n", "row 2, Liver_DSC: '' is no score"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=said):
            read_scores(path, tuple(ORGANS))


def test_the_test_is_exact_where_some_cases_do_not_differ() -> None:
    deltas = [0.011, -0.002, 0.03, 0.04, 0.05, 0.06, 0.017, 0.08, 0.0]
    rows = compare(*sides({1: deltas}), (1,))
    assert rows[0].p == pytest.approx(exact_signed_rank(deltas[:-1]))


def test_small_p_values_are_not_rounded_to_nothing(tmp_path: Path) -> None:
    head = ",".join(columns()) + "\n"
    for name, value in (("a", 0.1), ("b", 0.5)):
        rows = [f"c{i}" + f",{value + i / 1000}" * 26 for i in range(30)]
        (tmp_path / f"{name}.csv").write_text(head + "\n".join(rows) + "\n")
    sides_ = ["--first", str(tmp_path / "a.csv"), "--second", str(tmp_path / "b.csv")]
    assert main(["compare", *sides_, "--out", str(tmp_path / "o"), "--quiet"]) == 0
    with (tmp_path / "o/comparison.csv").open(newline="") as file:
        p = [float(row["Wilcoxon_p"]) for row in csv.DictReader(file)]
    assert all(0 < value < 1e-5 for value in p)


def test_what_cannot_be_compared_is_said_before_anything_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").mkdir()
    arguments = ["compare", "--first", str(tmp_path / "p"), "--out", str(tmp_path / "o")]
    arguments += ["--second", str(tmp_path / "scors.csv")]
    assert main(arguments) == 2
    assert "p: to score a folder, --reference is needed" in capsys.readouterr().err
    assert main([*arguments, "--reference", str(tmp_path / "p")]) == 2
    assert "scors.csv: no such folder or table" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
