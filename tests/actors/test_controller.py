"""The loop's order of events, with a pool that answers in any order and a learner that only counts."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from actors.buffer import SegmentBuffer
from actors.controller import Controller
from actors.engine import LoadReport
from actors.loop import LoopSettings, LoopState, TrainedWindow
from actors.outcome import Outcome
from actors.requests import RequestStream
from protocol.contracts import Record
from protocol.errors import (
    DataFailure,
    EngineError,
    ImageError,
    Interrupted,
    LearnerError,
    NothingChangedError,
    RecordError,
    SegmentsLost,
)
from protocol.packing import plan_packs
from protocol.segments import PackPlan, SegmentMeta, SegmentStats
from protocol.unread import AnyRequest, RecordLine
from protocol.weights import TensorEntry, WeightsManifest


class Records:
    def __len__(self) -> int:
        return 1000

    def read(self, rows: Iterable[tuple[int, int]]) -> Iterator[Record]:
        for index, _ in rows:
            yield Record(index=index, source=f"t:{index + 1}", images=("x.png",), width=8, height=8, objects=())


def lines(*rows: int) -> list[RecordLine]:
    """Of a validation file."""
    rest: Any = {"text": b"", "root": "", "confined_to": None, "ordering": "sorted", "seed": 0, "epoch": 0}
    return [RecordLine(index=row, source=f"v:{row + 1}", **rest) for row in rows]


class FakePool:
    """Answers two requests per poll, newest first: arrival order is never request order."""

    def __init__(self, log: list[str], fails: Callable[[int], bool]) -> None:
        self._log = log
        self._fails = fails
        self._open: deque[AnyRequest] = deque()
        self._answered = 0
        self.handed_over: list[int] = []
        self.version = 0
        self.published = SimpleNamespace(version=0)

    @property
    def num_open(self) -> int:
        return len(self._open)

    def submit(self, requests: Sequence[AnyRequest]) -> None:
        self._open.extend(requests)
        self.handed_over.append(len(requests))

    def wake(self) -> None: ...

    def poll(self, timeout_s: float = 1.0) -> list[tuple[Outcome, Any]]:
        if timeout_s < 1.0:  # the learner is at work meanwhile: these actors are slower than it
            return []
        return [self._answer(self._open.pop()) for _ in range(min(2, len(self._open)))]

    def _answer(self, request: AnyRequest) -> tuple[Outcome, Any]:
        self._answered += 1
        if self._fails(self._answered):
            return Outcome(key=request.key, failure="ImageError: gone"), None
        if request.key.evaluates:
            stats = SegmentStats(gt_objects=2, valid_predictions=1)
            return Outcome(key=request.key, evaluated=stats, trace=b"kept" if request.traced else None), None
        meta = SegmentMeta(
            key=request.key,
            length=100,
            num_bytes=10,
            first_version=self.version,
            last_version=self.version,
            stats=SegmentStats(train_len=50),
        )
        return Outcome(key=request.key, meta=meta, new_tokens=50), f"ref of {request.key}"

    def sleep(self, *, last: bool = False) -> None:
        self._log.append(f"sleep, {self.num_open} in flight")

    def publish(self, manifest: WeightsManifest, refs: Sequence[Any]) -> None:
        self._log.append(f"sync {manifest.version}, {self.num_open} in flight")
        self.version = manifest.version
        self.published.version = manifest.version
        self.reports = [LoadReport(version=manifest.version, bucket_checksums=(), load_seconds=0.0)]

    synced = True
    awaits_full = False


class FakeStep:
    busy_s = (0.5,)

    def metrics(self) -> dict[str, float]:
        return {"loss/ce": 1.0}


@dataclass
class FakeLearner:
    log: list[str]
    changed: int = 1
    trained: list[list[str]] = field(default_factory=list)
    loses: tuple[int, ...] = ()
    """Positions whose objects are gone, once."""
    loses_after: int = 0
    """Windows that are trained before."""

    def train_step(self, plan: PackPlan, segment_refs: Sequence[Any]) -> FakeStep:
        if self.loses and len(self.trained) == self.loses_after:
            lost, self.loses = self.loses, ()
            raise SegmentsLost("gone", lost)
        self.log.append(f"train {len(segment_refs)}")
        self.trained.append(list(segment_refs))
        return FakeStep()

    def publish(self, version: int, full: bool) -> tuple[WeightsManifest, list[Any]]:
        tensor = TensorEntry(name="w", dtype="float32", shape=(1,), bucket=0, index=0, num_bytes=4)
        manifest = WeightsManifest(
            version=version,
            full=full,
            tensors=(tensor,),
            bucket_checksums=("c",),
            changed_tensors=0 if full else self.changed,
            extra={"optimizer_steps": float(not full)},
        )
        return manifest, ["bucket"]


@dataclass
class FakeObserver:
    steps: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    quarantined: list[Outcome] = field(default_factory=list)
    windows: list[TrainedWindow] = field(default_factory=list)
    answered: list[Outcome] = field(default_factory=list)

    def phase(self, name: str, waiting_for: str) -> None: ...

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append((step, dict(metrics)))

    def outcome(self, outcome: Outcome) -> None: ...

    def evaluated(self, outcome: Outcome) -> None:
        self.answered.append(outcome)

    def event(self, kind: str, **fields: Any) -> None: ...

    def window(self, window: TrainedWindow) -> None:
        self.windows.append(window)

    def quarantine(self, outcome: Outcome) -> bool:
        self.quarantined.append(outcome)
        return True


@dataclass
class FakeKeeper:
    every: int | None = None
    saved: list[tuple[dict[str, Any], int]] = field(default_factory=list)

    def due(self, step: int) -> bool:
        return self.every is not None and step % self.every == 0

    def snapshot(self, state: LoopState, position: int) -> Callable[[], str]:
        self.saved.append((json.loads(json.dumps(state.as_mapping())), position))
        return self.write

    def write(self) -> str:
        return "path"


@dataclass
class Loop:
    """A controller and everything it talks to."""

    log: list[str]
    learner: FakeLearner
    observer: FakeObserver
    keeper: FakeKeeper
    controller: Controller


def build(
    *,
    fails: Callable[[int], bool] = lambda _: False,
    changed: int = 1,
    position: int = 0,
    state: LoopState | None = None,
    validation: int = 0,
    **settings: Any,
) -> Loop:
    log: list[str] = []
    learner, observer, keeper = FakeLearner(log, changed), FakeObserver(), FakeKeeper()
    chosen = {"batch_size": 4, "m_steps": 1, "max_steps": 3, "max_staleness": 0, "eval_steps": 0, "capacity": 1000}
    controller = Controller(
        LoopSettings(**chosen | settings, top_k=5),
        pool=FakePool(log, fails),  # type: ignore[arg-type]
        learner=learner,
        buffer=SegmentBuffer(10**6, 100),
        requests=RequestStream(Records(), seed=0, position=position),
        validation=lines(*range(validation)),
        plan=lambda lengths: plan_packs(lengths, capacity=1000, num_ranks=1),
        observer=observer,
        keeper=keeper,
        state=state,
    )
    return Loop(log, learner, observer, keeper, controller)


def test_a_window_is_rolled_out_trained_and_published_before_the_next_begins() -> None:
    loop = build(m_steps=2, max_steps=4)
    state = loop.controller.run()

    assert loop.log == [
        "sync 0, 0 in flight",
        *("train 4", "train 4", "sync 1, 0 in flight"),
        *("train 4", "train 4", "sync 2, 0 in flight"),
    ]
    assert (state.step, state.version, state.accepted, state.trained) == (4, 2, 8, 8)
    assert state.versions_used == {0, 1}, "that of the last window's weights answered nobody"


def test_engines_that_share_the_learners_device_leave_it_before_each_training_and_each_save() -> None:
    loop = build(max_steps=2, takes_turns=True)
    loop.controller.run()

    assert loop.log == [
        "sync 0, 0 in flight",
        *("sleep, 0 in flight", "train 4", "sync 1, 0 in flight"),
        *("sleep, 0 in flight", "train 4", "sync 2, 0 in flight"),
        "sleep, 0 in flight",  # the last checkpoint
    ]


def test_an_engine_that_cannot_read_a_past_broadcast_gets_the_version_again_in_full() -> None:
    loop = build(max_steps=1)
    published, pool = loop.learner.publish, loop.controller._pool
    returns = iter([True])  # after the first publish an actor comes back

    def publish(version: int, full: bool) -> tuple[WeightsManifest, list[Any]]:
        loop.log.append(f"publish {version}" + (" in full" if full else ""))
        pool.awaits_full = next(returns, False)  # type: ignore[misc]
        return published(version, full)

    loop.learner.publish = publish  # type: ignore[method-assign]
    loop.controller.run()
    publishes = [line for line in loop.log if line.startswith("publish")]
    assert publishes == ["publish 0 in full", "publish 0 in full", "publish 1"]


def test_an_optimizer_step_that_trains_a_window_again_generated_nothing() -> None:
    loop = build(m_steps=2, max_steps=4)
    loop.controller.run()
    steps = [metrics for _, metrics in loop.observer.steps]

    reuse, completed, began = (
        [metrics[f"rollout/buffer_{name}"] for metrics in steps]
        for name in ("reuse", "completed_steps", "window_step0")
    )
    assert (reuse, completed, began) == ([0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 2, 2])
    assert [metrics["time/rollout_generate_s"] > 0 for metrics in steps] == [True, False, True, False]
    assert ["rollout/gen_new_tokens_total" in metrics for metrics in steps] == [True, False, True, False]
    assert ["time/rollout_parse_match_s" in metrics for metrics in steps] == [True, False, True, False]
    assert all(metrics["rollout/segments"] == 4 for metrics in steps), "what was trained is told each time"


@pytest.mark.parametrize("failing", [set(), {5}])
def test_the_requests_of_each_window_are_handed_over_together_and_a_quarantined_one_is_replaced_alone(
    failing: set[int],
) -> None:
    loop = build(max_steps=5, max_staleness=2, fails=failing.__contains__)
    loop.controller.run()
    handed_over = loop.controller._pool.handed_over  # type: ignore[attr-defined]

    assert sorted(handed_over) == [1] * len(failing) + [4] * 5


def test_windows_take_requests_in_order_whatever_order_they_were_answered_in() -> None:
    loop = build()
    loop.controller.run()
    order = [f"ref of {request.key}" for _, request in RequestStream(Records(), seed=0).take(12, 0)]

    assert [ref for window in loop.learner.trained for ref in window] == order


def test_each_trained_window_is_reported_once_with_its_steps_and_its_keys_in_order() -> None:
    loop = build(m_steps=2, max_steps=5, validation=2)
    loop.controller.run()
    windows = loop.observer.windows
    keys = [f"ref of {segment.key}" for window in windows for segment in window.segments]

    assert [(w.first_step, w.last_step, w.version) for w in windows] == [(1, 2, 0), (3, 4, 1), (5, 5, 2)]
    assert keys == [ref for window in loop.learner.trained[::2] for ref in window]


def test_a_quarantined_record_is_replaced_so_that_a_window_stays_whole() -> None:
    loop = build(fails=lambda answered: answered in (2, 5))
    state = loop.controller.run()

    assert [len(window) for window in loop.learner.trained] == [4, 4, 4]
    assert state.quarantined == len(loop.observer.quarantined) == 2
    assert all(metrics["policy/staleness_max"] == 0 for _, metrics in loop.observer.steps)


def test_with_staleness_one_the_next_window_is_in_flight_at_a_publish_and_never_older() -> None:
    loop = build(max_staleness=1, max_steps=5)
    loop.controller.run()

    assert any(line.endswith(", 4 in flight") for line in loop.log if line.startswith("sync"))
    assert {metrics["policy/staleness_max"] for _, metrics in loop.observer.steps} <= {0.0, 1.0}


def test_a_publish_that_changes_nothing_after_a_step_ends_the_run() -> None:
    with pytest.raises(NothingChangedError, match=r"0 of 1 published tensors changed"):
        build(changed=0).controller.run()


@pytest.mark.parametrize(("max_staleness", "loses_after"), [(0, 0), (2, 1)])
def test_a_lost_segment_is_rolled_out_again_and_trained_in_its_old_place(max_staleness: int, loses_after: int) -> None:
    """Also where younger requests are running."""
    whole, loses = (build(max_staleness=max_staleness, max_steps=6) for _ in range(2))
    whole.controller.run()
    loses.learner.loses, loses.learner.loses_after = (1, 3), loses_after
    state = loses.controller.run()

    assert loses.learner.trained == whole.learner.trained
    assert (state.accepted, state.trained) == (24, 24)


def test_the_metrics_of_a_window_count_the_rollouts_that_were_lost() -> None:
    loop = build(max_steps=2)
    loop.learner.loses = (1, 3)
    loop.controller.run()
    assert [metrics["rollout/gen_new_tokens_total"] for _, metrics in loop.observer.steps] == [6 * 50, 4 * 50]


def test_fills_are_told_with_packing_and_what_a_window_had_with_m_steps() -> None:
    reported: dict[tuple[int | None, int], set[str]] = {}
    for capacity in (1000, None):
        for m_steps in (1, 2):
            loop = build(max_steps=2, capacity=capacity, m_steps=m_steps)
            loop.controller.run()
            reported[capacity, m_steps] = {name for _, metrics in loop.observer.steps for name in metrics}
    for (capacity, m_steps), names in reported.items():
        assert ("packing/post_rollout_fill" in names) == (capacity is not None)
        assert ("time/post_rollout_pack_s" in names) == (capacity is not None)
        assert ("rollout/buffer_reuse" in names) == (m_steps > 1)
        assert "packing/micro_batches" in names


def test_the_last_window_may_have_fewer_steps_than_the_others() -> None:
    loop = build(m_steps=2, max_steps=3)
    assert loop.controller.run().step == 3
    assert loop.log[-2:] == ["train 4", "sync 2, 0 in flight"]


def test_evaluation_runs_before_at_each_multiple_and_after() -> None:
    loop = build(validation=3, eval_steps=2, max_steps=5)
    loop.controller.run()
    assert [step for step, _ in loop.controller.state.evaluations] == [0, 2, 4, 5]


def test_the_answers_to_the_same_first_validation_records_are_kept_at_each_evaluation() -> None:
    loop = build(validation=3, eval_steps=2, max_steps=4, num_eval_traced=2)
    loop.controller.run()
    kept = [outcome.key.record for outcome in loop.observer.answered if outcome.trace]
    assert len(loop.observer.answered) == 3 * 3
    assert sorted(kept) == [0, 0, 0, 1, 1, 1]


def test_an_epoch_that_ends_within_a_window_is_evaluated_after_that_window() -> None:
    loop = build(validation=3, eval_steps=Fraction(10, 3), max_steps=11)
    loop.controller.run()
    assert [step for step, _ in loop.controller.state.evaluations] == [0, 4, 7, 10, 11]


def test_a_record_that_was_drawn_twice_is_scored_twice() -> None:
    loop = build(validation=3, max_steps=1)
    loop.controller._validation = lines(7, 7, 8)
    loop.controller.run()
    (_, before), _ = loop.controller.state.evaluations
    assert before["eval_rollout_samples"] == 3


def test_a_stop_finishes_the_window_saves_and_leaves() -> None:
    loop = build(m_steps=2, max_steps=100)
    train_step = loop.learner.train_step

    def stop_in_the_middle(plan: PackPlan, segment_refs: Sequence[Any]) -> FakeStep:
        loop.controller.stop = True
        return train_step(plan, segment_refs)

    loop.learner.train_step = stop_in_the_middle  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="step 2, version 1"):
        loop.controller.run()
    ((saved, position),) = loop.keeper.saved
    assert (saved["step"], saved["version"], position) == (2, 1, 4)


class QuickPool(FakePool):
    """Answers while the learner works, too."""

    ends_the_run = False

    def poll(self, timeout_s: float = 1.0) -> list[tuple[Outcome, Any]]:
        if self.ends_the_run:
            raise EngineError("no actor is left")
        return super().poll()


class FastPool(FakePool):
    """Has answered everything at the next look, oldest first, also while the learner works."""

    def poll(self, timeout_s: float = 1.0) -> list[tuple[Outcome, Any]]:
        return [self._answer(self._open.popleft()) for _ in range(len(self._open))]


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_a_stop_is_heeded_after_the_window_also_where_actors_are_faster_than_the_learner(max_staleness: int) -> None:
    loop = build(max_steps=20, max_staleness=max_staleness)
    loop.controller._pool.__class__ = FastPool
    train = loop.learner.train_step

    def slow(plan: PackPlan, segment_refs: Sequence[Any]) -> FakeStep:
        time.sleep(0.02)  # polls happen meanwhile
        loop.controller.stop |= len(loop.learner.trained) == 2
        return train(plan, segment_refs)

    loop.learner.train_step = slow  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="step 3"):
        loop.controller.run()
    assert [(saved["step"], saved["version"], position) for saved, position in loop.keeper.saved] == [(3, 3, 12)]


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_what_is_answered_beside_an_evaluation_is_in_its_windows_metrics(max_staleness: int) -> None:
    loop = build(max_steps=6, max_staleness=max_staleness, validation=4, eval_steps=1)
    loop.controller._pool.__class__ = FastPool
    loop.controller.run()
    tokens = [metrics.get("rollout/gen_new_tokens_total", 0.0) for _, metrics in loop.observer.steps]
    assert sum(tokens) == 6 * 4 * 50


def test_the_next_window_is_generated_while_a_checkpoint_is_written() -> None:
    loop = build(max_steps=2)
    loop.controller._pool.__class__ = QuickPool
    loop.keeper.every = 1
    accepted: list[int] = []

    def write() -> str:
        deadline = time.monotonic() + 30
        while (now := loop.controller.state.accepted) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        accepted.append(now)
        return "path"

    loop.keeper.write = write  # type: ignore[method-assign]
    loop.controller.run()
    assert accepted == [8, 8]
    assert [(saved["accepted"], position) for saved, position in loop.keeper.saved] == [(4, 4), (8, 8)]


def test_a_checkpoint_is_whole_also_where_the_actors_end_the_run_meanwhile() -> None:
    loop = build(max_steps=2)
    pool = loop.controller._pool
    pool.__class__ = QuickPool
    loop.keeper.every = 1
    whole: list[str] = []

    def write() -> str:
        pool.ends_the_run = True  # type: ignore[attr-defined]
        time.sleep(0.3)
        whole.append("path")
        return "path"

    loop.keeper.write = write  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="no actor is left"):
        loop.controller.run()
    assert whole == ["path"]


def test_a_stop_in_an_evaluation_saves_and_leaves_its_answers() -> None:
    loop = build(max_steps=5, validation=8, eval_steps=1)
    loop.controller._pool.__class__ = QuickPool

    def phase(name: str, waiting_for: str) -> None:
        loop.controller.stop |= name == "evaluate" and loop.controller.state.step == 2 and waiting_for.startswith("4")

    loop.observer.phase = phase  # type: ignore[method-assign]
    loop.keeper.write = lambda: time.sleep(0.2) or "path"  # type: ignore[method-assign, func-returns-value]
    with pytest.raises(Interrupted, match="step 2"):
        loop.controller.run()
    assert [saved["step"] for saved, _ in loop.keeper.saved] == [2]


def test_a_second_signal_does_not_wait_for_the_checkpoint() -> None:
    loop = build(max_steps=2)
    pool, leaves, whole = loop.controller._pool, threading.Event(), []
    pool.__class__ = QuickPool
    loop.keeper.every = 1

    def write() -> str:
        pool.poll = interrupt  # type: ignore[method-assign]
        leaves.wait(30)
        whole.append("path")
        return "path"

    def interrupt(timeout_s: float = 1.0) -> list[Any]:
        raise KeyboardInterrupt

    loop.keeper.write = write  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.controller.run()
    assert whole == []
    leaves.set()


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_a_stopped_and_resumed_run_trains_the_same_windows_as_one_that_is_not(max_staleness: int) -> None:
    whole = build(max_staleness=max_staleness, max_steps=8)
    whole.controller.run()
    first = build(max_staleness=max_staleness, max_steps=8)
    first.keeper.every = 3
    first.controller.run()
    saved, position = first.keeper.saved[0]
    second = build(max_staleness=max_staleness, max_steps=8, position=position, state=LoopState.from_mapping(saved))
    second.controller.run()

    assert saved["step"] == 3
    assert whole.learner.trained == first.learner.trained[:3] + second.learner.trained


def test_an_evaluation_that_a_stop_prevented_is_made_up_for_at_the_resume() -> None:
    first = build(max_steps=3, validation=4)
    first.controller._pool.__class__ = QuickPool

    def phase(name: str, waiting_for: str) -> None:
        first.controller.stop |= name == "evaluate" and first.controller.state.step == 3

    first.observer.phase = phase  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        first.controller.run()
    saved, position = first.keeper.saved[-1]
    assert [step for step, _ in saved["evaluations"]] == [0]

    second = build(max_steps=3, validation=4, position=position, state=LoopState.from_mapping(saved))
    second.controller.run()
    assert [step for step, _ in second.controller.state.evaluations] == [0, 3]
    assert second.keeper.saved[-1][0]["evaluations"][-1][0] == 3, "and the best checkpoint is decided with it"


def test_a_run_of_no_steps_evaluates_and_exports() -> None:
    loop = build(max_steps=0, validation=2)
    loop.controller.run()
    assert [step for step, _ in loop.controller.state.evaluations] == [0]
    assert [saved["step"] for saved, _ in loop.keeper.saved] == [0]


def test_a_record_that_is_quarantined_again_after_a_resume_counts_once() -> None:
    loop = build(max_steps=2, fails=lambda answered: answered == 2)
    loop.observer.quarantine = lambda outcome: False  # type: ignore[method-assign]
    assert loop.controller.run().quarantined == 0


@pytest.mark.parametrize("max_steps", [5, 1])
def test_where_actors_end_the_run_while_a_window_is_trained_the_window_is_in_a_checkpoint(max_steps: int) -> None:
    loop = build(max_steps=max_steps, validation=0)
    pool, train_step = loop.controller._pool, loop.learner.train_step
    pool.__class__ = QuickPool

    def fail_meanwhile(plan: PackPlan, segment_refs: Sequence[Any]) -> FakeStep:
        pool.ends_the_run = True  # type: ignore[attr-defined]
        while loop.controller._learner_thread.failure is None:
            time.sleep(0.01)
        return train_step(plan, segment_refs)

    loop.learner.train_step = fail_meanwhile  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="no actor is left"):
        loop.controller.run()
    assert len(loop.learner.trained) == 1
    assert [(saved["step"], saved["version"], position) for saved, position in loop.keeper.saved] == [(1, 1, 4)]
    assert "sync 1, 0 in flight" not in loop.log, "nothing is asked of engines that are gone"


def test_a_validation_record_that_cannot_be_answered_ends_the_run_after_a_checkpoint() -> None:
    before = 2 + 2 * 4 + 1  # the first evaluation, two windows, the first validation record
    loop = build(max_steps=5, validation=2, eval_steps=2, fails=lambda answered: answered > before)
    with pytest.raises(DataFailure, match="validation record"):
        loop.controller.run()
    assert [(saved["step"], position) for saved, position in loop.keeper.saved] == [(2, 8)]


def test_a_validation_file_that_was_changed_ends_the_run_after_a_checkpoint() -> None:
    class Changed(list[RecordLine]):
        def __iter__(self) -> Iterator[RecordLine]:
            if loop.controller.state.step:
                raise RecordError("v: was changed while it is in use; restart the run")
            return super().__iter__()

    loop = build(max_steps=5, eval_steps=2)
    loop.controller._validation = Changed(lines(0, 1))
    with pytest.raises(RecordError, match="was changed"):
        loop.controller.run()
    assert [(saved["step"], position) for saved, position in loop.keeper.saved] == [(2, 8)]


@pytest.mark.parametrize(("windows", "saved"), [(0, []), (2, [2])])
def test_engines_that_end_the_run_between_windows_cost_none_that_was_trained(windows: int, saved: list[int]) -> None:
    loop = build(max_steps=5)
    pool = loop.controller._pool
    pool.__class__ = QuickPool

    def phase(name: str, waiting_for: str) -> None:
        pool.ends_the_run = name == "rollout" and len(loop.learner.trained) == windows  # type: ignore[attr-defined]

    loop.observer.phase = phase  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="no actor is left"):
        loop.controller.run()
    assert [remembered["step"] for remembered, _ in loop.keeper.saved] == saved


def test_a_record_that_ends_the_run_is_asked_for_again_by_a_resume() -> None:
    loop = build(max_steps=5, fails=lambda answered: answered == 6)

    def refuse(outcome: Outcome) -> bool:
        raise DataFailure(str(outcome.key))

    loop.observer.quarantine = refuse  # type: ignore[method-assign]
    with pytest.raises(DataFailure) as raised:
        loop.controller.run()
    ((saved, position),) = loop.keeper.saved
    again = RequestStream(Records(), seed=0, position=position)
    assert (saved["step"], position) == (1, 4)
    assert str(raised.value) in [str(request.key) for _, request in again.take(4, 0)]


@pytest.mark.parametrize("takes_turns", [False, True])
def test_nothing_is_awaited_of_the_engines_once_the_run_ends(takes_turns: bool) -> None:
    loop = build(max_steps=5, takes_turns=takes_turns, fails=lambda answered: answered == 6)
    pool, asked = loop.controller._pool, list[str]()

    def poll(timeout_s: float = 1.0) -> list[Any]:
        asked.append("answers")
        return []

    def sleep(*, last: bool = False) -> None:
        asked.extend([] if last else ["its device, and to be there for the next window"])

    def refuse(outcome: Outcome) -> bool:
        pool.poll, pool.sleep, pool.submit = poll, sleep, asked.append  # type: ignore[method-assign, assignment]
        raise DataFailure("too many records are quarantined")

    loop.observer.quarantine = refuse  # type: ignore[method-assign]
    with pytest.raises(DataFailure, match="too many records"):
        loop.controller.run()
    assert [saved["step"] for saved, _ in loop.keeper.saved] == [1]
    assert asked == []


def test_what_the_learner_fails_with_is_not_hidden_by_the_checkpoint_that_it_cannot_write() -> None:
    loop = build(max_steps=5)
    train_step = loop.learner.train_step

    def fail(plan: PackPlan, segment_refs: Sequence[Any]) -> FakeStep:
        if loop.learner.trained:
            raise ImageError("record=3: cannot read x.png")
        return train_step(plan, segment_refs)

    def closed() -> str:
        raise LearnerError("save_checkpoint: the learner group is closed")

    loop.learner.train_step, loop.keeper.write = fail, closed  # type: ignore[method-assign]
    with pytest.raises(ImageError, match="record=3"):
        loop.controller.run()


def test_what_ends_the_run_is_not_hidden_by_a_full_disk() -> None:
    loop = build(max_steps=5, fails=lambda answered: answered == 6)

    def refuse(outcome: Outcome) -> bool:
        raise DataFailure("too many records are quarantined")

    def full() -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "best.json")

    loop.observer.quarantine, loop.keeper.write = refuse, full  # type: ignore[method-assign]
    with pytest.raises(DataFailure, match="too many records"):
        loop.controller.run()
    assert [saved["step"] for saved, _ in loop.keeper.saved] == [1]
