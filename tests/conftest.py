"""What tests share."""

from __future__ import annotations

import inference  # noqa: F401  # isort: skip  # before OpenVINO: it must not report its use

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from desk import Desk
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
def desk(tmp_path: Path, tiny_folder: Path) -> Desk:
    """The command on a tiny model, with an empty folder for CTs."""
    return Desk(tmp_path, tiny_folder)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch in one thread: small arrays are fastest so, and sums have one order."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tissues() -> np.ndarray:
    """A small whole body, to be read only: the phantom's organs, with a spine's worth of bone."""
    pytest.importorskip("torch")
    from inference.phantom import make_phantom
    from training.synthetic.isotropic import isotropic
    from training.tissues import Tissue

    _, labels = make_phantom(shape=(40, 48, 64), spacing=(6.0, 6.0, 6.0), seed=1)
    array = isotropic(sitk.GetArrayFromImage(labels), (6.0, 6.0, 6.0))
    spine = np.zeros(array.shape, bool)
    spine[:, -60:-45, array.shape[2] // 2 - 8 : array.shape[2] // 2 + 8] = True
    return np.where((array == 0) & spine, Tissue.BONE, array).astype(np.uint8)
