"""Random numbers that are the same for the same seed and sample, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from training.sampling.separable import upsample


class Chance:
    """Short names for random numbers, so that what is varied reads as such.

    Single numbers are drawn on the CPU, which waits for no GPU; volumes where they are needed.

    Args:
        seed: equal seeds draw equal numbers on the same kind of device.
        device: where volumes are drawn.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._few = Generator().manual_seed(seed)
        on_cpu = self.device.type == "cpu"
        self._many = self._few if on_cpu else Generator(self.device).manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        """A number between two others."""
        return low + (high - low) * float(torch.rand(1, generator=self._few))

    def normal(self, mean: float, sd: float) -> float:
        """A normally distributed number."""
        return mean + sd * float(torch.randn(1, generator=self._few))

    def happens(self, probability: float) -> bool:
        """Whether something of this probability is the case."""
        return float(torch.rand(1, generator=self._few)) < probability

    def integer(self, below: int) -> int:
        """One of 0 .. below - 1."""
        return int(torch.randint(below, (1,), generator=self._few))

    def pick(self, weights: Sequence[float]) -> int:
        """An index, drawn in proportion to weights."""
        return int(
            torch.multinomial(torch.tensor(weights, dtype=torch.float32), 1, generator=self._few)
        )

    def normals(self, *shape: int) -> Tensor:
        """A few normally distributed numbers, on the CPU."""
        return torch.randn(shape, generator=self._few)

    def noise(self, shape: Sequence[int]) -> Tensor:
        """White noise of unit variance, on the device."""
        return torch.randn(tuple(shape), generator=self._many, device=self.device)

    def field(self, shape: Sequence[int], scale: float) -> Tensor:
        """Smooth noise of about unit variance; ``scale`` is its correlation length in voxels."""
        knots = [max(2, round(n / scale) + 1) for n in shape]
        return upsample(self.noise(knots), shape) * 1.7

    def tubes(self, shape: Sequence[int], scale: float, width: float) -> Tensor:
        """Mask of thin random tubes: where two smooth fields both cross zero."""
        return (self.field(shape, scale).abs() < width) & (self.field(shape, scale).abs() < width)
