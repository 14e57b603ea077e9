"""What tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from inference.model import Model
from tests.tiny_model import make_tiny_model


def make_ct(shape: tuple[int, int, int] = (20, 40, 44), seed: int = 0) -> sitk.Image:
    """A small body in air with four box-shaped 'organs' of 100 to 400 HU, different at each side."""
    rng = np.random.default_rng(seed)
    depth, height, width = shape
    volume = np.full(shape, -1000.0)
    volume[:, height // 8 : -height // 8, width // 10 : -width // 8] = 0
    for number, hu in enumerate((100, 200, 300, 400)):
        z = 2 + number * (depth - 8) // 6
        y = height // 4 + (number % 2) * height // 4
        x = width // 5 + (number // 2) * width // 3
        volume[z : z + depth // 3, y : y + height // 5, x : x + width // 5 + number] = hu
    volume += rng.normal(0, 3, shape)
    image = sitk.GetImageFromArray(volume.round().astype(np.int16))
    image.SetSpacing((1.5, 1.4, 2.5))
    image.SetOrigin((-30.5, 12.25, 700.0))
    return image


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
