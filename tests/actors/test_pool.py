"""What the pool does between two looks at its actors; whole pools run in tests/faults and tests/integration."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine import EngineProgress
from actors.member import ActorState, Member
from actors.outcome import Outcome, Report
from actors.pool import RolloutPool
from actors.ray_calls import ActorLost
from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.errors import DeadlineError, EngineError
from protocol.segments import SegmentRef
from protocol.weights import SyncGroup, WeightsManifest
from tests.actors.members import LIMITS, synced

GROUP = SyncGroup(generation=1, address="a", port=1, world_size=2, offsets={"actor-0": 1}, timeout_s=1)
"""Of a load that Ray's object store has no part in."""
PID = 1


class Ref:
    """A call that the test ends, or nobody."""

    def __init__(self) -> None:
        self.ended: Future[Any] = Future()

    def future(self) -> Future[Any]:
        return self.ended

    def end(self, result: object) -> None:
        self.ended.set_exception(result) if isinstance(result, Exception) else self.ended.set_result(result)


class Remote:
    """A remote method that returns so many objects; `calls` has those of each call."""

    def __init__(self, num_returns: int = 1) -> None:
        self.calls: list[tuple[Ref, ...]] = []
        self._num_returns = num_returns

    def remote(self, *_: object) -> Any:
        self.calls.append(tuple(Ref() for _ in range(self._num_returns)))
        return self.calls[-1] if self._num_returns > 1 else self.calls[-1][0]


@pytest.fixture
def handle() -> Any:
    return remote_actor()


def remote_actor() -> Any:
    methods = ("start", "progress", "submit", "load_weights")
    return SimpleNamespace(**{name: Remote() for name in methods}, collect=Remote(num_returns=2))


def pool_of(member: Member, handle: Any) -> RolloutPool:
    member.handle = handle
    pool = RolloutPool(LIMITS, lambda _: handle, None)
    pool._members = [member]
    return pool


def test_an_actor_is_not_blamed_for_silence_while_nobody_asked(handle: Any) -> None:
    """As after a learner's start, or a checkpoint, that took longer than `rollout.request_timeout_s`."""
    member, ago = synced(), time.monotonic() - 10 * LIMITS.stall_timeout_s
    pool = pool_of(member, handle)
    member.progressed_at = pool._watched = ago
    pool.poll(0)
    assert member.state is ActorState.SYNCED
    assert member.progressed_at <= time.monotonic()


