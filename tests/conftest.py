"""What tests share."""

from __future__ import annotations

import inference  # noqa: F401  # isort: skip  # before OpenVINO: it must not report its use

from collections.abc import Iterator
from pathlib import Path

import pytest
import SimpleITK as sitk
from tiny_model import make_ct, make_tiny_model

from inference.model import Model


@pytest.fixture
def ct() -> sitk.Image:
    return make_ct()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, to be read only."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Model:
    """A tiny model, loaded."""
    return Model.load(tiny_folder, threads=2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch in one thread: small arrays are fastest so, and sums have one order."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
