"""Requests that no actor owes yet, and which of them may kill actors.

                     plan                      answered
    queued ───────────────────────► owed ─────────────────► gone
       ▲                             │
       └─── give_back (front) ───────┘ the actor died
                                     └─ `max_retries` deaths: sent alone; a death alone ─► blamed, for the quarantine

A request that is sent alone and kills its actor again is to blame beyond doubt; those that merely shared an actor with
it are answered when they are alone at the latest.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace

from actors.member import Member
from actors.outcome import Outcome
from protocol.contracts import RequestKey
from protocol.errors import SyncError
from protocol.unread import AnyRequest


class RequestQueue:
    """First in, first out; what comes back goes to the front."""

    def __init__(self, max_in_flight: int, max_retries: int) -> None:
        """Requests that an actor may owe; and the deaths after which a request is sent alone, at least one."""
        self._max_in_flight = max_in_flight
        self._max_deaths = max(1, max_retries)
        self._queue: deque[AnyRequest] = deque()
        self._open_since: dict[RequestKey, float] = {}
        self._deaths: Counter[RequestKey] = Counter()
        self._blamed: list[Outcome] = []
        self.num_given_back = 0

    def __len__(self) -> int:
        return len(self._queue)

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
        batches: dict[int, list[AnyRequest]] = {}
        able = [(len(member.owed), at) for at, member in enumerate(members) if self._queue and member.takes_requests]
        heapify(able)
        while self._queue and able:
            num_owed, at = able[0]
            member = members[at]
            if num_owed >= self._max_in_flight:
                break
            if self._deaths.get(self._queue[0].key, 0) >= self._max_deaths:
                if num_owed:
                    break  # it waits at the front until an actor has nothing else
                member.alone = True
            request = self._queue.popleft()
            member.owed[request.key] = request
            batches.setdefault(at, []).append(request)
            heappop(able) if member.alone else heapreplace(able, (num_owed + 1, at))
        return [(members[at], batch) for at, batch in sorted(batches.items())]

    def answered(self, member: Member, key: RequestKey) -> None:
        """The member no longer owes this request. KeyError when it did not owe it: an answer came twice."""
        del member.owed[key]
        del self._deaths[key], self._open_since[key]
        member.alone = False

    def give_back(self, member: Member, cause: Exception) -> None:
        """Takes over what a dead member owed. No request is to blame for a load that failed."""
        by_request = not isinstance(cause, SyncError)
        for key, request in reversed(member.owed.items()):
            self._deaths[key] += by_request
            self.num_given_back += 1
            if member.alone and by_request:
                failure = f"EngineKilled: {request.source}: {self._deaths.pop(key)} engines ended with it: {cause}"
                del self._open_since[key]
                self._blamed.append(Outcome(key=key, failure=failure))
            else:
                self._queue.appendleft(request)
        member.owed.clear()
        member.alone = False

    def blamed(self) -> list[Outcome]:
        """Requests that were given up since the last call, as failures."""
        found, self._blamed = self._blamed, []
        return found
