"""Requests that no actor owes yet, and which of them may kill actors.

                     plan                      answered
    queued ───────────────────────► owed ─────────────────► gone
       ▲                             │
       └─── give_back (front) ───────┘ the actor died
                                     └─ `max_retries` deaths: suspect

    suspects ──► groups ──► an actor each, with nothing else ──► answered
                   ▲                 └─ died: smaller groups ──┐
                   └───────────────────────────────────────────┘ a group of one: blamed, for the quarantine

A request that is sent alone and kills its actor is to blame beyond doubt. A whole batch, one by one, would take as long
as so many answers, so suspects are narrowed down: 256 are 16 groups of 16, and what is left of the group that dies is
sent one by one.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace
from math import isqrt

from actors.member import Member
from actors.outcome import Outcome
from protocol.contracts import RequestKey
from protocol.unread import AnyRequest

ONE_BY_ONE = 16
"""Suspects up to which groups do not pay: one more start of an engine takes longer than so many answers."""


class RequestQueue:
    """First in, first out; what comes back goes to the front, suspects before all others."""

    def __init__(self, max_in_flight: int, max_retries: int) -> None:
        """Requests that an actor may owe; and the deaths after which a request is a suspect, at least one."""
        self._max_in_flight = max_in_flight
        self._max_deaths = max(1, max_retries)
        self._queue: deque[AnyRequest] = deque()
        self._suspects: deque[list[AnyRequest]] = deque()
        """Groups of which each is sent to an actor that owes nothing else."""
        self._open_since: dict[RequestKey, float] = {}
        self._deaths: Counter[RequestKey] = Counter()
        self._blamed: list[Outcome] = []

    def __len__(self) -> int:
        return len(self._queue) + sum(map(len, self._suspects))

    def submit(self, requests: Sequence[AnyRequest]) -> None:
        """New requests, behind all others."""
        self._queue.extend(requests)
        self._open_since.update(dict.fromkeys((request.key for request in requests), time.monotonic()))

    @property
    def oldest_s(self) -> float:
        """Seconds since the oldest request without an answer was submitted; 0 without one."""
        return time.monotonic() - next(iter(self._open_since.values())) if self._open_since else 0.0

    def plan(self, members: Sequence[Member]) -> list[tuple[Member, list[AnyRequest]]]:
        """Moves requests into the debts of members that take some: each to the one that owes least."""
        if not self._queue and not self._suspects:
            return []
        batches: dict[int, list[AnyRequest]] = {}
        able = [(len(member.owed), at) for at, member in enumerate(members) if member.takes_requests]
        heapify(able)
        while self._suspects and able and able[0][0] == 0:
            _, at = heappop(able)
            batches[at] = self._suspects.popleft()
            members[at].num_suspects = len(batches[at])
        while self._queue and able and not self._suspects:  # suspects wait until an actor has nothing else
            num_owed, at = able[0]
            if num_owed >= self._max_in_flight:
                break
            batches.setdefault(at, []).append(self._queue.popleft())
            heapreplace(able, (num_owed + 1, at))
        for at, batch in batches.items():
            members[at].owed.update((request.key, request) for request in batch)
        return [(members[at], batch) for at, batch in sorted(batches.items())]

    def answered(self, member: Member, key: RequestKey) -> None:
        """The member no longer owes this request. KeyError when it did not owe it: an answer came twice."""
        del member.owed[key]
        del self._deaths[key], self._open_since[key]
        if not member.owed:
            member.num_suspects = 0

    def give_back(self, member: Member, cause: Exception, *, by_request: bool) -> None:
        """Takes over what a dead member owed. `by_request`: one of them may have ended it, which a load did not."""
        owed, num_suspects = list(member.owed.values()), member.num_suspects
        member.owed.clear()
        member.num_suspects = 0
        if not by_request:
            self._suspects.extendleft([owed] if num_suspects else [])
            self._queue.extendleft([] if num_suspects else reversed(owed))
            return
        self._deaths.update(request.key for request in owed)
        if num_suspects == 1:
            self._blame(owed[0], cause)
            return
        suspects = [request for request in owed if self._deaths[request.key] >= self._max_deaths]
        self._queue.extendleft(reversed([request for request in owed if self._deaths[request.key] < self._max_deaths]))
        self._suspects.extendleft(reversed(_groups(suspects)))

    def _blame(self, request: AnyRequest, cause: Exception) -> None:
        num_deaths = self._deaths.pop(request.key)
        del self._open_since[request.key]
        failure = f"EngineKilled: {request.source}: {num_deaths} engines ended with it: {cause}"
        self._blamed.append(Outcome(key=request.key, failure=failure))

    def blamed(self) -> list[Outcome]:
        """Requests that were given up since the last call, as failures."""
        found, self._blamed = self._blamed, []
        return found


def _groups(suspects: list[AnyRequest]) -> list[list[AnyRequest]]:
    """As many groups as requests in one; one by one where they are few."""
    size = isqrt(len(suspects)) if len(suspects) > ONE_BY_ONE else 1
    return [suspects[at : at + size] for at in range(0, len(suspects), size)]
