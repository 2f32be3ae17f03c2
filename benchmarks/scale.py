"""How many actors one driver can feed: CPU time of the driver per segment, from 1 to 256 simulated actors.

Real Ray, pool, buffer and loop; the actors are simulated (no model), 32 of them to a process, and the learner takes its
windows without looking at them. The driver's CPU time is that of its whole process, Ray's own threads included.

Bars: under 200 µs per segment and flat (256 actors against 4), and a buffer that stays within its bound.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import ray

from actors.buffer import SegmentBuffer
from actors.controller import Controller
from actors.loop import LoopSettings, LoopState
from actors.pool import RolloutPool
from actors.requests import RequestStream
from actors.rollout_actor import THREADS
from actors.simulation import SimulatedActor, Simulation
from actors.supervision import PoolSettings
from benchmarks.reporting import finish, print_table
from benchmarks.silent import FreshLearner, SilentKeeper, SilentObserver
from protocol.contracts import Record, RolloutRequest
from protocol.packing import plan_packs

ACTORS = (1, 4, 16, 64, 256)
PER_PROCESS = 32
PER_ACTOR = 32
"""Requests that an actor holds on average: half of them for the window in training, half for the next."""
SEGMENTS = 8000
SEGMENT_BYTES = 4096
MAX_STEPS = 8


def spread(request: RolloutRequest, _version: int) -> str:
    """An answer of 1 to 8 engine steps, so that an actor's requests end one by one, as a real engine's do."""
    return "{" + " " * (16 * (request.seed % MAX_STEPS)) + "}"


SIMULATION = Simulation(step_s=0.05, answers=spread)


CONTROL = {"concurrency_group": "control"}
OPTIONS: dict[str, dict[str, Any]] = {
    "submit": {"enable_task_events": False},
    "collect": {"concurrency_group": "collect", "num_returns": 2, "enable_task_events": False},
}


class Host:
    """Several simulated actors in one process."""

    def __init__(self, count: int) -> None:
        self._actors = [SimulatedActor(SIMULATION) for _ in range(count)]

    def call(self, index: int, name: str, *args: Any) -> Any:
        return getattr(self._actors[index], name)(*args)


class Slot:
    """Looks to the pool like the handle of an actor of its own."""

    def __init__(self, host: Any, index: int) -> None:
        self._host, self._index = host, index

    def __getattr__(self, name: str) -> Method:
        method = Method(self._host, self._index, name)
        setattr(self, name, method)
        return method


class Method:
    """`handle.method.remote(...)`, with the options that the actor's own method has."""

    def __init__(self, host: Any, index: int, name: str) -> None:
        self._call = partial(host.call.options(**OPTIONS.get(name, CONTROL)).remote, index, name)

    def remote(self, *args: Any) -> Any:
        return self._call(*args)


class EmptyRecords:
    """Records without objects: their rollouts are as small as can be."""

    def __len__(self) -> int:
        return 100_000

    def get(self, index: int, epoch: int = 0) -> Record:
        return Record(index=index, source=f"r:{index}", images=("-",), width=8, height=8, objects=())


def measure(num_actors: int) -> dict[str, float]:
    """CPU time of the driver per segment, over `SEGMENTS` segments after a warm-up."""
    hosts = [min(PER_PROCESS, num_actors - at) for at in range(0, num_actors, PER_PROCESS)]
    threads = {name: count * PER_PROCESS for name, count in THREADS.items()}
    remote = ray.remote(num_cpus=0, max_concurrency=PER_PROCESS, concurrency_groups=threads)(Host)
    handles = [remote.remote(count) for count in hosts]
    slots = iter([Slot(handle, index) for handle, count in zip(handles, hosts, strict=True) for index in range(count)])
    limits = PoolSettings(
        num_actors=num_actors,
        max_in_flight_per_actor=64,
        startup_timeout_s=300,
        stall_timeout_s=300,
        sync_timeout_s=300,
        max_restarts=0,
        max_retries=0,
    )
    pool = RolloutPool(limits, lambda _name: next(slots), None)
    batch = max(8, num_actors * PER_ACTOR // 2)
    bound = batch * 2 * SEGMENT_BYTES
    watched = WatchedBuffer(bound, batch * 2, SEGMENT_BYTES)
    warm, steps = -(-SEGMENTS // batch // 4), -(-SEGMENTS // batch)
    observer = SilentObserver()
    pool.start()
    started: list[float] = []
    observer.on_step = lambda step: started.extend([time.process_time(), time.monotonic()]) if step == warm else None
    state = Controller(
        LoopSettings(
            batch_size=batch,
            m_steps=1,
            max_steps=warm + steps,
            max_staleness=1,
            eval_steps=0,
            save_last=False,
            top_k=5,
            capacity=1 << 20,
        ),
        pool=pool,
        learner=FreshLearner(),
        buffer=watched,
        requests=RequestStream(EmptyRecords(), seed=0),
        validation=[],
        plan=lambda lengths: plan_packs(lengths, capacity=1 << 20, num_ranks=1),
        observer=observer,
        keeper=SilentKeeper(),
        state=LoopState(),
    ).run()
    cpu, wall = time.process_time() - started[0], time.monotonic() - started[1]
    segments = state.trained - warm * batch
    for handle in handles:
        ray.kill(handle)
    return {
        "actors": num_actors,
        "processes": len(hosts),
        "segments": segments,
        "cpu_us_per_segment": 1e6 * cpu / segments,
        "segments_per_s": segments / wall,
        "buffer_bytes_max": watched.peak,
        "buffer_bound": bound,
    }


class WatchedBuffer(SegmentBuffer):
    """Remembers its largest fill."""

    peak = 0

    def put(self, *args: Any, **kwargs: Any) -> Any:
        entry = super().put(*args, **kwargs)
        self.peak = max(self.peak, self.num_bytes)
        return entry


def main() -> None:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=512 * 2**20)
    rows = [measure(count) for count in ACTORS]
    ray.shutdown()
    print_table("Driver CPU per segment", list(rows[0]), [list(row.values()) for row in rows])
    costs = {row["actors"]: row["cpu_us_per_segment"] for row in rows}
    finish(
        "scale",
        {
            "rows": rows,
            "cpu_us_per_segment_at_256": costs[256],
            "growth_from_4_to_256": costs[256] / costs[4],
            "buffer_within_bound": bool(np.all([row["buffer_bytes_max"] <= row["buffer_bound"] for row in rows])),
        },
    )


if __name__ == "__main__":
    main()
