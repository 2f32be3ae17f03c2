"""What the pool asks of an actor. Each call is noted in its member, and comes out of the inbox when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray

from actors.member import ActorState, Call, Collect, Member
from actors.ray_calls import Inbox
from actors.supervision import PoolSettings
from protocol.contracts import RolloutRequest
from protocol.unread import AnyRequest
from protocol.weights import WeightsManifest


class MemberCalls:
    """Moves a member to STARTING or STALE where that is what it asks for."""

    def __init__(self, settings: PoolSettings, spawn: Callable[[str], Any], warmup: RolloutRequest | None) -> None:
        self._settings = settings
        self._spawn = spawn
        self._warmup = warmup
        self.inbox: Inbox[Member] = Inbox()

    def start(self, member: Member) -> None:
        """A new process, and its engine."""
        member.enter(ActorState.STARTING)
        member.handle = self._spawn(member.process)
        ref = self._expect(member, member.handle.start.remote(self._warmup, member.name))
        limit = self._settings.startup_timeout_s
        member.call = Call(ref, f"{member.name} to start its engine (rollout.startup_timeout_s)", _after(limit))

    def load(self, members: Sequence[Member], manifest: WeightsManifest, refs: Sequence[Any]) -> None:
        """A published version. It is pickled once, however many engines there are."""
        content = ray.put((manifest, list(refs))) if manifest.group is None else None
        what = f"to load version {manifest.version} (sync.timeout_s)"
        for member in members:
            member.enter(ActorState.STALE)
            own: Any = content or (_with_own_rank(manifest, member.process), [])
            ref = self._expect(member, member.handle.load_weights.remote(own, self._settings.in_flight))
            limit = self._settings.sync_timeout_s
            member.call = Call(ref, f"{member.name} {what}", _after(limit), manifest)

    def submit(self, member: Member, requests: Sequence[AnyRequest], hold: bool) -> None:
        """Hands requests over that the member owes already. Nothing comes back but their answers."""
        member.handle.submit.remote(requests)
        self.collect(member, hold)

    def collect(self, member: Member, hold: bool) -> None:
        """The next group of answers, where any is owed and none is waited for. `hold`: see `RolloutActor.collect`."""
        if member.owed and member.collecting is None:
            member.collecting = Collect(*member.handle.collect.remote(hold))
            self._expect(member, member.collecting.report)

    def heartbeat(self, member: Member, now: float) -> None:
        """How far its engine is, where nothing was heard of it for a while."""
        heard = max(member.heartbeat_sent, member.progressed_at)
        if member.heartbeat is not None or now - heard < self._settings.heartbeat_s:
            return
        member.heartbeat = self._expect(member, member.handle.progress.remote())
        member.heartbeat_sent = now

    def _expect(self, member: Member, ref: Any) -> Any:
        self.inbox.expect(member, ref)
        return ref


def _with_own_rank(manifest: WeightsManifest, process: str) -> WeightsManifest:
    assert manifest.group is not None
    return replace(manifest, group=replace(manifest.group, rank_offset=manifest.group.offsets[process]))


def _after(seconds: float) -> float:
    return time.monotonic() + seconds
