"""What tests share."""

from __future__ import annotations

import inference  # noqa: F401  # isort: skip  # before OpenVINO: it must not report its use

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import SimpleITK as sitk
from desk import Desk
from tiny_model import make_ct, make_tiny_model

from inference.model import Model

if TYPE_CHECKING:
    from training.config import Config


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
    from training.data.tissues import Tissue
    from training.synthetic.isotropic import isotropic

    _, labels = make_phantom(shape=(40, 48, 64), spacing=(6.0, 6.0, 6.0), seed=1)
    array = isotropic(sitk.GetArrayFromImage(labels), (6.0, 6.0, 6.0))
    spine = np.zeros(array.shape, bool)
    spine[:, -60:-45, array.shape[2] // 2 - 8 : array.shape[2] // 2 + 8] = True
    return np.where((array == 0) & spine, Tissue.BONE, array).astype(np.uint8)


@pytest.fixture
def config() -> Config:
    """The configuration of a small training."""
    from small_training import CONFIG, SMALL

    from training.config import Config

    return replace(Config.load(CONFIG), **SMALL)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a small training learns from, to be read only."""
    from small_training import a_patient, prepare_volume

    return prepare_volume(tmp_path_factory.mktemp("loop") / "prepared", a_patient()[1], (1, 3, 5))


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, to be read only, of a training that has learnt the volume by heart."""
    import torch
    from small_training import CONFIG, SMALL

    from training.config import Config
    from training.loop import train as loop

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = replace(Config.load(CONFIG), **SMALL)
    # Bent a little, so that it knows the patient at other sizes too.
    bent = {"warp": {"strength": 0.4}}
    config = replace(
        config, iterations=160, checkpoint_every=80, learning_rate=0.01, augmentation=bent
    )
    run = tmp_path_factory.mktemp("trained") / "run"
    loop.train(config, prepared, run)
    torch.set_num_threads(threads)
    return run


@pytest.fixture
def prepared_once(tmp_path: Path) -> tuple[Path, Path, Config]:
    """A dataset of one patient, P1; where it was prepared; and the configuration."""
    from small_dataset import add, configuration, dataset, liver_and_spleen

    from training.config import Config
    from training.data.cases import find_cases
    from training.preparation.prepare import prepare

    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    add(data, "P1", *liver_and_spleen())
    config = Config.load(configuration(tmp_path))
    prepare(find_cases(data), out, config, 1)
    return data, out, config