def test_an_actor_is_asked_once_it_was_silent_and_restarted_when_it_stays_so(
    handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.kill", lambda _: None)
    member = synced()
    pool = pool_of(member, handle)
    member.progressed_at = pool._watched - LIMITS.stall_timeout_s / 2
    pool._watched -= 1
    pool.poll(0)
    assert (member.state, len(handle.progress.calls)) == (ActorState.SUSPECT, 1)
    member.progressed_at -= LIMITS.stall_timeout_s
    pool._watched -= 1
    pool.poll(0)
    assert member.state is ActorState.DEAD


def test_no_engine_starts_while_the_learner_has_the_device(handle: Any) -> None:
    member = Member("actor-0")
    pool = pool_of(member, handle)
    pool.sleep()
    pool._watched -= 1
    pool.poll(0)
    assert (member.state, len(handle.start.calls)) == (ActorState.DEAD, 0)
    pool.submit([])
    pool._watched -= 1
    pool.poll(0)
    assert (member.state, len(handle.start.calls)) == (ActorState.STARTING, 1)


def asked(number: int) -> RolloutRequest:
    record = Record(index=number, source=f"t:{number}", images=("x",), width=8, height=8, objects=())
    return RolloutRequest(key=RequestKey(number, 0), record=record, seed=0)


def test_an_answer_ends_a_row_of_failures_and_its_actor_is_asked_for_the_next_group(handle: Any) -> None:
    member = synced()
    pool = pool_of(member, handle)
    member.failures = LIMITS.max_restarts
    pool.submit([asked(1), asked(2)])
    progress = EngineProgress(num_steps=7, running=1)
    ((_, report),) = handle.collect.calls
    report.end(Report(outcomes=(Outcome(key=asked(1).key, failure="gone"),), progress=progress))

    assert [outcome.key for outcome, _ in pool.poll(0)] == [asked(1).key]
    assert (member.failures, [*member.owed], member.progress) == (0, [asked(2).key], progress)
    assert len(handle.collect.calls) == 2


def test_an_answer_with_a_segment_has_its_place_among_the_segments_of_its_group(handle: Any) -> None:
    pool = pool_of(synced(), handle)
    pool.submit([asked(number) for number in range(4)])
    ((segments, report),) = handle.collect.calls
    meta: Any = object()
    outcomes = [Outcome(key=asked(at).key, meta=meta if at % 2 else None, failure="gone") for at in range(4)]
    report.end(Report(outcomes=tuple(outcomes), progress=EngineProgress(num_steps=7, running=0)))
    assert [place for _, place in pool.poll(0)] == [None, SegmentRef(segments, 0), None, SegmentRef(segments, 1)]


def starting_with(handle: Any, *results: object) -> RolloutPool:
    """A pool of one actor, whose starts end with these results at once."""
    left = iter(results)

    def start(*_: object) -> Ref:
        ref = Ref()
        ref.end(next(left))
        return ref

    handle.start = SimpleNamespace(remote=start)
    return RolloutPool(replace(LIMITS, restart_backoff_s=0.0), lambda _: handle, None)


def test_an_engine_that_cannot_come_back_is_tried_again_and_ends_no_run_that_goes_on(
    handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.kill", lambda _: None)
    pool = starting_with(handle, PID, EngineError("out of memory"), PID)
    pool.start()
    (member,) = pool._members
    pool._fail(member, EngineError("killed"))
    for _ in range(4):
        pool._watched -= 1
        pool.poll(0)
    assert (member.state, member.failures) == (ActorState.STALE, 2)


def test_an_engine_that_cannot_start_ends_a_run_that_begins(handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.kill", lambda _: None)
    with pytest.raises(EngineError, match="actor-0: its engine cannot start: no such folder"):
        starting_with(handle, EngineError("no such folder")).start()


def broadcast(version: int, *processes: str) -> WeightsManifest:
    """A version that went to these processes, and that nobody can read later."""
    offsets = {process: place for place, process in enumerate(processes, start=1)}
    group = SyncGroup(generation=1, address="a", port=1, world_size=1 + len(offsets), offsets=offsets, timeout_s=1)
    return WeightsManifest(version=version, full=True, tensors=(), bucket_checksums=(), changed_tensors=1, group=group)


def pool_of_two() -> tuple[RolloutPool, Member, Member]:
    first, second = synced("actor-0"), synced("actor-1")
    first.handle, second.handle = remote_actor(), remote_actor()
    pool = RolloutPool(replace(LIMITS, num_actors=2), lambda _: remote_actor(), None)
    pool._members = [first, second]
    return pool, first, second


def test_a_broadcast_goes_in_part_to_engines_that_are_current_and_in_full_to_those_that_came_back() -> None:
    pool, first, back = pool_of_two()
    assert pool.recipients(full=True) == ["actor-0", "actor-1"], "nobody has anything before the first publish"
    assert not pool.awaits_full

    pool.published.update(broadcast(3, "actor-0", "actor-1"), [])
    first.version = back.version = 3
    assert (pool.recipients(full=False), pool.recipients(full=True)) == (["actor-0", "actor-1"], [])
    assert not pool.awaits_full

    back.version = None  # a new process
    assert (pool.recipients(full=False), pool.recipients(full=True)) == (["actor-0"], ["actor-1"])
    assert pool.awaits_full
    assert not pool.synced

    pool.publish(broadcast(3, "actor-1"), [])
    assert (len(first.handle.load_weights.calls), len(back.handle.load_weights.calls)) == (0, 1)
    assert not pool.awaits_full, "it is being sent what it lacks"


def test_an_engine_that_came_back_waits_for_no_broadcast_where_the_version_can_be_fetched() -> None:
    pool, first, _ = pool_of_two()
    pool.published.update(replace(broadcast(3), group=None), [])
    first.version = 3
    assert not pool.awaits_full


@pytest.mark.parametrize(
    "failure",
    [DeadlineError("gave up waiting for actor-0 to load version 4"), EngineError("CUDA out of memory")],
    ids=["overdue", "failed"],
)
def test_no_request_is_blamed_for_a_load_that_fails_in_whatever_way(
    failure: Exception, handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.kill", lambda _: None)
    member = synced()
    pool = pool_of(member, handle)
    record = Record(index=0, source="t:1", images=("x.png",), width=8, height=8, objects=())
    asked = RolloutRequest(key=RequestKey(0), record=record, seed=0)
    manifest = WeightsManifest(version=4, full=True, tensors=(), bucket_checksums=(), changed_tensors=1)
    for _ in range(3):
        member.state, member.handle = ActorState.SYNCED, handle
        pool.submit([] if pool.queue else [asked])
        pool._calls.load([member], replace(manifest, group=replace(GROUP, offsets={member.process: 1})), [])
        if isinstance(failure, DeadlineError):
            assert member.call is not None
            member.call.deadline, pool._watched = 0.0, pool._watched - 1
        else:
            handle.load_weights.calls[-1][0].end(failure)
        assert pool.poll(0) == []
        assert member.state is ActorState.DEAD
    assert len(pool.queue) == 1
    assert not pool.queue._suspects


def test_engines_that_start_or_load_are_awaited_before_they_leave_the_device(
    handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that runs beside the call to leave would bring the engine back beside the learner."""
    order: list[Any] = []
    monkeypatch.setattr("actors.turns.get", lambda ref, *_: order.append(ref))
    handle.sleep = Remote()
    loading, starting = synced("actor-0"), Member("actor-1")
    pool = pool_of(loading, handle)
    pool._members.append(starting)
    manifest = WeightsManifest(version=4, full=True, tensors=(), bucket_checksums=(), changed_tensors=1, group=GROUP)
    pool._calls.load([loading], manifest, [])
    pool._calls.start(starting)
    awaited = [member.call.ref for member in (loading, starting) if member.call is not None]
    pool.sleep()
    assert order == [*awaited, *(ref for (ref,) in handle.sleep.calls)]
    assert len(handle.sleep.calls) == 2

    handle.start.calls[0][0].end(PID)
    pool.published.update(replace(manifest, group=None), [])
    pool.poll(0)
    assert (starting.state, len(handle.load_weights.calls)) == (ActorState.STALE, 1), "it loads with the next publish"


def test_an_engine_that_is_starting_when_the_run_ends_is_not_awaited(
    handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.kill", lambda _: None)
    awaited: list[Any] = []
    monkeypatch.setattr("actors.turns.get", lambda ref, *_: awaited.append(ref))
    member = Member("actor-0")
    pool = pool_of(member, handle)
    pool._calls.start(member)
    member.failures = LIMITS.max_restarts
    pool.sleep(last=True)
    assert (member.state, member.given_up, awaited) == (ActorState.DEAD, True, []), "the checkpoint is still written"


def test_an_engine_that_came_back_in_the_learners_turn_is_sent_the_version_with_the_next_requests(handle: Any) -> None:
    member = Member("actor-0")
    pool = pool_of(member, handle)
    pool._calls.start(member)
    pool._away = True
    manifest = WeightsManifest(version=4, full=True, tensors=(), bucket_checksums=(), changed_tensors=1)
    pool.published.update(manifest, [])
    loads: list[str] = []
    pool._calls.load = lambda members, *_: loads.extend(m.name for m in members)  # type: ignore[method-assign]
    handle.start.calls[0][0].end(PID)
    pool.poll(0)
    assert (member.state, loads) == (ActorState.STALE, [])
    pool.submit([])
    assert loads == ["actor-0"]


def test_what_is_to_blame_is_told_before_the_run_ends_of_it(handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.kill", lambda _: None)
    member = synced()
    pool = pool_of(member, handle)
    record = Record(index=0, source="t:1", images=("x.png",), width=8, height=8, objects=())
    pool.submit([RolloutRequest(key=RequestKey(0), record=record, seed=0)])
    member.num_suspects, member.failures = 1, LIMITS.max_restarts
    handle.collect.calls[0][1].end(EngineError("gone"))
    ((outcome, _),) = pool.poll(0)
    assert outcome.failure is not None
    assert outcome.failure.startswith("EngineKilled: t:1")
    with pytest.raises(EngineError, match="0 of 1 actors are left"):
        pool.poll(0)


def test_what_the_others_answered_is_told_before_the_run_ends_of_the_one_that_failed_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.kill", lambda _: None)
    members = [synced(f"actor-{number}") for number in range(3)]
    pool = RolloutPool(replace(LIMITS, min_healthy=3, max_restarts=0), lambda _: None, None)
    pool._members = members
    for member in members:
        member.handle = remote_actor()
    pool.submit([asked(number) for number in range(3)])
    first, answers, last = (member.handle.collect.calls[0][1] for member in members)
    (key,) = members[1].owed
    first.end(ActorLost("the first is gone"))
    progress = EngineProgress(num_steps=1, running=0)
    answers.end(Report(outcomes=(Outcome(key=key, failure="x"),), progress=progress))
    last.end(ActorLost("the last is gone"))

    assert [outcome.key for outcome, _ in pool.poll(0)] == [key]
    with pytest.raises(EngineError, match="the first is gone"):
        pool.poll(0)


def test_an_engine_that_does_not_leave_the_device_is_restarted_and_the_run_ends_where_too_few_are_left(
    handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Any] = []
    monkeypatch.setattr("ray.kill", killed.append)

    def late(*_: object) -> None:
        raise DeadlineError("waited 60 s")

    monkeypatch.setattr("actors.turns.get", late)
    handle.sleep = Remote()
    member = synced()
    pool = pool_of(member, handle)
    pool.sleep()
    assert (member.state, killed) == (ActorState.DEAD, [handle]), "it is started again in the engines' turn"

    last = synced()
    last.failures = LIMITS.max_restarts
    with pytest.raises(EngineError, match="0 of 1 actors are left"):
        pool_of(last, handle).sleep()


def test_a_load_is_awaited_also_where_the_run_ends(handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[Any] = []
    monkeypatch.setattr("actors.turns.get", lambda ref, *_: order.append(ref))
    handle.sleep = Remote()
    member = synced()
    pool = pool_of(member, handle)
    manifest = WeightsManifest(version=4, full=True, tensors=(), bucket_checksums=(), changed_tensors=1, group=GROUP)
    pool._calls.load([member], manifest, [])
    pool.sleep(last=True)
    assert order == [handle.load_weights.calls[0][0], handle.sleep.calls[0][0]]
