"""A pool of hundreds of simulated actors for `benchmarks.scale`: no model, and few processes.

Up to `OWN_PROCESS` actors live in a process each, as in production. More are hosted, `PER_PROCESS` to a process, by a
class that has every method of an actor once for each of them, so that a call is the same: its arguments, what it
returns, and how Ray serves it. What an actor computes from an answer is computed once for each record, so that a core
is left for the driver, which shares the machine with its actors here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import ray

from actors.outcome import Outcome
from actors.pool import RolloutPool
from actors.rollout_actor import THREADS, RolloutActor
from actors.simulation import SimulatedActor, Simulation
from actors.supervision import PoolSettings
from protocol.contracts import Completion, RolloutRequest
from protocol.segments import Segment

OWN_PROCESS = 16
PER_PROCESS = 32
MAX_IN_FLIGHT = 256
"""`rollout.max_in_flight_per_actor`, its default."""
CALLED = ("start", "submit", "collect", "load_weights", "progress")
"""What a pool calls."""
MAX_STEPS = 8


def spread(request: RolloutRequest, _version: int) -> str:
    """No objects, found in 1 to `MAX_STEPS` engine steps."""
    return "{" + " " * (16 * (request.seed % MAX_STEPS)) + "}"


SIMULATION = Simulation(step_s=0.05, answers=spread, trace=True)


class FrugalActor(SimulatedActor):
    """Parses, matches and encodes the first answer to each record; later ones differ in key and version."""

    _known: ClassVar[dict[int, tuple[Segment | None, Outcome]]] = {}
    """Of all actors of the process."""

    def _finish(self, request: RolloutRequest, completion: Completion) -> tuple[Segment | None, Outcome]:
        record = request.key.record
        if record not in self._known:
            self._known[record] = super()._finish(request, completion)
        segment, outcome = self._known[record]
        assert segment is not None
        assert outcome.meta is not None
        own = {
            "key": request.key,
            "first_version": completion.first_version,
            "last_version": completion.last_version,
        }
        return replace(segment, **own), replace(outcome, key=request.key, meta=replace(outcome.meta, **own))


class Host:
    """Several actors in one process; its methods (`collect_3`) are made below."""

    def __init__(self, count: int) -> None:
        self._actors = [FrugalActor(SIMULATION) for _ in range(count)]


def _hosted(name: str, index: int) -> Callable[..., Any]:
    @functools.wraps(getattr(RolloutActor, name))  # with Ray's options, which are attributes of the function
    def call(self: Host, *args: Any) -> Any:
        return getattr(self._actors[index], name)(*args)

    return call


for _name in CALLED:
    for _index in range(PER_PROCESS):
        setattr(Host, f"{_name}_{_index}", _hosted(_name, _index))


class Slot:
    """Looks to the pool like the handle of an actor of its own."""

    def __init__(self, host: Any, index: int) -> None:
        for name in CALLED:
            setattr(self, name, getattr(host, f"{name}_{index}"))


def new_pool(num_actors: int) -> tuple[RolloutPool, list[Any]]:
    """The pool, and the processes that host its actors."""
    if num_actors <= OWN_PROCESS:
        own = ray.remote(num_cpus=0, concurrency_groups=THREADS)(FrugalActor)
        handles = slots = [own.remote(SIMULATION) for _ in range(num_actors)]
    else:
        counts = [min(PER_PROCESS, num_actors - at) for at in range(0, num_actors, PER_PROCESS)]
        threads = {name: count * PER_PROCESS for name, count in THREADS.items()}
        host = ray.remote(num_cpus=0, max_concurrency=PER_PROCESS, concurrency_groups=threads)(Host)
        handles = [host.remote(count) for count in counts]
        slots = [Slot(handle, index) for handle, count in zip(handles, counts, strict=True) for index in range(count)]
    limits = PoolSettings(
        num_actors=num_actors,
        max_in_flight_per_actor=MAX_IN_FLIGHT,
        startup_timeout_s=300,
        stall_timeout_s=300,
        sync_timeout_s=300,
        max_restarts=0,
        max_retries=1,
    )
    free = iter(slots)
    return RolloutPool(limits, lambda _name: next(free), None), handles
