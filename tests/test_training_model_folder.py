"""Where a model folder takes its place."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")


from inference.errors import UsageError
from training.export.model_folder import check_place, model_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("fails", ["aside", "in place"])
def test_a_model_folder_is_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A folder that cannot be moved away, or the new one that cannot take its place."""
    out = tmp_path / "model"
    out.mkdir()
    (out / "plan.json").write_text("before")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if (self == out) == (fails == "aside") and self.name != "before":
            raise OSError("busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="busy"), model_folder(out) as folder:
        (folder / "plan.json").write_text("after")
    assert (out / "plan.json").read_text() == "before"
    monkeypatch.undo()
    with model_folder(out) as folder:
        (folder / "plan.json").write_text("after")
    assert (out / "plan.json").read_text() == "after" and [*tmp_path.iterdir()] == [out]
    monkeypatch.setattr(Path, "is_mount", lambda path: path == out)
    with pytest.raises(UsageError, match="is a mount point"):
        check_place(out)
