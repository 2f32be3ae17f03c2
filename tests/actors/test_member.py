"""What is known of an actor, and what it is asked."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine import EngineProgress
from actors.member import ActorState, Call, Collect, Member
from actors.member_calls import MemberCalls
from actors.status import ActorStatus
from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.weights import SyncGroup, WeightsManifest
from tests.actors.members import LIMITS, synced


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr("time.monotonic", lambda: now.s)
    return now


def asked(number: int = 0) -> RolloutRequest:
    record = Record(index=number, source=f"t:{number}", images=("x",), width=8, height=8, objects=())
    return RolloutRequest(key=RequestKey(number, 0), record=record, seed=0)


def owing(name: str = "actor-0") -> Member:
    member = synced(name)
    member.owed[asked().key] = asked()
    return member


def ran(num_steps: int) -> EngineProgress:
    return EngineProgress(num_steps=num_steps, running=1)


def test_a_heartbeat_is_a_sign_of_work_only_where_the_engine_went_on(clock: SimpleNamespace) -> None:
    member = owing()
    seen = []
    for num_steps in (5, 5, 6, 6):
        clock.s += 10
        member.heartbeat = object()
        member.heard(ran(num_steps))
        assert member.heartbeat is None, "the next can be sent"
        seen.append(member.progressed_at)
    assert seen == [110.0, 110.0, 130.0, 130.0], "the first that is heard says nothing else"


@pytest.mark.parametrize("excuse", ["it loads", "it owes nothing"])
def test_an_engine_with_a_reason_to_stand_still_is_not_silent(clock: SimpleNamespace, excuse: str) -> None:
    member = owing() if excuse == "it loads" else synced()
    member.call = Call(ref=None, what="", deadline=900.0) if excuse == "it loads" else None
    for _ in range(2):
        clock.s += 10
        member.heard(ran(5))
    assert member.progressed_at == 120.0


def test_a_group_of_answers_is_a_sign_of_work_and_tells_where_its_segments_are(clock: SimpleNamespace) -> None:
    member = owing()
    member.collecting, clock.s = Collect("segments", "report"), 110.0
    assert member.answered(ran(5)) == "segments"
    assert (member.progressed_at, member.collecting) == (110.0, None)


def test_an_actor_is_started_again_only_where_it_is_dead_not_given_up_and_its_pause_is_over() -> None:
    member = Member("actor-0", retry_at=10.0)
    assert [member.is_due(now) for now in (9.9, 10.0)] == [False, True]
    member.given_up = True
    assert not member.is_due(11.0)
    assert not synced().is_due(11.0)


def test_what_is_left_until_a_deadline_is_never_negative(clock: SimpleNamespace) -> None:
    assert Call(ref=None, what="", deadline=103.0).left_s == 3.0
    assert Call(ref=None, what="", deadline=97.0).left_s == 0.0


def test_an_engine_serves_a_version_that_it_attested_last_and_while_it_loads_nothing_else() -> None:
    member = synced()
    member.version = 3
    assert (member.serves(3), member.serves(2), member.is_idle) == (True, False, True)
    member.call = Call(ref=None, what="", deadline=0.0)
    assert (member.serves(3), member.is_idle) == (False, False)
    assert not Member("actor-0").is_idle, "it has no engine"


def test_nothing_of_a_process_that_is_gone_is_left_to_the_next(clock: SimpleNamespace) -> None:
    member = owing()
    member.version, member.num_suspects, member.heartbeat, member.handle = 3, 1, object(), object()
    member.call, member.collecting = Call(ref=None, what="", deadline=0.0), Collect(1, 2)
    member.heard(ran(5))
    member.causes["ActorLost"] += 2
    member.failures = 2
    member.forget()
    assert member.process == "actor-0-2", "Ray would take the old name for the old actor"
    fresh = synced()
    fresh.causes, fresh.failures, fresh.progressed_at = member.causes, 2, member.progressed_at
    assert member == fresh


def test_the_status_of_an_actor_is_what_is_known_of_it(clock: SimpleNamespace) -> None:
    member = owing("actor-7")
    member.version, member.pid, member.given_up = 0, 42, True
    member.heard(EngineProgress(num_steps=5, running=3))
    member.causes["SyncError"] += 1
    clock.s += 4
    expected = {"name": "actor-7", "num_owed": 1, "restarts": {"SyncError": 1}, "given_up": True, "pid": 42}
    assert member.status() == ActorStatus(**expected, state="synced", version=0, num_running=3, idle_s=4.0)
    member.enter(ActorState.DEAD)
    member.forget()
    expected["num_owed"] = 0
    assert member.status() == ActorStatus(**expected, state="dead", version=-1, num_running=0, idle_s=0.0)


class Asked:
    """An actor's handle that notes what it is asked, and never answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def remote(*given: Any) -> Any:
            self.calls.append((name, given))
            ref = SimpleNamespace(future=Future)
            return (object(), ref) if name == "collect" else ref

        return SimpleNamespace(remote=remote)


