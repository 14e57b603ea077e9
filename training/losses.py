"""Soft Dice plus cross entropy that respects partial labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def partial_dice_cross_entropy(
    logits: Tensor, labels: Tensor, annotated: Tensor, unknown: int = 255
) -> Tensor:
    """Mean of soft Dice loss and cross entropy over what the labels tell.

    An organ that was not annotated may lie in what is labelled background: its probability is
    counted as background there (the marginal loss of Shi et al. 2021), so nothing teaches that it
    is absent.

    Args:
        logits: (n, classes, z, y, x).
        labels: integer (n, z, y, x); ``unknown`` voxels are left out.
        annotated: bool (n, classes), background always True.
        unknown: label of voxels to leave out.

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

    valid = labels != unknown
    target = torch.where(valid, labels, torch.zeros_like(labels)).long()
    log_p = F.log_softmax(merged, dim=1)
    cross_entropy = -log_p.gather(1, target[:, None])[:, 0]
    cross_entropy = (cross_entropy * valid).sum() / valid.sum().clamp(min=1)

    p = log_p.exp() * valid[:, None]
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1) * valid[:, None]
    axes = (2, 3, 4)
    overlap = (p * truth).sum(axes)
    dice = (2 * overlap + 1) / (p.sum(axes) + truth.sum(axes) + 1)
    organs = annotated[:, 1:]
    dice_loss = ((1 - dice[:, 1:]) * organs).sum() / organs.sum().clamp(min=1)
    return cross_entropy + dice_loss
