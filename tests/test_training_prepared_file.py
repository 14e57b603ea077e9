"""Prepared files: mapped, of older versions, damaged."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")


from training.config import Config
from training.patches.samples import Samples
from training.preparation.prepare import prepare
from training.preparation.prepared_file import mapped, opened, write

pytestmark = pytest.mark.usefixtures("one_thread")


def test_damaged_prepared_files_are_named(prepared_once: tuple[Path, Path, Config]) -> None:
    _, out, config = prepared_once
    path = out / "images" / "P1.npz"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-30])
    with pytest.raises(ValueError, match=re.escape(f"{path}: damaged")):
        Samples(out, config)
    (out / "settings.json").write_text("")
    with pytest.raises(ValueError, match=r"settings\.json: cannot be read"):
        prepare([], out, config, 1)


def test_whatever_byte_is_wrong_a_prepared_file_is_whole_or_damaged(
    prepared_once: tuple[Path, Path, Config],
) -> None:
    _, out, _ = prepared_once
    path = out / "images" / "P1.npz"
    content = path.read_bytes()
    with opened(path) as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    damaged = 0
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), 150, replace=False):
        wrong = bytearray(content)
        wrong[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(wrong)
        try:
            with opened(path) as arrays:
                read = {name: arrays[name] for name in whole}
        except ValueError as error:
            damaged += str(error) == f"{path}: damaged; remove it and prepare again"
        else:
            assert all(np.array_equal(read[name], array) for name, array in whole.items())
    assert damaged > 135  # of 150: nobody reads a zip file's dates


def test_mapped_arrays_are_those_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "it.npz"
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "labels": rng.integers(0, 14, (5, 7, 9)).astype(np.uint8),
        "hu": rng.integers(-1000, 1000, (5, 7, 9)).astype(np.int16),
        "tissues": np.asfortranarray(rng.integers(0, 99, (3, 4, 5)).astype(np.uint8)),
        "annotated": np.array([1, 2], np.uint8),
    }
    write(path, arrays)
    found = mapped(path, ("hu", "labels", "tissues", "hull"))
    assert found.keys() == {"hu", "labels", "tissues"}
    for name, array in found.items():
        assert array.dtype == arrays[name].dtype
        assert np.array_equal(array, arrays[name])
    found["hu"][:] = 0  # in this process's memory alone
    with opened(path) as content:
        assert np.array_equal(content["hu"], arrays["hu"])


def test_what_an_older_version_compressed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "it.npz"
    hu = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    np.savez_compressed(path, hu=hu)
    assert np.array_equal(mapped(path, ("hu",))["hu"], hu)


def test_what_cannot_be_mapped_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it.npz"
    write(path, {"hu": np.zeros((4, 4, 4), np.int16)})
    with monkeypatch.context() as short:
        error = OSError(errno.ENOMEM, "Cannot allocate memory")
        short.setattr(np, "memmap", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(OSError, match=re.escape(f"Cannot allocate memory: '{path}'")):
            mapped(path, ("hu",))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=re.escape(f"{path}: damaged; remove it and prepare")):
        mapped(path, ("hu",))
    with pytest.raises(FileNotFoundError):
        mapped(tmp_path / "none.npz", ("hu",))
