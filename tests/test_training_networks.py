"""The configurations' networks: their published sizes, shapes, and single parts of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch

from training.config import Config
from training.loop.losses import loss_at_all_depths
from training.networks.depthwise import DepthwiseConv3d
from training.networks.network import (
    make_network,
    multiple_of,
    multiply_adds,
    parameter_count,
)
from training.networks.unets import ChannelAttention, InstanceNorm
from training.patches.samples import Patch

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
NAMES = ("abdoseg", "dsunet_eca", "nnunet_half", "nnunet_iso2p5", "unet_baseline")


def load(name: str) -> Config:
    return Config.load(CONFIGS / f"{name}.yaml")


def build(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return make_network(dict(load(name).network))


def test_there_is_a_file_for_each_configuration_and_nothing_else() -> None:
    files = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    others = ["abdoseg_heldout", "abdoseg_look", "dsunet_eca_cpu", "nnunet_iso2p5_cpu"]
    assert files == sorted([*NAMES, *others])
    for name in (*NAMES, "abdoseg_look"):
        assert load(name).name == name


def test_what_measures_the_default_model_is_that_model_but_for_its_training() -> None:
    heldout, default = load("abdoseg_heldout"), load("abdoseg")
    named = replace(heldout, name=default.name, version=default.version)
    assert named.plan((1, 1, 1)) == default.plan((1, 1, 1))
    assert heldout.network == default.network
    assert heldout.holdout and not heldout.shares.get("labelled")


def test_what_looks_for_the_default_model_can() -> None:
    """Of the same orientation and without a look of its own, as `inference.model` wants it."""
    look, default = load("abdoseg_look"), load("abdoseg")
    assert default.look["model"] == look.name
    assert not look.look
    assert look.plan((1, 1, 1)).orientation == default.plan((1, 1, 1)).orientation


@pytest.mark.parametrize("name", ["dsunet_eca", "nnunet_iso2p5"])
def test_what_is_trained_on_a_cpu_is_the_published_network(name: str) -> None:
    """It is trained otherwise, but the network, its grid and its intensities are the same.

    Only that the intensities are clipped after resizing, since their phase is varied before, and
    that post-processing may begin with a step more.
    """
    ours, published = load(f"{name}_cpu"), load(name)
    plan, wanted = ours.plan((1, 1, 1)), published.plan((1, 1, 1))
    steps = len(wanted.postprocessing)
    assert plan.postprocessing[len(plan.postprocessing) - steps :] == wanted.postprocessing
    assert replace(plan, clip_first=None, postprocessing=wanted.postprocessing) == wanted
    assert wanted.clip_first is None
    assert ours.network == published.network


@pytest.mark.parametrize("name", ["nnunet_iso2p5", "nnunet_half"])
def test_nnunet_has_exactly_the_published_parameters(name: str) -> None:
    assert parameter_count(build(name)) == 30_713_158
    assert load(name).patch == (40, 224, 192)


def test_light_network_is_near_what_was_published() -> None:
    network = build("dsunet_eca")
    assert parameter_count(network) == pytest.approx(0.405e6, rel=0.03)
    work = multiply_adds(network, load("dsunet_eca").patch)
    assert work == pytest.approx(1.29e9, rel=0.10)
    assert work == pytest.approx(1.18e9, rel=0.01)


def test_plain_and_light_network_differ_in_nothing_but_their_blocks() -> None:
    light, plain = load("dsunet_eca"), load("unet_baseline")
    blocks = {"norm": "batch", "separable": False, "attention": False}
    same_but_blocks = replace(light, name=plain.name, network={**light.network, **blocks})
    assert plain == replace(same_but_blocks, precision="int8")  # of no use to depthwise ones
    network = build("unet_baseline")
    assert parameter_count(network) == 5_472_526
    kinds = {type(module) for module in network.modules()}
    assert torch.nn.BatchNorm3d in kinds
    assert not kinds & {ChannelAttention, torch.nn.GroupNorm}


def test_multiply_adds_are_those_of_a_count_by_hand() -> None:
    options = {"features": [2, 4], "pooling": [1, 2, 2], "norm": "batch"}
    network = make_network(
        {"kind": "light_unet", "separable": False, "attention": False, **options}, classes=3
    )
    fine, coarse = 3 * 8 * 8, 3 * 4 * 4
    by_hand = 27 * (1 * 2 + 2 * 2) * fine  # encoder
    by_hand += 27 * (2 * 4 + 4 * 4) * coarse
    by_hand += 4 * 4 * 2 * coarse  # each coarse voxel makes 1 x 2 x 2 fine ones
    by_hand += 27 * (4 * 2 + 2 * 2) * fine + 2 * 3 * fine  # decoder, classes
    assert multiply_adds(network, (3, 8, 8)) == by_hand


def test_a_light_finest_stage_saves_most_of_its_work_and_nothing_of_the_others() -> None:
    options: dict[str, Any] = {"kind": "unet", "features": [2, 4], "kernels": [[3, 3, 3]] * 2}
    options |= {"strides": [[1, 1, 1], [2, 2, 2]], "norm": "batch", "activation": "relu"}
    options |= {"bias": False, "deep_supervision": False}
    network = make_network({**options, "light_finest": True}, classes=3)
    fine, coarse = 8 * 8 * 8, 4 * 4 * 4
    by_hand = 27 * (1 * 2 * fine + (2 * 4 + 4 * 4) * coarse)  # encoder
    by_hand += 8 * 4 * 2 * coarse  # each coarse voxel makes 2 x 2 x 2 fine ones
    by_hand += 27 * 2 * 2 * fine + 2 * 3 * fine  # decoder, classes
    assert multiply_adds(network, (8, 8, 8)) == by_hand
    usual = make_network(options, classes=3)
    saved = 27 * (2 * 2 + (2 * 2 * 2 + 2 * 2) - 2 * 2) * fine
    assert multiply_adds(usual, (8, 8, 8)) == by_hand + saved


def test_the_light_finest_stage_sees_fine_detail() -> None:
    """Its skip connection passes what the coarser stages cannot tell apart."""
    torch.manual_seed(0)
    options = dict(load("abdoseg").network)
    assert options["light_finest"]
    network = make_network({**options, "features": [4, 4, 4, 4, 4]}).eval()
    for block in network.encoder[1:]:  # type: ignore[index]
        torch.nn.init.zeros_(block[0].weight)
    image = torch.randn(1, 1, 16, 16, 16)
    changed = image.clone()
    changed[0, 0, 5, 6, 7] += 3
    difference = (network(changed) - network(image)).abs().amax(1)[0]
    assert difference[5, 6, 7] > 0
    difference[3:8, 4:9, 5:10] = 0  # two convolutions of 3 x 3 x 3 reach two voxels far
    assert difference.max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_logits_lie_on_the_grid_of_the_patch(name: str) -> None:
    network, patch = build(name), load(name).patch
    assert all(n % m == 0 for n, m in zip(patch, multiple_of(network), strict=True))
    logits = network.eval()(torch.empty(1, 1, *patch, device="meta"))
    assert logits.shape == (1, 14, *patch)


def test_deep_supervision_gives_one_output_per_stage_while_training() -> None:
    outputs = build("nnunet_iso2p5").train()(torch.empty(2, 1, 8, 64, 64, device="meta"))
    shapes = [tuple(logits.shape[2:]) for logits in outputs]
    assert shapes == [(8, 64, 64), (8, 32, 32), (4, 16, 16), (2, 8, 8), (1, 4, 4)]


def test_deep_outputs_count_half_of_the_finer_one_and_the_coarsest_nothing() -> None:
    patch = Patch(
        torch.zeros(1, 1, 4, 4, 4),
        torch.ones(1, 4, 4, 4, dtype=torch.uint8),
        torch.ones(1, 3, dtype=torch.bool),
        torch.ones(1),
    )
    outputs = [torch.full((1, 3, n, n, n), float(n)) for n in (4, 2, 1)]

    def loss(logits: torch.Tensor, labels: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        assert labels.shape[1:] == logits.shape[2:] and (labels == 1).all()
        return logits.mean()

    total = float(loss_at_all_depths(outputs, patch, loss))
    assert total == pytest.approx((1 * 4 + 0.5 * 2) / 1.5)


def test_attention_weighs_channels_by_the_means_of_their_neighbours() -> None:
    attention = ChannelAttention(64)
    kernel = attention.convolution.weight.flatten()
    assert len(kernel) == 3
    x = torch.randn(2, 64, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    means = torch.nn.functional.pad(x.mean(dim=(2, 3, 4)), (1, 1))
    weight = torch.sigmoid(torch.stack([kernel[i] * means[:, i : i + 64] for i in range(3)]).sum(0))
    assert torch.allclose(attention(x), x * weight[:, :, None, None, None], atol=1e-6)
    assert len(ChannelAttention(256).convolution.weight.flatten()) == 5


@pytest.mark.parametrize("shape", [(2, 4, 3, 9, 7), (1, 1, 1, 4, 5), (3, 8, 2, 6, 6)])
@pytest.mark.parametrize("bf16", [False, True])
def test_depthwise_convolutions_and_their_gradients_are_torchs_own(
    shape: tuple[int, ...], bf16: bool
) -> None:
    """In full precision under autocast too."""
    torch.manual_seed(1)
    channels = shape[1]
    ours = DepthwiseConv3d(channels)
    theirs = torch.nn.Conv3d(channels, channels, 3, padding=1, groups=channels, bias=False)
    theirs.load_state_dict(ours.state_dict())
    here, there = (torch.randn(shape, generator=torch.manual_seed(2)) for _ in range(2))
    here.requires_grad_()
    there.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        answer = ours(here)
    weights = torch.randn(shape)
    (answer * weights).sum().backward()
    (theirs(there) * weights).sum().backward()
    torch.testing.assert_close(answer, theirs(there))
    torch.testing.assert_close(here.grad, there.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(ours(here), theirs(here))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_instance_norms_and_their_gradients_are_torchs_own(bf16: bool, training: bool) -> None:
    torch.manual_seed(1)
    ours, theirs = InstanceNorm(4, affine=True), torch.nn.InstanceNorm3d(4, affine=True)
    for norm in (ours, theirs):
        torch.nn.init.uniform_(norm.weight, 0.5, 2, torch.manual_seed(3))
        torch.nn.init.uniform_(norm.bias, -1, 1, torch.manual_seed(4))
    dtype = torch.bfloat16 if bf16 else torch.float32
    image = (5 + 3 * torch.randn(2, 4, 3, 9, 7)).to(dtype, memory_format=torch.channels_last_3d)
    weights = torch.randn(image.shape)
    found = []
    for norm in (ours.train(training), theirs.train(training)):
        here = image.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            answer = norm(here)
        (answer.float() * weights).sum().backward()
        found.append((answer, here.grad, norm.weight.grad, norm.bias.grad))
    for mine, torchs in zip(*found, strict=True):
        assert mine is not None and torchs is not None and mine.dtype == torchs.dtype
        # Sums are in another order, and bf16 tells numbers apart to 1 in 256.
        rtol, atol = (1e-2, 5e-2) if bf16 else (1e-4, 1e-4)
        torch.testing.assert_close(mine, torchs, rtol=rtol, atol=atol)


def test_wrong_networks_are_named() -> None:
    with pytest.raises(ValueError, match="there is no 'resnet'"):
        make_network({"kind": "resnet"})
    with pytest.raises(ValueError, match="missing 6 required"):
        make_network({"kind": "unet", "features": [4, 8]})
