"""Records after a power cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")


from training.config import Config
from training.loop import train as loop
from training.records.evaluate import Evaluated, evaluate
from training.records.read import read_rows
from training.records.write import Records

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "end", ["4", "4,", "4,0.5,0.1", "4,0.5,0.1,", "\0\0\0\0", "4,0.53,0.4,0.5,0.1,0.1", "4,0.5,x,0"]
)
def test_what_a_power_cut_left_of_a_record_is_passed_over(tmp_path: Path, end: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"iteration,loss,seconds_per_iteration,data_wait_share\n2,0.5,0.1,0.0\n{end}")
    assert [row["iteration"] for row in read_rows(path)] == ["2"]
    Records(tmp_path, 2).close()
    assert path.read_text().splitlines()[1:] == ["2,0.5,0.1,0.0"]


def test_an_evaluation_that_was_cut_short_is_done_again(
    prepared: Path, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the first of two held-out cases."""
    folder = tmp_path / "prepared" / "images"
    folder.mkdir(parents=True)
    for name in ("seen", "kept", "kept2"):
        source = prepared / "images" / ("seen.npz" if name == "seen" else "kept.npz")
        (folder / f"{name}.npz").write_bytes(source.read_bytes())
    config = replace(config, iterations=1, holdout=("kept", "kept2"))

    def power_cut(*arguments: Any) -> Iterator[Evaluated]:
        yield next(evaluate(*arguments))
        raise SystemError

    monkeypatch.setattr(loop, "evaluate", power_cut)
    with pytest.raises(SystemError):
        loop.train(config, folder.parent, tmp_path / "run")
    monkeypatch.undo()
    for _ in range(2):  # once more changes nothing
        loop.train(config, folder.parent, tmp_path / "run")
        rows = read_rows(tmp_path / "run" / "scores.csv")
        assert [(row["iteration"], row["case"]) for row in rows] == [("1", "kept"), ("1", "kept2")]