def calls_to(*members: Member) -> MemberCalls:
    for member in members:
        member.handle = Asked()
    return MemberCalls(replace(LIMITS, sync_timeout_s=30, in_flight="abort"), lambda _: Asked(), None)


def test_requests_are_handed_over_and_one_call_collects_their_answers() -> None:
    member = owing()
    calls = calls_to(member)
    calls.submit(member, [asked()], hold=True)
    calls.submit(member, [asked(1)], hold=False)
    assert member.handle.calls == [("submit", ([asked()],)), ("collect", (True,)), ("submit", ([asked(1)],))]
    member.owed.clear()
    member.collecting = None
    calls.collect(member, hold=True)
    assert len(member.handle.calls) == 3, "nothing would come"


def test_a_heartbeat_is_asked_for_once_and_only_after_a_silence() -> None:
    member = owing()
    calls = calls_to(member)
    member.progressed_at, pause = 100.0, LIMITS.heartbeat_s
    for now, num_asked in ((100 + pause - 0.1, 0), (100 + pause, 1), (100 + 3 * pause, 1)):
        calls.heartbeat(member, now)
        assert len(member.handle.calls) == num_asked
    member.heartbeat = None  # it came, and the engine had not gone on
    calls.heartbeat(member, 100 + 2 * pause - 0.1)
    assert len(member.handle.calls) == 1
    calls.heartbeat(member, 100 + 2 * pause)
    assert len(member.handle.calls) == 2


def test_a_version_is_stored_once_for_all_engines_and_each_has_until_its_deadline(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[Any] = []
    monkeypatch.setattr("ray.put", lambda content: stored.append(content) or "stored")
    manifest = WeightsManifest(version=4, full=True, tensors=(), bucket_checksums=(), changed_tensors=1)
    members = [synced("actor-0"), synced("actor-1")]
    calls_to(*members).load(members, manifest, ("bucket",))
    assert stored == [(manifest, ["bucket"])]
    for member in members:
        assert member.handle.calls == [("load_weights", ("stored", "abort"))]
        assert member.state is ActorState.STALE, "no request is sent to it"
        assert member.call is not None
        assert (member.call.manifest, member.call.deadline) == (manifest, 130.0)


def test_each_engine_of_a_broadcast_is_told_its_own_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.put", lambda _: pytest.fail("a broadcast has no part in the object store"))
    offsets = {"actor-0": 1, "actor-1": 3}
    group = SyncGroup(generation=1, address="a", port=1, world_size=5, offsets=offsets, timeout_s=1)
    manifest = WeightsManifest(version=4, full=True, tensors=(), bucket_checksums=(), changed_tensors=1, group=group)
    members = [synced("actor-0"), synced("actor-1")]
    calls_to(*members).load(members, manifest, [])
    for member in members:
        ((_, ((sent, refs), _)),) = member.handle.calls
        assert (sent.version, sent.group.rank_offset, refs) == (4, offsets[member.name], [])
