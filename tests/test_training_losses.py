"""The loss against a plain version of it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch

from training.loop.losses import distillation, partial_dice_cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")


def _plain_loss(
    logits: np.ndarray, labels: np.ndarray, annotated: np.ndarray, class_weights: list[float]
) -> float:
    """The loss of one patch voxel by voxel, in the words of its docstring."""
    classes = logits.shape[0]
    p = np.exp(logits - logits.max(0))
    p /= p.sum(0)
    told = [c for c in range(1, classes) if annotated[c]]
    p[0] = 1 - p[told].sum(0)
    entropy, counts = [], []
    overlap, size = dict.fromkeys(told, 0.0), dict.fromkeys(told, 0.0)
    for voxel in np.ndindex(labels.shape):
        if labels[voxel] == 255:
            continue
        at = p[(slice(None),) + voxel]
        entropy.append(-np.log(at[labels[voxel]]))
        counts.append(class_weights[labels[voxel]])
        for c in told:
            overlap[c] += at[c] * (labels[voxel] == c)
            size[c] += at[c] + (labels[voxel] == c)
    dice = [(2 * overlap[c] + 1) / (size[c] + 1) for c in told]
    return float(np.average(entropy, weights=counts) + 1 - np.mean(dice))


@pytest.mark.parametrize("class_weights", [None, [1.0, 3.0, 2.0, 8.0, 5.0]])
def test_loss_equals_its_definition_with_partial_labels(class_weights: list[float] | None) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3, 4, 3))
    labels = rng.choice([0, 1, 3, 255], size=(3, 4, 3))
    annotated = np.array([True, True, False, True, False])
    loss = partial_dice_cross_entropy(
        torch.tensor(logits)[None],
        torch.tensor(labels)[None],
        torch.tensor(annotated)[None],
        torch.ones(1),
        torch.tensor(class_weights) if class_weights else None,
    )
    expected = _plain_loss(logits, labels, annotated, class_weights or [1.0] * 5)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_dice_over_a_batch_is_that_of_one_large_patch_without_absent_organs() -> None:
    rng = np.random.default_rng(1)
    logits = torch.tensor(rng.normal(size=(1, 5, 6, 4, 3)), requires_grad=True)
    labels = torch.tensor(rng.choice([0, 1, 3, 255], size=(1, 6, 4, 3)))
    present, both = torch.tensor([[True, True, False, True, False]]), torch.ones(2)
    halves = torch.cat(logits.chunk(2, dim=2)), torch.cat(labels.chunk(2, dim=1))
    here = partial_dice_cross_entropy(*halves, present.expand(2, 5), both, batch_dice=True)
    there = partial_dice_cross_entropy(logits, labels, present, both[:1])
    torch.testing.assert_close(here, there)

    # Of organs that no patch shows, voxels still say that they are not there; Dice says nothing.
    told = torch.ones(2, 5, dtype=torch.bool)
    loss = partial_dice_cross_entropy(*halves, told, both, batch_dice=True)
    known = labels != 255
    p = logits.softmax(dim=1)
    right = p.gather(1, labels.masked_fill(~known, 0)[:, None])[:, 0][known]
    dice = []
    for organ in (1, 3):
        ours, theirs = p[:, organ] * known, labels == organ
        overlap, size = (ours * theirs).sum(), ours.sum() + theirs.sum()
        dice.append((2 * overlap + 1) / (size + 1))
    expected = -right.log().mean() + 1 - sum(dice) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_dice_over_a_batch_weighs_patches_and_skips_what_was_not_annotated_in_them() -> None:
    rng = np.random.default_rng(2)
    logits = torch.tensor(rng.normal(size=(2, 4, 3, 4, 3)))
    labels = torch.tensor(rng.choice([0, 1, 2], size=(2, 3, 4, 3)))
    labels[1][labels[1] == 2] = 0
    annotated = torch.tensor([[True, True, True, False], [True, True, False, False]])
    weights = [1.0, 0.5]
    arguments = logits, labels, annotated, torch.tensor(weights)
    loss = partial_dice_cross_entropy(*arguments, batch_dice=True)

    p = logits.softmax(dim=1).numpy()
    entropy, sums = 0.0, {1: [0.0, 0.0], 2: [0.0, 0.0]}
    for patch, told in enumerate(((1, 2), (1,))):
        for z, y, x in np.ndindex(3, 4, 3):
            label, at = int(labels[patch, z, y, x]), p[patch, :, z, y, x]
            right = at[label] if label else 1 - sum(at[organ] for organ in told)
            entropy -= weights[patch] * float(np.log(right)) / labels.numel()
        for organ in told:
            ours, theirs = p[patch, organ], (labels[patch] == organ).numpy()
            sums[organ][0] += weights[patch] * float((ours * theirs).sum())
            sums[organ][1] += weights[patch] * float(ours.sum() + theirs.sum())
    dice = [(2 * overlap + 1) / (size + 1) for overlap, size in sums.values()]
    assert float(loss) == pytest.approx(entropy + 0.75 * (1 - np.mean(dice)), rel=1e-4)


def test_organs_that_were_not_annotated_are_not_taught_to_be_absent() -> None:
    """Moving probability between background and a hidden organ changes nothing."""
    logits = torch.zeros(1, 4, 2, 2, 2, requires_grad=True)
    labels = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    annotated = torch.tensor([[True, True, False, True]])
    partial_dice_cross_entropy(logits, labels, annotated, torch.ones(1)).backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad[:, 0], logits.grad[:, 2])
    assert (logits.grad[:, 1] > 0).all()


def test_distillation_is_nothing_for_equals_and_pulls_towards_the_teacher() -> None:
    teacher = torch.randn(1, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    assert float(distillation(teacher + 3, teacher, 2.0)) == pytest.approx(0, abs=1e-6)
    logits = torch.zeros_like(teacher, requires_grad=True)
    before = distillation(logits, teacher, 2.0)
    before.backward()
    assert logits.grad is not None
    assert distillation(logits - 5 * logits.grad, teacher, 2.0) < before
