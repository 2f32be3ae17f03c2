"""Random schedules for the real controller and buffer: actors of any speed that crash, records that fail, publishes
that drain, continue or abort. What must hold in every one of them:

- no segment is trained at version v that was begun before version v - max_staleness (`check_fresh` raises in the loop);
- every request is trained exactly once, in request order, or quarantined, also where windows carry (`protocol.carry`);
- nothing hangs (within `MAX_POLLS`), and the bounds of the buffer are kept.

`python -m tests.actors.staleness_simulation --schedules 20000` runs more of them than the test does.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from actors.buffer import SegmentBuffer
from actors.controller import Controller
from actors.engine import LoadReport
from actors.loop import LoopSettings
from actors.outcome import Outcome
from actors.requests import RequestStream
from protocol.carry import plan_carry
from protocol.contracts import RequestKey, RolloutRequest
from protocol.packing import plan_packs
from protocol.segments import SegmentMeta, SegmentStats
from protocol.weights import WeightsManifest
from tests.actors.test_controller import FakeKeeper, FakeLearner, FakeObserver, Records

MAX_POLLS = 10_000
"""That the loop waits for; the longest schedules take some 200."""
SEGMENT_BYTES = 10
CAPACITY = 120


@dataclass
class Actor:
    """Running requests, each with the version it was begun at and the tokens it still needs."""

    version: int = 0
    loading: int | None = None
    running: dict[RequestKey, tuple[RolloutRequest, int, int]] = field(default_factory=dict)


class RandomPool:
    """Each poll lets some random things happen."""

    awaits_full = False

    def __init__(self, rng: random.Random, num_actors: int, in_flight: str) -> None:
        self._rng = rng
        self._in_flight = in_flight
        self._actors = [Actor() for _ in range(num_actors)]
        self._queue: deque[RolloutRequest] = deque()
        self._crash_rate, self._fail_rate = rng.choice([0.0, 0.02, 0.1]), rng.choice([0.0, 0.05])
        self.reports: list[LoadReport] = []
        self._version = 0
        self._polls_left = MAX_POLLS

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        self._queue.extend(requests)

    def publish(self, manifest: WeightsManifest, refs: Sequence[Any]) -> None:
        self._version = manifest.version
        self.reports = [LoadReport(version=manifest.version, bucket_checksums=(), load_seconds=0.0)]
        for actor in self._actors:
            actor.loading = manifest.version

    @property
    def synced(self) -> bool:
        return all(actor.loading is None for actor in self._actors)

    def wake(self) -> None: ...

    def poll(self, timeout_s: float = 1.0) -> list[tuple[Outcome, Any]]:
        outcomes: list[tuple[Outcome, Any]] = []
        time.sleep(0)  # the learner's thread takes no longer than it needs
        self._polls_left -= timeout_s >= 1.0  # shorter ones are of a learner that works, and as many as it takes
        assert self._polls_left, f"no end after {MAX_POLLS} polls: version {self._version}, {len(self._queue)} queued"
        for _ in range(self._rng.randint(0, 8)):
            self._event(self._rng.choice(self._actors), outcomes)
        return outcomes

    def _event(self, actor: Actor, outcomes: list[tuple[Outcome, Any]]) -> None:
        if self._rng.random() < self._crash_rate:  # it comes back with the published version
            self._queue.extendleft(request for request, _, _ in reversed(actor.running.values()))
            actor.running.clear()
            actor.version, actor.loading = self._version, None
        elif actor.loading is not None:
            self._load(actor, outcomes)
        elif self._queue and self._rng.random() < 0.5:
            request = self._queue.popleft()
            assert actor.version >= request.min_version, "an actor got a request that it is too old for"
            actor.running[request.key] = (request, actor.version, self._rng.choice([1, 1, 2, 3, 20]))
        else:
            self._decode(actor, outcomes)

    def _load(self, actor: Actor, outcomes: list[tuple[Outcome, Any]]) -> None:
        if self._in_flight == "drain" and actor.running:
            self._decode(actor, outcomes)
            return
        assert actor.loading is not None
        actor.version, actor.loading = actor.loading, None
        if self._in_flight == "abort":
            for key, (request, _, left) in actor.running.items():
                actor.running[key] = (request, actor.version, left)

    def _decode(self, actor: Actor, outcomes: list[tuple[Outcome, Any]]) -> None:
        if not actor.running:
            return
        key = self._rng.choice(list(actor.running))
        request, first, left = actor.running.pop(key)
        if left > 1:
            actor.running[key] = (request, first, left - 1)
        elif self._rng.random() < self._fail_rate:
            outcomes.append((Outcome(key=key, failure="ImageError: gone"), None))
        else:
            length = self._rng.choice([20, 60, 100])
            outcomes.append((Outcome(key=key, meta=meta(key, length, first, actor.version)), key))


def meta(key: RequestKey, length: int, first: int, last: int) -> SegmentMeta:
    return SegmentMeta(
        key=key,
        length=length,
        num_bytes=SEGMENT_BYTES,
        first_version=first,
        last_version=last,
        stats=SegmentStats(train_len=50),
    )


def check_schedule(seed: int) -> int:
    """Runs one schedule and checks it; returns the largest staleness that was trained."""
    rng = random.Random(seed)
    batch, staleness, m_steps = rng.randint(1, 5), rng.randint(0, 3), rng.randint(1, 2)
    max_steps = rng.randint(1, 8)
    carry, drop_last = staleness > 0 and rng.random() < 0.5, rng.random() < 0.5
    packs = {"capacity": CAPACITY, "num_ranks": 1}
    log: list[str] = []
    learner, observer, requests = FakeLearner(log), FakeObserver(), RequestStream(Records(), seed=0)
    segments = batch * (staleness + 1)
    max_bytes = rng.choice([segments, batch * (1 + carry)]) * SEGMENT_BYTES
    controller = Controller(
        LoopSettings(
            batch_size=batch,
            m_steps=m_steps,
            max_steps=max_steps,
            max_staleness=staleness,
            eval_steps=0,
            packing_carry=carry,
            packing_drop_last=drop_last,
            top_k=5,
            capacity=CAPACITY,
        ),
        pool=RandomPool(rng, rng.randint(1, 4), rng.choice(["drain", "continue", "abort"])),  # type: ignore[arg-type]
        learner=learner,
        buffer=SegmentBuffer(max_bytes, segments, SEGMENT_BYTES),
        requests=requests,
        validation=[],
        plan=partial(plan_carry, min_fill=0.9, **packs) if carry else partial(plan_packs, **packs),
        observer=observer,
        keeper=FakeKeeper(),
    )
    state = controller.run()
    trained = [key for window in learner.trained[::1] for key in window]
    windows = -(-max_steps // m_steps)
    once = list(dict.fromkeys(trained))
    asked = RequestStream(Records(), seed=0).take(requests.position, min_version=0)
    gone = {outcome.key for outcome in observer.quarantined}
    expected = [request.key for _, request in asked if request.key not in gone]
    assert once == expected[: len(once)], f"seed {seed}: windows are not in request order"
    untrained = state.carried if drop_last else 0
    assert len(once) + untrained == windows * batch, f"seed {seed}: {len(once)} trained of {windows * batch}"
    assert state.trained == len(once), f"seed {seed}: the count of trained segments is wrong"
    assert state.carried == untrained, f"seed {seed}: a flush carried something"
    assert state.accepted == state.trained + untrained, f"seed {seed}: rollouts that nobody needed"
    return int(max(metrics["policy/staleness_max"] for _, metrics in observer.steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=20000)
    worst = [check_schedule(seed) for seed in range(parser.parse_args().schedules)]
    print({staleness: worst.count(staleness) for staleness in sorted(set(worst))})


if __name__ == "__main__":
    main()
