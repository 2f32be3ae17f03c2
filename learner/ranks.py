"""The Ray actor around one `LearnerWorker`, and waiting on many of them: first failure wins, every wait ends.

Nothing heavy is imported at the top: torch and DeepSpeed read the environment that `start` sets when they are imported.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ray

from learner.results import PeerError
from learner.settings import LearnerSettings
from protocol.errors import LearnerDeadlineError, LearnerError, RollmatchError
from protocol.segments import Segment, SegmentRef
from protocol.weights import Bucket, SyncGroup, WeightsManifest

if TYPE_CHECKING:  # importing these imports torch
    from learner.results import RankStep
    from learner.worker import LearnerWorker

RENDEZVOUS_PORTS = range(20_000, 32_000)
"""Below the ports that systems hand out: an outgoing connection could take one of those at any moment."""
GRACE_S = 3.0
"""After the first failure: how long other ranks have to report theirs, which may be the cause."""
BROKEN_CONNECTION = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe")


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


def wait_all(calls: Mapping[int, ray.ObjectRef], timeout_s: float, what: str) -> list[Any]:
    """Results in the order of `calls`, which holds one call per rank.

    Raises:
        LearnerDeadlineError: not all ranks answered in `timeout_s`.
        What a rank raised, as soon as one does: its type where it is ours, else LearnerError, with the rank and its
        traceback in the message.
    """
    deadline = time.monotonic() + timeout_s
    waiting = list(calls.values())
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        done, waiting = ray.wait(waiting, num_returns=1, timeout=left, fetch_local=False)
        if not done:
            late = [rank for rank, call in calls.items() if call in waiting]
            raise LearnerDeadlineError(
                f"{what}: learner ranks {late} of {len(calls)} did not answer within {timeout_s:.0f} s; look at their "
                "logs, or raise cluster.step_timeout_s if the work is that long"
            )
        if failure_of(done[0]) is not None:
            _raise_root_cause(calls, what)
    return list(ray.get(list(calls.values())))


def failure_of(call: ray.ObjectRef) -> ray.exceptions.RayError | None:
    """What a finished call raised, if it did."""
    try:
        ray.get(call)
    except ray.exceptions.RayError as error:
        return error
    return None


def _raise_root_cause(calls: Mapping[int, ray.ObjectRef], what: str) -> NoReturn:
    """Raises the failure that explains the others: a rank that dies takes its peers' connections down with it."""
    done, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=GRACE_S, fetch_local=False)
    finished = {rank: failure_of(call) for rank, call in calls.items() if call in done}
    failures = [(rank, error) for rank, error in finished.items() if error is not None]
    rank, error = min(failures, key=lambda failure: _is_consequence(failure[1]))
    raise _named(error, rank, what) from error


def _is_consequence(error: ray.exceptions.RayError) -> bool:
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return isinstance(cause, PeerError) or any(word in str(cause).lower() for word in BROKEN_CONNECTION)


def _named(error: ray.exceptions.RayError, rank: int, what: str) -> RollmatchError:
    """The failure of a rank as an error of ours that says which rank, during what, and where."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    text = f"learner rank {rank} failed in {what}: {cause}"
    if cause is not error:
        text += f"\n{error}"  # Ray renders a task's error as the traceback of the process it happened in
    return type(cause)(text) if isinstance(cause, RollmatchError) else LearnerError(text)
