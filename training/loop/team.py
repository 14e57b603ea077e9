"""The processes that train together: one alone, or one per GPU, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

_PATIENCE = timedelta(hours=4)  # the others wait while the first one evaluates


@dataclass(frozen=True)
class Team:
    """This process among those that train together.

    Attributes:
        rank: its number; 0 writes files and evaluates.
        size: how many there are.
        device: what it computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, with its gradients averaged over the team."""
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes; all must ask."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a number over the processes; all must ask."""
        if self.size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
            value /= self.size
        return float(value.detach())


@contextmanager
def join() -> Iterator[Team]:
    """Join the processes that ``torchrun`` started, if it did.

    The group is left where all leave it: at the end, and when the training was told to stop. A
    process with a mistake of its own must not say goodbye to it: NCCL would wait for the others,
    which wait for that process's gradients, and ``torchrun`` would never hear of the mistake.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield Team(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Team(rank, size, device)
    except KeyboardInterrupt:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
