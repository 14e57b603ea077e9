"""A shipped model goes on learning: weights of a model folder, back in PyTorch."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("nncf", reason="the training extra is not installed")

import openvino as ov
import torch
from torch import nn

from inference.errors import ModelError
from training.config import Config
from training.export.openvino_model import to_openvino
from training.loop import train as loop
from training.loop.checkpoint import load_average, load_mean
from training.networks.ir_weights import measure_norms
from training.networks.network import make_network, multiple_of
from training.patches.samples import Samples

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
UNET = {
    "kind": "unet",
    "features": [4, 8, 8],
    "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
}
PLAIN = {"norm": "batch", "activation": "relu", "bias": False, "deep_supervision": False}
LIGHT = {"kind": "light_unet", "features": [8, 16, 16], "pooling": [1, 2, 2]}
NETWORKS: dict[str, dict[str, Any]] = {
    "batch norm": UNET | PLAIN,
    "light finest stage": UNET | PLAIN | {"light_finest": True},
    "biases before batch norm": UNET | PLAIN | {"bias": True},
    "nnU-Net's": UNET
    | {"norm": "instance", "activation": "leaky_relu", "bias": True, "deep_supervision": True},
    "separable": LIGHT | {"norm": "group", "separable": True, "attention": True},
    "its baseline": LIGHT | {"norm": "batch", "separable": False, "attention": False},
}


def _trained(options: dict[str, Any]) -> nn.Module:
    """A network all of whose weights and statistics are something of their own."""
    torch.manual_seed(0)
    network = make_network(options)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(0.5 + torch.rand(tensor.shape))
    return network.eval()


def _shipped(network: nn.Module, config: Config, folder: Path) -> Path:
    folder.mkdir()
    multiple = multiple_of(network)
    model = to_openvino(network, [2 * n for n in multiple])
    ov.save_model(model, folder / "network.xml", compress_to_fp16=True)
    config.plan(multiple, {"f32": "network.xml"}, {"f32": 100.0}).save(folder)
    return folder


def _config(options: dict[str, Any], **changes: Any) -> Config:
    config = Config.load(CONFIGS / "abdoseg.yaml")
    return replace(config, network=options, patch=(4, 8, 8), coarse_first={}, **changes)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_exported_computes_the_same_again(name: str, tmp_path: Path) -> None:
    config = _config(NETWORKS[name])
    network = _trained(NETWORKS[name])
    image = torch.randn(2, 1, 4, 8, 12)
    with torch.no_grad():
        expected = network(image)
        again = load_average(_shipped(network, config, tmp_path / "model"), config)
        assert not again.training
        # Half precision has 11 bits.
        assert (again(image) - expected).norm() / expected.norm() < 2e-3


@pytest.mark.parametrize("name", ["batch norm", "its baseline", "separable"])
def test_norms_get_the_statistics_of_what_they_see_and_nothing_else_changes(
    name: str, tmp_path: Path
) -> None:
    config = _config(NETWORKS[name])
    folder = _shipped(_trained(NETWORKS[name]), config, tmp_path / "model")
    network = load_average(folder, config)
    images = [3 + torch.randn(1, 1, 8, 16, 16) for _ in range(3)]
    with torch.no_grad():
        expected = [network(image) for image in images]
    measure_norms(network, images)
    with torch.no_grad():
        for image, logits in zip(images, expected, strict=True):
            assert torch.allclose(network(image), logits, atol=1e-4)
        # With the statistics of all that was seen, a norm in training does what it does in use.
        network.train()
        assert torch.allclose(network(torch.cat(images)), torch.cat(expected), atol=1e-3)


def test_a_training_begins_with_a_model_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step it computes what the folder does; its norms know the data."""
    config = _config(
        NETWORKS["batch norm"],
        iterations=1,
        freeze_norm=0.0,  # so that the one step does not move the statistics
        shares={"labelled": 1.0},
        placement={"rule": "labelled_slices"},
        augmentation={},
        evaluate_every=1,
    )
    rng = np.random.default_rng(0)
    (tmp_path / "prepared" / "images").mkdir(parents=True)
    np.savez(
        tmp_path / "prepared" / "images" / "it.npz",
        hu=rng.integers(-200, 300, (8, 16, 16)).astype(np.int16),
        labels=rng.integers(0, 3, (8, 16, 16)).astype(np.uint8),
        annotated=np.array([1, 2], np.uint8),
        spacing=np.full(3, 2, np.float32),
    )
    shipped = _trained(NETWORKS["batch norm"])
    folder = _shipped(shipped, config, tmp_path / "model")
    monkeypatch.setattr(loop, "learning_rate", lambda *_: 0.0)
    path = loop.train(config, tmp_path / "prepared", tmp_path / "run", initial=[folder])
    begun: Any = load_average(path, config)
    patches = torch.stack([Samples(tmp_path / "prepared", config)[n].image for n in range(16)])
    with torch.no_grad():
        difference = begun(patches) - shipped(patches)
        assert difference.norm() / shipped(patches).norm() < 2e-3
        first, norm = begun.encoder[0][0], begun.encoder[0][1]
        before_norm = first(patches)
    assert torch.allclose(norm.running_mean, before_norm.mean((0, 2, 3, 4)), atol=1e-3)
    variance = before_norm.var((0, 2, 3, 4), correction=0)
    assert torch.allclose(norm.running_var, variance, rtol=1e-2)
    assert (tmp_path / "run" / "initial.txt").read_text() == f"abdoseg {config.version}\n"


