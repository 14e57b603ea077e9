"""Prepared files that are damaged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")


from training.config import Config
from training.patches.samples import Samples
from training.preparation.prepare import prepare
from training.preparation.prepared_file import opened

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
    assert damaged > 75  # about 110: nobody reads a zip file's dates, which differ by run
