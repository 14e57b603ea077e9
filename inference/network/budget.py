"""How much memory the passes over a case may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inference.machine import free_memory
from inference.network.tiling import padded_shape
from inference.plan import Plan

if TYPE_CHECKING:
    from inference.network.network import Network

_SHARE = 0.85  # of the free memory that passes are planned to use at most


class Budget:
    """Grants memory to one case after the other.

    The network that one case leaves compiled holds memory until it is used again or let go. If
    that counted as used, the next case would be cut into smaller windows, and its labels would
    depend on which case came before. So a case of the same size gets what the one before it got;
    for any other size the network is let go before what is free is measured. So it is where more
    has gone than the network can hold: a caller may keep what was read and segmented.
    """

    def __init__(self) -> None:
        self._size: tuple[int, ...] = ()
        self._measured = 0
        self._held = 0

    def grant(
        self, shape: Sequence[int], plan: Plan, network: Network, held: int, reserved: int
    ) -> int:
        """Bytes that the passes over a volume may use.

        Args:
            shape: voxels (z, y, x) on the network's grid.
            plan: its tiling, patch and multiple.
            network: what will run; it may be let go.
            held: bytes that the CT takes, which is in memory by now.
            reserved: bytes that are needed beside the passes, while their logits are there.
        """
        size = padded_shape(shape, plan)
        if size != self._size or free_memory() < (1 - _SHARE) * self._measured:
            if plan.tiling == "whole":  # windows of one size stay compiled
                network.release()
            self._size = size
            self._measured = free_memory()
            self._held = held
        return max(0, int(self._measured * _SHARE) - (held - self._held) - reserved)