@pytest.mark.parametrize("name", ["batch norm", "biases before batch norm", "its baseline"])
def test_kernels_come_back_in_the_size_that_they_are_trained_in(name: str, tmp_path: Path) -> None:
    """Folded into one, a norm that divides by much leaves a kernel that is too small to train."""
    config, trained = _config(NETWORKS[name]), _trained(NETWORKS[name])
    with torch.no_grad():
        for _, norm in _before_norms(trained):
            assert norm.running_var is not None
            norm.running_var.mul_(1000)
    again = load_average(_shipped(trained, config, tmp_path / "model"), config)
    for convolution, _ in _before_norms(again):
        rows = convolution.weight.flatten(1).square().mean(1).sqrt()
        assert torch.allclose(rows, torch.tensor(0.2), rtol=1e-4)
    patch = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        difference = (again(patch) - trained(patch)).norm() / trained(patch).norm()
    assert difference < 2e-3


def _before_norms(network: torch.nn.Module) -> list[tuple[Any, torch.nn.BatchNorm3d]]:
    layers = [m for m in network.modules() if not list(m.children())]
    return [(a, b) for a, b in pairwise(layers) if isinstance(b, torch.nn.BatchNorm3d)]


def test_a_folder_that_cannot_be_begun_with_is_one_line(tmp_path: Path) -> None:
    plain = NETWORKS["batch norm"]
    config = _config(plain)
    folder = _shipped(_trained(plain), config, tmp_path / "model")
    wider = _config({**plain, "features": [4, 8, 16]})
    with pytest.raises(ValueError, match="model: its network is another one"):
        load_average(folder, wider)
    with pytest.raises(ValueError, match="model: its network is another one"):
        load_average(folder, _config({**plain, "light_finest": True}))
    flat = {**plain, "kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3]]}
    with pytest.raises(ValueError, match="model: its network is another one"):
        load_average(folder, _config(flat))
    with pytest.raises(ValueError, match="of a model folder and others no mean"):
        load_mean([tmp_path / "checkpoint.pt", folder], config)
    with pytest.raises(ModelError, match="no model here"):
        load_average(tmp_path, config)
    plan = json.loads((folder / "plan.json").read_text())
    names = dict(zip(reversed(plan["labels"]), plan["labels"].values(), strict=True))
    (folder / "plan.json").write_text(json.dumps(plan | {"labels": names}))
    with pytest.raises(ValueError, match="model: its classes are not the 13 organs"):
        load_average(folder, config)
    plan |= {"networks": {"int8": "network.xml"}, "precision": "int8"}
    plan["bytes_per_voxel"] = {"int8": 100.0}
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match="no network in floating point"):
        load_average(folder, config)


@pytest.mark.parametrize("damage", ["cut.bin", "no.bin", "cut.xml"])
def test_a_damaged_model_folder_is_one_line(tmp_path: Path, damage: str) -> None:
    config = _config(NETWORKS["batch norm"])
    folder = _shipped(_trained(NETWORKS["batch norm"]), config, tmp_path / "model")
    how, ending = damage.split(".")
    file = folder / f"network.{ending}"
    if how == "no":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="model") as caught:
        load_average(folder, config)
    assert len(str(caught.value).splitlines()) == 1
