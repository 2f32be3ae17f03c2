"""Faults against the real pool, buffer and controller on real Ray, one after another, while a run goes on.

    loop thread  Controller.run(): collect → train → publish, with a learner that only counts
    main thread  waits until every actor works → injects → waits until every actor works again (recovery time)

| who waits | for what | who ends the wait |
|---|---|---|
| the injector | every actor SYNCED, an answer of the one hit | the pool; or `recovery_s`, which fails the run |
| the controller | segments, attestations | the pool's own deadlines: what is tested |

After the last fault the main thread sets `controller.stop`. What must hold then is in `FaultRun.verify`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.buffer import SegmentBuffer
from actors.controller import Controller
from actors.loop import LoopSettings
from actors.member import ActorState, Member
from actors.pool import RolloutPool
from actors.requests import RecordSource, RequestStream
from learner.ranks import get_all
from protocol.checksums import bucket_checksum
from protocol.contracts import RequestKey
from protocol.errors import Interrupted, SegmentsLost
from protocol.packing import plan_packs
from protocol.segments import PackPlan, SegmentRef
from protocol.weights import TensorEntry, WeightsManifest
from tests.actors.test_controller import FakeKeeper, FakeObserver, FakeStep

BATCH = 8
ARMED = ("raise_in_step", "garbage", "raise_in_load", "die_in_load", "wrong_checksum")
KILLED = ("sigkill_generating", "sigstop_generating", "sigkill_starting")
KINDS = (*KILLED, *ARMED, "node_lost")
HARMLESS = ("garbage",)
"""Faults after which no actor is restarted."""

Publish = Callable[[int], tuple[WeightsManifest, list[Any]]]


def tiny_publish(version: int) -> tuple[WeightsManifest, list[Any]]:
    """A publish that holds nothing but its version, for engines without weights."""
    bucket = (np.full(8, version % 256, np.uint8),)
    entry = TensorEntry(name="w", dtype="uint8", shape=(8,), bucket=0, index=0, num_bytes=8)
    manifest = WeightsManifest(
        version=version, full=True, tensors=(entry,), bucket_checksums=(bucket_checksum(bucket),), changed_tensors=1
    )
    return manifest, [ray.put(bucket)]


@dataclass
class CountingLearner:
    """Fetches its segments like a rank, and remembers their keys."""

    publisher: Publish
    step_s: float
    trained: list[RequestKey] = field(default_factory=list)
    steps: int = 0
    lost: int = 0
    """Objects that were gone, each with a group of segments."""

    def train_step(self, plan: PackPlan, segment_refs: Sequence[SegmentRef]) -> FakeStep:
        found, lost = get_all(list({segment.group for segment in segment_refs}), timeout_s=60)
        if lost:
            self.lost += len(lost)
            positions = tuple(position for position, segment in enumerate(segment_refs) if segment.group in lost)
            raise SegmentsLost(f"{len(lost)} objects are gone", positions)
        segments = [found[segment.group][segment.position] for segment in segment_refs]
        time.sleep(self.step_s)
        self.trained += [segment.key for segment in segments]
        self.steps += 1
        return FakeStep()

    def publish(self, version: int, full: bool) -> tuple[WeightsManifest, list[Any]]:
        return self.publisher(version)


@dataclass
class FaultRun:
    """One run with its faults."""

    pool: RolloutPool
    records: RecordSource
    learner: CountingLearner
    max_staleness: int
    recovery_s: float
    lose_node: Callable[[], None] | None = None
    """Kills the node that the first actor lives on, with its objects, and adds another."""
    seed: int = 0
    recoveries: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self.requests = RequestStream(self.records, seed=self.seed)
        self.observer = FakeObserver()
        self.controller = Controller(
            LoopSettings(
                batch_size=BATCH,
                m_steps=1,
                max_steps=10**6,
                max_staleness=self.max_staleness,
                eval_steps=0,
                top_k=5,
                capacity=1 << 20,
            ),
            pool=self.pool,
            learner=self.learner,
            buffer=SegmentBuffer(1 << 30, 4 * BATCH * (self.max_staleness + 1), 1 << 20),
            requests=self.requests,
            validation=[],
            plan=lambda lengths: plan_packs(lengths, capacity=1 << 20, num_ranks=1),
            observer=self.observer,
            keeper=FakeKeeper(),
        )

    def run(self, kinds: Sequence[str]) -> None:
        """Injects each of `kinds` in turn; raises what went wrong, then checks what must hold."""
        self.pool.start()
        with ThreadPoolExecutor(1, thread_name_prefix="loop") as threads:
            self._loop = threads.submit(self.controller.run)
            try:
                self._inject_all(kinds)
            finally:
                self.controller.stop = True
            with contextlib.suppress(Interrupted):
                self._loop.result(self.recovery_s)
        self.pool.close()
        self.verify()

    def verify(self) -> None:
        """0 records lost, 0 trained twice, in order; staleness was checked at every step by the loop itself."""
        asked = RequestStream(self.records, seed=self.seed).take(self.requests.position, min_version=0)
        gone = {outcome.key for outcome in self.observer.quarantined}
        expected = [request.key for _, request in asked if request.key not in gone]
        trained = self.learner.trained
        assert len(set(trained)) == len(trained), f"{len(trained) - len(set(trained))} records were trained twice"
        assert trained == expected[: len(trained)], "a record was lost, or trained out of order"
        assert len(trained) == self.controller.state.trained == self.learner.steps * BATCH
        staleness = [metrics["policy/staleness_max"] for _, metrics in self.observer.steps]
        assert max(staleness) <= self.max_staleness

    def _inject_all(self, kinds: Sequence[str]) -> None:
        for kind in kinds:
            self._wait(self._healthy, f"a healthy pool before {kind}")
            time.sleep(self._rng.uniform(0, 0.3))
            self.recoveries.append((kind, self._inject(kind)))

    def _inject(self, kind: str) -> float:
        """Seconds from the fault until the run is as before."""
        victim = self.pool._members[0] if kind == "node_lost" else self._rng.choice(self.pool._members)
        causes, steps = victim.causes.total(), self.learner.steps
        started, pid = time.monotonic(), victim.pid
        if kind in ARMED:
            ray.get(victim.handle.arm.options(concurrency_group="control").remote(kind), timeout=30)
        elif kind == "node_lost":
            assert self.lose_node is not None, "this run has no node to lose"
            self.lose_node()
        else:
            os.kill(victim.pid, signal.SIGSTOP if kind == "sigstop_generating" else signal.SIGKILL)
        if kind == "sigkill_starting":
            self._kill_the_next_start(victim, causes)
            causes += 1
        if kind not in HARMLESS:
            self._wait(lambda: victim.causes.total() > causes, f"the pool to notice {kind}")
        self._wait(self._healthy, f"recovery from {kind}")
        self._wait(lambda: victim.failures == 0, f"an answer of {victim.name} after {kind}")
        if kind in KILLED:
            self._wait(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} of the actor to end after {kind}")
        self._wait(lambda: self.learner.steps > steps + 1, f"training to go on after {kind}")
        return time.monotonic() - started

    def _kill_the_next_start(self, victim: Member, causes: int) -> None:
        self._wait(lambda: victim.causes.total() > causes, "the pool to notice the first kill")
        self._wait(lambda: victim.state is ActorState.STARTING and victim.handle is not None, "the restart")
        ray.kill(victim.handle)

    def _healthy(self) -> bool:
        status = self.pool.status()
        return len(status) > 0 and all(s.state == "synced" and not s.given_up for s in status)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.recovery_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"seed {self.seed}: waited {self.recovery_s:.0f} s for {what}: {self.pool.status()}"
                )
            if self._loop.done():
                self._loop.result()
                raise AssertionError("the loop ended before the last fault")
            time.sleep(0.02)
