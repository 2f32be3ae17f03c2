"""Broadcast between the real two ends over a communicator of threads: NCCL itself is not verified on a GPU."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from actors.nccl_receiver import NcclReceiver
from deploy.sync_backends import BroadcastingLearner
from learner.nccl_sender import NcclSender
from learner.publisher import publish_as_is
from protocol.errors import SyncError
from protocol.sync_group import GroupPlanner
from protocol.weights import Bucket, SyncGroup, WeightsManifest

PROMPT_S = 0.2
"""Deadline of what must run into it; what must not has a minute."""


@dataclass
class Room:
    """One generation: who came, and a lane from the sender to each receiver."""

    group: SyncGroup
    lanes: dict[int, queue.Queue[npt.NDArray[np.uint8]]] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.everybody = threading.Barrier(self.group.world_size)
        self.taken = threading.Semaphore(0)

    def enter(self, rank: int) -> End:
        assert rank not in self.lanes, f"rank {rank} is taken"
        self.lanes[rank] = queue.Queue()
        self.everybody.wait(self.group.timeout_s)
        return End(self, rank)


@dataclass
class End:
    """Both protocols at once: `SendingEnd` for rank 0, `ReceivingEnd` for the others."""

    room: Room
    rank: int

    def broadcast(self, buffer: npt.NDArray[np.uint8]) -> None:
        for lane in self.room.lanes.values():
            lane.put(buffer)

    def wait(self, timeout_s: float) -> bool:
        return all(self.room.taken.acquire(timeout=timeout_s) for _ in range(self.room.group.world_size - 1))

    def receive(self, num_bytes: int) -> torch.Tensor:
        buffer = self.room.lanes[self.rank].get(timeout=60)
        assert buffer.nbytes == num_bytes
        self.room.taken.release()
        return torch.from_numpy(buffer)

    def close(self) -> None:
        self.room.closed.append(self.rank)


class Wire:
    """Opens ends; a room is found by its port, as a rendezvous is."""

    def __init__(self) -> None:
        self.rooms: dict[int, Room] = {}
        self._lock = threading.Lock()

    def __call__(self, group: SyncGroup) -> End:
        with self._lock:
            room = self.rooms.setdefault(group.port, Room(group))
        return room.enter(group.rank_offset)


class Engine:
    """A receiver with a model that remembers what was loaded."""

    def __init__(self, name: str, wire: Callable[[SyncGroup], End]) -> None:
        self.name = name
        self.receiver = NcclReceiver(wire)
        self.loaded: dict[str, torch.Tensor] = {}

    def load(self, manifest: WeightsManifest) -> tuple[str, ...]:
        assert manifest.group is not None
        own = replace(manifest.group, rank_offset=manifest.group.offsets[self.name])
        return self.receiver.receive(replace(manifest, group=own), self._take)

    def _take(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.loaded |= {name: tensor.clone() for name, tensor in tensors}


def planner(timeout_s: float = 60.0) -> GroupPlanner:
    ports = iter(range(7000, 7100))
    return GroupPlanner(1, timeout_s, lambda: ("localhost", next(ports)))


def weights(scale: float) -> dict[str, torch.Tensor]:
    """Odd sizes and three dtypes, so that views must be aligned."""
    return {
        "a": torch.full((3, 5), scale, dtype=torch.bfloat16),
        "b": torch.arange(7, dtype=torch.float32) * scale,
        "c": torch.full((1,), scale, dtype=torch.float16),
        "d": torch.full((40,), scale, dtype=torch.float32),
    }


def published(tensors: dict[str, torch.Tensor], group: SyncGroup) -> tuple[WeightsManifest, list[Bucket]]:
    *buckets, manifest = publish_as_is(tensors.items(), 1, bucket_bytes=64)
    assert isinstance(manifest, WeightsManifest)
    return replace(manifest, group=group), [bucket for bucket in buckets if not isinstance(bucket, WeightsManifest)]


def exchange(sender: NcclSender, engines: list[Engine], tensors: dict[str, torch.Tensor], group: SyncGroup) -> str:
    """One publish: everybody at once, as in production. What the sender reports."""
    manifest, buckets = published(tensors, group)
    assert len(buckets) > 1
    with ThreadPoolExecutor(max_workers=len(engines) + 1) as threads:
        sent = threads.submit(sender.send, group, buckets)
        loads = [threads.submit(engine.load, manifest) for engine in engines]
        assert all(load.result(timeout=60) == manifest.bucket_checksums for load in loads)
        return sent.result(timeout=60)


def test_every_engine_receives_every_tensor_and_the_group_is_kept_for_the_next_publish() -> None:
    wire, groups = Wire(), planner()
    sender, engines = NcclSender(wire), [Engine(f"actor-{i}", wire) for i in range(3)]
    for scale in (1.0, 2.0):
        group = groups.group_for([engine.name for engine in engines])
        assert exchange(sender, engines, weights(scale), group) == ""
        for engine in engines:
            assert engine.loaded.keys() == weights(scale).keys()
            assert all(torch.equal(engine.loaded[name], value) for name, value in weights(scale).items())
    assert list(wire.rooms) == [7000]


def test_a_restarted_engine_makes_a_new_generation_that_all_join() -> None:
    wire, groups = Wire(), planner()
    sender, engines = NcclSender(wire), [Engine("actor-0", wire), Engine("actor-1", wire)]
    exchange(sender, engines, weights(1.0), groups.group_for(["actor-0", "actor-1"]))
    engines[1] = Engine("actor-1-1", wire)
    assert exchange(sender, engines, weights(2.0), groups.group_for(["actor-0", "actor-1-1"])) == ""

    assert all(torch.equal(engine.loaded["b"], weights(2.0)["b"]) for engine in engines)
    assert sorted(wire.rooms[7000].closed) == [0, 1], "the two that were in the old group have left it"
    assert wire.rooms[7001].closed == []


def test_an_engine_that_does_not_come_ends_the_rendezvous_and_not_the_learner() -> None:
    wire, groups = Wire(), planner(PROMPT_S)
    sender, engine = NcclSender(wire), Engine("actor-1", wire)
    reason = sender.send(groups.group_for(["actor-0"]), published(weights(1.0), groups.group_for(["actor-0"]))[1])
    assert "rendezvous" in reason or "BrokenBarrier" in reason
    assert exchange(sender, [engine], weights(1.0), replace(groups.group_for(["actor-1"]), timeout_s=60.0)) == ""


def test_an_engine_that_leaves_in_between_ends_the_broadcast_at_its_deadline() -> None:
    wire, groups = Wire(), planner(PROMPT_S)
    group = groups.group_for(["actor-0"])
    manifest, buckets = published(weights(1.0), group)
    sender = NcclSender(wire)

    def dies_after_one_bucket() -> None:
        assert manifest.group is not None
        wire(replace(manifest.group, rank_offset=1)).room.taken.release()

    with ThreadPoolExecutor(max_workers=1) as threads:
        dying = threads.submit(dies_after_one_bucket)
        reason = sender.send(group, buckets)
        dying.result(timeout=60)
    assert reason.startswith("SyncError: sync group 1 of ['actor-0']: bucket 1 of")
    assert "sync.timeout_s" in reason
    assert wire.rooms[group.port].closed == [0], "the communicator was given up"


def test_bytes_that_changed_on_the_way_are_refused() -> None:
    wire, groups = Wire(), planner()
    group = groups.group_for(["actor-0"])
    manifest, _ = published(weights(1.0), group)
    _, others = published(weights(3.0), group)
    engine = Engine("actor-0", wire)
    with ThreadPoolExecutor(max_workers=1) as threads:
        threads.submit(NcclSender(wire).send, replace(group, timeout_s=PROMPT_S), others)
        with pytest.raises(SyncError, match="another checksum"):
            engine.load(manifest)
    assert engine.loaded == {}, "nothing of a wrong bucket is loaded"


class FakePool:
    """Says who can receive."""

    def recipients(self, full: bool) -> list[str]:
        return ["actor-1-1"] if full else ["actor-0"]


class FakeGroup:
    """Records broadcasts."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool, dict[str, int]]] = []

    def broadcast(self, version: int, full: bool, group: SyncGroup) -> Any:
        self.calls.append((version, full, dict(group.offsets)))
        return "manifest"


def test_a_publish_goes_to_those_who_can_take_it() -> None:
    learner = FakeGroup()
    broadcasting = BroadcastingLearner(learner, FakePool(), planner())  # type: ignore[arg-type]
    assert broadcasting.publish(4, False) == ("manifest", [])
    assert broadcasting.publish(4, True) == ("manifest", [])
    assert learner.calls == [(4, False, {"actor-0": 1}), (4, True, {"actor-1-1": 1})]
