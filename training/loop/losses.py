"""Soft Dice plus cross entropy that respects partial labels; deep supervision; distillation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.tissues import UNKNOWN

if TYPE_CHECKING:
    from training.patches.samples import Patch

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def partial_dice_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    annotated: Tensor,
    weight: Tensor,
    class_weights: Tensor | None = None,
    batch_dice: bool = False,
) -> Tensor:
    """Soft Dice loss plus cross entropy, each a mean over what the labels tell.

    An organ that was not annotated may lie in what is labelled background: its probability is
    counted as background there (the marginal loss of Shi et al. 2021), so nothing teaches that it
    is absent.

    Args:
        logits: (n, classes, z, y, x).
        labels: integer (n, z, y, x); `UNKNOWN` voxels are left out.
        annotated: bool (n, classes), background always True.
        weight: (n,), what each patch counts; in Dice of all patches as a share of their sums, and
            all together by their mean.
        class_weights: (classes,), what a voxel of each class counts in the cross entropy; without
            them a small organ is hardly heard beside the background.
        batch_dice: whether Dice is that of all patches together, of the organs that any of them
            shows (nnU-Net's for slices, but it counts absent organs too). A thin patch shows few
            organs; if those that it lacks counted, naming none of them would be learnt first.

    Returns:
        Scalar loss; cross entropy in nats, Dice loss in 0 to 1.
    """
    logits = logits.float()
    told = annotated[:, :, None, None, None]
    hidden = ~told
    hidden_or_background = hidden.clone()
    hidden_or_background[:, 0] = True
    low = torch.finfo(torch.float32).min / 4
    background = logits.masked_fill(~hidden_or_background, low).logsumexp(dim=1, keepdim=True)
    merged = torch.cat([background, logits[:, 1:].masked_fill(hidden[:, 1:], low)], dim=1)

    valid = labels != UNKNOWN
    target = torch.where(valid, labels, torch.zeros_like(labels)).long()
    log_p = F.log_softmax(merged, dim=1)
    cross_entropy = -log_p.gather(1, target[:, None])[:, 0]
    counted = valid if class_weights is None else valid * class_weights[target]
    # Not divided by the sum of the patches' weights: less trust is less loss.
    patch_weight = weight[:, None, None, None]
    cross_entropy = (cross_entropy * counted * patch_weight).sum() / counted.sum().clamp(min=1)

    p = log_p.exp() * valid[:, None]
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1) * valid[:, None]
    axes = (2, 3, 4)
    overlap, size, true_size = (p * truth).sum(axes), p.sum(axes), truth.sum(axes)
    organs = annotated
    if batch_dice:
        counted_patches = annotated * weight[:, None]
        overlap, size, true_size = (
            (counted_patches * amount).sum(dim=0, keepdim=True)
            for amount in (overlap, size, true_size)
        )
        organs, weight = true_size > 0, weight.mean(dim=0, keepdim=True)
    dice = (2 * overlap + 1) / (size + true_size + 1)
    organs = organs[:, 1:]
    dice_loss = (1 - dice[:, 1:]) * organs * weight[:, None]
    return cross_entropy + dice_loss.sum() / organs.sum().clamp(min=1)


def loss_at_all_depths(outputs: Tensor | list[Tensor], patch: Patch, loss: Loss) -> Tensor:
    """The loss of a network's outputs, each against the labels at its own resolution.

    With deep supervision each coarser output counts half of the one before it and the coarsest
    nothing; the weights add up to 1 (nnU-Net's rule).

    Args:
        outputs: logits, or a list of logits, the finest first.
        patch: a batch.
        loss: of one output.
    """
    # Contiguous: with the classes outermost, a compiled loss takes half the time on a CPU.
    if isinstance(outputs, Tensor):
        return loss(outputs.contiguous(), patch.labels, patch.annotated, patch.weight)
    # The coarsest is multiplied by zero rather than left out: processes that train together wait
    # for a gradient of every parameter.
    weights = [0.5**i for i in range(len(outputs) - 1)] + [0.0]
    total = outputs[0].new_zeros((), dtype=torch.float32)
    for logits, weight in zip(outputs, weights, strict=True):
        coarse = F.interpolate(
            patch.labels[:, None].float(), logits.shape[2:], mode="nearest-exact"
        )
        labels = coarse[:, 0].to(patch.labels.dtype)
        part = loss(logits.contiguous(), labels, patch.annotated, patch.weight)
        total = total + weight / sum(weights) * part
    return total


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far a network's answer is from a teacher's (Hinton et al. 2015).

    Args:
        logits: (n, classes, z, y, x).
        teacher: the teacher's, of the same shape.
        temperature: above 1, the teacher's second choices count more.

    Returns:
        Kullback-Leibler divergence in nats per voxel, times the squared temperature, so that
        gradients do not shrink with it.
    """
    ours = F.log_softmax(logits.float() / temperature, dim=1)
    theirs = F.log_softmax(teacher.float() / temperature, dim=1)
    per_voxel = (theirs.exp() * (theirs - ours)).sum(dim=1)
    return per_voxel.mean() * temperature**2
