"""Who broadcasts weights to whom: ranks and generations of the group behind `sync.backend: nccl`.

Rank 0 is the learner's first rank; each engine has as many ranks as GPUs, one after another. A group lives for as long
as its members do: an engine that was restarted is another member, so the next publish opens a new generation.

Example: two engines of two GPUs → offsets {actor-0: 1, actor-1: 3}, world size 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from protocol.weights import SyncGroup

ALIGNMENT = 64
"""Tensors start at multiples of this within a broadcast buffer, so that they can be viewed in place."""


class GroupPlanner:
    """Hands out the group for each publish: the last one again while its members are the same processes."""

    def __init__(self, ranks_per_engine: int, timeout_s: float, rendezvous: Callable[[], tuple[str, int]]) -> None:
        self._ranks = ranks_per_engine
        self._rendezvous = rendezvous
        self._members: tuple[str, ...] | None = None
        self._group = SyncGroup(generation=0, address="", port=0, world_size=1, offsets={}, timeout_s=timeout_s)

    def group_for(self, recipients: Sequence[str]) -> SyncGroup:
        """The group of exactly these engine processes; other members get a new generation and rendezvous."""
        if tuple(recipients) != self._members:
            address, port = self._rendezvous()
            self._group = replace(
                self._group,
                generation=self._group.generation + 1,
                address=address,
                port=port,
                world_size=1 + self._ranks * len(recipients),
                offsets={name: 1 + self._ranks * place for place, name in enumerate(recipients)},
            )
            self._members = tuple(recipients)
        return self._group


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each array of a bucket starts in the buffer that travels, and the buffer's size; all in bytes."""
    offsets, fill = [], 0
    for size in sizes:
        offsets.append(fill)
        fill += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, fill
