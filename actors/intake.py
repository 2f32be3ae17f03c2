"""From admission to a whole window: requests out, outcomes in, the oldest segments first.

| who waits | for what | who ends the wait |
|---|---|---|
| `collect` | `effective_batch_size` segments | rollout actors; their deadlines are the pool's |
| admission | room: by staleness, in the buffer, and steps left to train | a version is attested; a window is released |
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from actors.buffer import Entry, SegmentBuffer
from actors.loop import LoopSettings, LoopState, Observer
from actors.outcome import Outcome
from actors.pool import RolloutPool
from actors.requests import RequestStream
from protocol.contracts import RequestKey
from protocol.event_metrics import generation_metrics, policy_metrics
from protocol.metrics import RolloutTotals
from protocol.segments import SegmentMeta
from protocol.staleness import admissible, admission_staleness, check_fresh


class Intake:
    """Knows which requests are under way; shares the loop's state with the controller, in one thread."""

    def __init__(
        self,
        settings: LoopSettings,
        pool: RolloutPool,
        buffer: SegmentBuffer,
        requests: RequestStream,
        observer: Observer,
        state: LoopState,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._buffer = buffer
        self._requests = requests
        self._observer = observer
        self.state = state
        self.attested = state.version
        """Newest version that every live engine serves; `WeightSync` writes it."""
        self._orders: OrderedDict[RequestKey, int] = OrderedDict()
        """Requests without an answer, by key: their positions in the run, ascending."""
        self._arrived: list[Outcome] = []
        """Outcomes since the last window was complete."""
        self._generated_s = 0.0
        """Seconds with requests under way since then."""
        self._waited_s = 0.0
        """Seconds in `collect` since then."""
        self._reported: tuple[list[Outcome], float, float] = ([], 0.0, 0.0)
        """The three above, of the window that is being trained."""

    @property
    def num_running(self) -> int:
        """Training requests without an answer."""
        return len(self._orders)

    @property
    def boundary(self) -> int:
        """Where a resume starts: every request before it was trained or quarantined."""
        waiting = [*self._orders.values(), *(entry.order for entry in self._buffer.ready())]
        return min(waiting, default=self._requests.position)

    @property
    def windows_left(self) -> int:
        """Windows that the steps that are left train, the present one included."""
        return -(-(self._settings.max_steps - self.state.step) // self._settings.m_steps)

    def roll_out_again(self, entries: Sequence[Entry], lost: set[int]) -> None:
        """Gives a window back: what is left of it is ready again, what is lost keeps its place in the order.

        The metrics of the window count what was generated for it in vain, too.
        """
        arrived, generated_s, waited_s = self._reported
        self._arrived = [*arrived, *self._arrived]
        self._generated_s += generated_s
        self._waited_s += waited_s
        self._buffer.requeue(entry for position, entry in enumerate(entries) if position not in lost)
        gone = [entries[position] for position in sorted(lost)]
        self._buffer.lose(gone)
        self.state.accepted -= len(gone)
        requests = [self._requests.again(entry.order, min_version=self.state.version) for entry in gone]
        orders = self._orders | {request.key: entry.order for request, entry in zip(requests, gone, strict=True)}
        self._orders = OrderedDict(sorted(orders.items(), key=itemgetter(1)))
        self._pool.submit(requests)

    def admit(self) -> None:
        """Sends as many requests as staleness allows (protocol.staleness has the proof), the buffer can hold, and the
        steps that are left can train."""
        settings, running = self._settings, len(self._orders)
        fresh = admissible(
            version=self.attested,
            max_staleness=admission_staleness(settings.max_staleness, packing_carry=settings.packing_carry),
            batch_size=settings.batch_size,
            accepted=self.state.accepted + self.state.rewound,
            running=running,
        )
        untrained = self.state.accepted - self.state.trained + running
        wanted = self.windows_left * settings.batch_size + self.state.carried - untrained
        self._admit(min(fresh, self._buffer.room(num_running=running), wanted))

    def _admit(self, room: int) -> None:
        """Sends so many requests, those of each window together: actors answer what came together together."""
        size = self._settings.batch_size
        while room > 0:
            counted = self.state.accepted + self.state.rewound + len(self._orders)
            batch = self._requests.take(min(room, size - counted % size), min_version=self.attested)
            self._orders.update({request.key: order for order, request in batch})
            self._pool.submit([request for _, request in batch])
            room -= len(batch)

    def take_in(self, timeout_s: float = 1.0) -> None:
        """What the actors have answered; waits for the first."""
        started, busy = time.monotonic(), bool(self._orders)
        for outcome, segment in self._pool.poll(timeout_s):
            self._accept(outcome, segment)
        if busy:
            self._generated_s += time.monotonic() - started

    def beside_evaluation(self) -> Callable[[Outcome, Any], None]:
        """What takes in the training answers that an evaluation, which polls itself, gets from now on."""
        last = time.monotonic()

        def take_in(outcome: Outcome, segment: Any) -> None:
            nonlocal last
            since, last = last, time.monotonic()
            self._generated_s += last - since
            self._accept(outcome, segment)

        return take_in

    def collect(self, check_stop: Callable[[], None]) -> list[Entry]:
        """Waits for one window's segments, those carried into it included; oldest requests first, whatever the order of
        arrival."""
        started = time.monotonic()
        wanted = self._settings.batch_size + self.state.carried
        while (takable := self._buffer.num_takable(self._oldest_running)) < wanted:
            self.admit()
            self._observer.phase("rollout", f"{wanted - takable} of {wanted} segments")
            self.take_in()
            check_stop()
        self._waited_s += time.monotonic() - started
        return self._buffer.take(wanted, oldest_running=self._oldest_running)

    def metrics(self, entries: Sequence[Entry]) -> dict[str, float]:
        """Of the segments that a window trains, and of what arrived since the window before."""
        metrics = self._rollout_metrics([entry.meta for entry in entries], self._arrived, self._generated_s)
        metrics["time/wait_rollouts_s"] = self._waited_s
        self._reported = self._arrived, self._generated_s, self._waited_s
        self._arrived, self._generated_s, self._waited_s = [], 0.0, 0.0
        return metrics

    @property
    def _oldest_running(self) -> int | None:
        return next(iter(self._orders.values()), None)

    def _accept(self, outcome: Outcome, segment: Any) -> None:
        self._arrived.append(outcome)
        self._observer.outcome(outcome)
        if outcome.meta is None:
            self.state.quarantined += self._observer.quarantine(outcome)
            del self._orders[outcome.key]  # where the quarantine ends the run, a resume asks for the record again
            return
        self._buffer.put(outcome.meta, segment, order=self._orders.pop(outcome.key))
        self.state.accepted += 1

    def _rollout_metrics(self, metas: list[SegmentMeta], arrived: list[Outcome], seconds: float) -> dict[str, float]:
        for meta in metas:
            check_fresh(meta, self.state.version, self._settings.max_staleness)
        totals = RolloutTotals.of(meta.stats for meta in metas)
        self.state.versions_used |= {version for meta in metas for version in (meta.first_version, meta.last_version)}
        descs = self._settings.desc_enabled and self.state.step % self._settings.desc_every == 0
        return (
            totals.rollout_metrics(self._settings.top_k, desc_enabled=descs)
            | generation_metrics([outcome.new_tokens for outcome in arrived if outcome.new_tokens], seconds)
            | policy_metrics(metas, self.state.version)
            | {
                "time/rollout_parse_match_s": sum(outcome.parse_match_s for outcome in arrived),
                "time/rollout_teacher_encode_s": sum(outcome.encode_s for outcome in arrived),
                "rollout/quarantined": float(self.state.quarantined),
                "buffer/bytes": float(self._buffer.num_bytes),
                "buffer/segments": float(self._buffer.num_segments),
                "buffer/taken": float(self._buffer.num_taken),
                "train/epoch": self._requests.epochs(self.state.trained),
            }
        )
