"""Muon: an optimiser that gives every direction of a convolution's kernel an equal share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_NARROW = 16
"""Fewest channels, in and out, of a kernel that is orthogonalised."""

_ITERATIONS = 5
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Of Jordan et al.; five times, it brings singular values of 0.0015 to 1 to 0.68 to 1.21."""

_RMS = 0.2
"""Root mean square of an update of AdamW, so that its learning rates fit."""


class Muon(torch.optim.AdamW):
    """Momentum, orthogonalised, for the kernels of convolutions; AdamW for all else.

    A gradient's large singular values are few: steps along it, or along it divided by its size
    element by element, hardly move a kernel in most directions. Muon (Jordan et al. 2024) sets
    all singular values of the momentum to about 1. A kernel is taken as the matrix of its first
    axis by all others; its update is scaled to the size of AdamW's (Liu et al. 2025), so one
    learning rate and weight decay serve both.

    AdamW keeps norms, biases, and kernels of fewer than 16 channels on a side: the first
    convolution, depthwise ones and the one to the classes.

    Args:
        network: whose parameters are trained.
        lr: learning rate of both.
        weight_decay: of both.
    """

    def __init__(self, network: nn.Module, lr: float, weight_decay: float) -> None:
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for weight in network.parameters():
            groups[weight.ndim > 2 and min(weight.shape[:2]) >= _NARROW].append(weight)
        super().__init__(
            [{"params": each, "orthogonal": kind} for kind, each in groups.items() if each],
            lr=lr,
            weight_decay=weight_decay,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step; the kernels' gradients are gone after it.

        Args:
            closure: not taken: AdamW would compute the kernels' gradients again.
        """
        if closure is not None:
            raise TypeError("Muon takes no closure")
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                if weight.grad is not None:
                    self._orthogonal_step(weight, weight.grad, group["lr"], group["weight_decay"])
                    weight.grad = None  # AdamW passes over what has none
        return super().step()

    def _orthogonal_step(self, weight: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        """One kernel's step along its orthogonalised momentum."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())  # AdamW reads it where a state is loaded
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        ahead = gradient.lerp(momentum, _MOMENTUM)  # Nesterov's
        matrix = ahead.flatten(1)
        update = orthogonalise(matrix).reshape(ahead.shape)
        weight.mul_(1 - rate * decay)
        weight.add_(update, alpha=-rate * _RMS * max(matrix.shape) ** 0.5)


def orthogonalise(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values brought near 1 (Newton-Schulz).

    All iterations are made on the small Gram matrix, in float32, and only their product is applied
    to the matrix: two large products instead of ten.

    Args:
        matrix: (rows, columns), float32.

    Returns:
        The same shape; singular values between 0.68 and 1.21, but for those below 0.0015 of the
        matrix's norm, which stay smaller.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.mT).mT
    matrix = matrix / matrix.norm().clamp(min=1e-12)
    gram = matrix @ matrix.mT
    identity = torch.eye(len(gram), device=gram.device)
    a, b, c = _POLYNOMIAL
    applied = identity
    for _ in range(_ITERATIONS):
        factor = a * identity + b * gram + c * gram @ gram
        applied = factor @ applied
        gram = factor @ gram @ factor
    return applied @ matrix
