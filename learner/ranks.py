"""The Ray actor around one `LearnerWorker`: its place among the ranks, and the segments that it fetches for the worker.

Nothing heavy is imported at the top: torch and DeepSpeed read the environment that `start` sets when they are imported.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from learner.settings import LearnerSettings
from protocol.errors import LearnerError
from protocol.segments import Segment, SegmentRef
from protocol.weights import Bucket, SyncGroup, WeightsManifest

if TYPE_CHECKING:  # importing these imports torch
    from learner.results import RankStep
    from learner.worker import LearnerWorker

RENDEZVOUS_PORTS = range(20_000, 32_000)
"""Below the ports that systems hand out: an outgoing connection could take one of those at any moment."""


class LearnerRank:
    """One process of the group. Methods are called by `LearnerGroup` only, on all ranks in the same order."""

    def __init__(self, rank: int, world_size: int, num_gpus: float) -> None:
        self._rank = rank
        self._world_size = world_size
        self._num_gpus = num_gpus
        self._worker: LearnerWorker | None = None
        self._groups: dict[ray.ObjectRef, tuple[Segment, ...]] = {}
        self._packs: list[list[Segment]] = []
        self._fetch_s = 0.0

    def where(self) -> tuple[str, str, int]:
        """(node id, address, a free port): what the group needs to arrange a rendezvous."""
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), free_port()

    def start(self, settings: LearnerSettings, address: str, port: int, local_rank: int, local_size: int) -> None:
        """Joins the process group and builds the worker."""
        on_gpu = self._num_gpus > 0
        os.environ.update(
            RANK=str(self._rank),
            WORLD_SIZE=str(self._world_size),
            # Ray shows each rank its own GPU only, as device 0.
            LOCAL_RANK="0" if on_gpu else str(local_rank),
            LOCAL_SIZE=str(local_size),
            MASTER_ADDR=address,
            MASTER_PORT=str(port),
        )
        if not on_gpu:
            os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
        from learner.worker import LearnerWorker

        self._worker = LearnerWorker(settings)

    def fetch(self, packs: Sequence[Sequence[SegmentRef]], timeout_s: float) -> list[ray.ObjectRef]:
        """Gets this rank's own segments for the next `train_step`; returns the groups whose objects are lost.

        Apart from the step, because a rank that misses a segment must not leave its peers waiting in a collective.
        What the step before has fetched is kept: a window that is trained again is not fetched again.
        """
        started = time.monotonic()
        wanted = dict.fromkeys(segment.group for pack in packs for segment in pack)
        arrived, lost = get_all([group for group in wanted if group not in self._groups], timeout_s)
        known = self._groups | arrived
        self._groups = {group: known[group] for group in wanted if group in known}
        if not lost:
            self._packs = [[self._groups[segment.group][segment.position] for segment in pack] for pack in packs]
        self._fetch_s = time.monotonic() - started
        return lost

    def train_step(self) -> RankStep:
        """Trains on what `fetch` has brought."""
        return self._ready.train_step(self._packs, fetch_s=self._fetch_s)

    def publish(
        self, version: int, full: bool, group: SyncGroup | None = None
    ) -> Iterator[Bucket | WeightsManifest | str]:
        """A streaming generator on rank 0: what it yields belongs to the caller and outlives this process."""
        yield from self._ready.publish(version, full, group)

    def join_publish(self, version: int, full: bool) -> None:
        """The other ranks' part of a publish."""
        for _ in self._ready.publish(version, full):
            raise AssertionError("only rank 0 publishes")

    def save_checkpoint(self, folder: Path) -> None:
        self._ready.save_checkpoint(folder)

    def load_checkpoint(self, folder: Path) -> None:
        self._ready.load_checkpoint(folder)

    def export_merged(self, folder: Path) -> None:
        self._ready.export_merged(folder)

    @property
    def _ready(self) -> LearnerWorker:
        if self._worker is None:
            raise LearnerError(f"learner rank {self._rank} was not started; call LearnerGroup.start first")
        return self._worker


def free_port() -> int:
    """A port of `RENDEZVOUS_PORTS` that nobody listens on. Between this look and torch's use another process may take
    it, which the range makes unlikely: nothing is given a port of it by itself."""
    for port in random.SystemRandom().sample(RENDEZVOUS_PORTS, len(RENDEZVOUS_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise LearnerError(f"no free port in {RENDEZVOUS_PORTS}; end what listens there, all of them are taken")


def local_ranks(nodes: Sequence[str]) -> list[tuple[int, int]]:
    """(rank within its node, ranks on that node) of each rank."""
    sizes, seen = Counter(nodes), Counter[str]()
    found = []
    for node in nodes:
        found.append((seen[node], sizes[node]))
        seen[node] += 1
    return found


LOST = (ray.exceptions.ObjectLostError, ray.exceptions.RayActorError, ray.exceptions.RayTaskError)
"""How a segment fails to be there: its node is gone, or its process died or failed while it handed the segment over."""


def get_all(
    groups: Sequence[ray.ObjectRef], timeout_s: float
) -> tuple[dict[ray.ObjectRef, tuple[Segment, ...]], list[ray.ObjectRef]]:
    """What the references hold, and those whose objects are lost."""
    try:
        return dict(zip(groups, ray.get(list(groups), timeout=timeout_s), strict=True)), []
    except LOST:
        pass  # one by one, to learn which
    found, lost = {}, []
    for group in groups:
        try:
            found[group] = ray.get(group, timeout=timeout_s)
        except LOST:
            lost.append(group)
    return found, lost
