"""How many actors one driver can feed: CPU time of the driver per segment, from 1 to 256 simulated actors.

Real Ray, pool, buffer, loop, record file and recorded rollouts, with records as dense as those of LVIS; the actors are
simulated (`benchmarks.simulated_pool`), and the learner takes its windows without looking at them. Answers take 1 to 8
engine steps, so that an actor's requests end one by one. The driver's CPU time is that of its whole process, Ray's
threads and the file of recorded rollouts included. What the process uses while nothing goes on is in it; *net* leaves
that out.

Two loads: actors with few requests each, and actors that hold as many as `rollout.max_in_flight_per_actor` allows.
Bars: under 200 µs per segment and flat (256 actors against 4), and a buffer that stays within its bound. A call of Ray
costs the driver much the same however much is in it, and most where it has to wake up for it: so the few segments of a
few actors cost most each.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from actors.buffer import SegmentBuffer
from actors.controller import Controller
from actors.loop import LoopSettings, LoopState
from actors.outcome import Outcome
from actors.requests import RequestStream
from actors.simulated_answers import lvis_like_record
from benchmarks.reporting import finish, print_table
from benchmarks.silent import FreshLearner, SilentKeeper, SilentObserver
from benchmarks.simulated_pool import MAX_IN_FLIGHT, new_pool
from deploy.recorder import RecordedRollout, RolloutFile
from protocol.packing import plan_packs
from protocol.records import RecordFile
from protocol.segments import segment_bytes

ACTORS = (1, 4, 16, 64, 256)
LOADS = {"few": 32, "full": MAX_IN_FLIGHT}
"""Requests that an actor holds: half of them for the window in training, half for the next."""
SEGMENTS = 3000
WARM_SEGMENTS = 1000
MIN_WINDOWS = 3
"""At least: the first of them was generated beside the warm-up."""
IDLE_S = 2.0
RECORDS = 500
MAX_LENGTH = 1 << 14
STORE = 6 << 30
"""Bytes of the object store: 65,536 segments of some 37 kB, the most that are there at a time, and room."""


class Recording(SilentObserver):
    """Writes recorded rollouts, as a run does; remembers the clocks at the end of the warm-up."""

    def __init__(self, folder: Path, warm_steps: int) -> None:
        self._file = RolloutFile(folder, 64 << 20)
        self._warm_steps = warm_steps
        self._arrived: list[RecordedRollout] = []
        self.started: tuple[float, float] = (0.0, 0.0)

    def outcome(self, outcome: Outcome) -> None:
        self._arrived.append(RecordedRollout.of(outcome, 0))

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self._file.append(self._arrived)
        self._arrived = []
        if step == self._warm_steps:
            self.started = time.process_time(), time.monotonic()


class WatchedBuffer(SegmentBuffer):
    """Remembers its largest fill."""

    peak = 0

    def put(self, *args: Any, **kwargs: Any) -> Any:
        entry = super().put(*args, **kwargs)
        self.peak = max(self.peak, self.num_bytes)
        return entry


def dense_records(folder: Path) -> RecordFile:
    """A file of records with as many boxes as LVIS images have."""
    path = folder / "train.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for index in range(RECORDS):
            boxes = [{"desc": item.desc, "bbox_2d": item.shape.bins} for item in lvis_like_record(index).objects]
            line = {"images": ["x.png"], "width": 1024, "height": 768, "objects": boxes}
            file.write(json.dumps(line) + "\n")
    return RecordFile(path)


def measure(num_actors: int, load: str, folder: Path) -> dict[str, Any]:
    """CPU time of the driver per segment, over `SEGMENTS` segments, or `MIN_WINDOWS` windows, after a warm-up."""
    batch = num_actors * LOADS[load] // 2
    warm, steps = -(-WARM_SEGMENTS // batch), max(-(-SEGMENTS // batch), MIN_WINDOWS)
    bound = batch * 2 * segment_bytes(MAX_LENGTH)
    buffer = WatchedBuffer(bound, batch * 2, segment_bytes(MAX_LENGTH))
    observer = Recording(folder, warm)
    pool, handles = new_pool(num_actors)
    pool.start()
    state = Controller(
        LoopSettings(
            batch_size=batch,
            m_steps=1,
            max_steps=warm + steps,
            max_staleness=1,
            eval_steps=0,
            save_last=False,
            top_k=5,
            capacity=MAX_LENGTH,
        ),
        pool=pool,
        learner=FreshLearner(),
        buffer=buffer,
        requests=RequestStream(dense_records(folder), seed=0),
        validation=[],
        plan=lambda lengths: plan_packs(lengths, capacity=1 << 20, num_ranks=1),
        observer=observer,
        keeper=SilentKeeper(),
        state=LoopState(),
    ).run()
    cpu, wall = (
        now - then for now, then in zip((time.process_time(), time.monotonic()), observer.started, strict=True)
    )
    segments, idle = state.trained - warm * batch, idle_cpu()
    for handle in handles:
        ray.kill(handle)
    return {
        "load": load,
        "actors": num_actors,
        "processes": len(handles),
        "segments": segments,
        "cpu_us_per_segment": 1e6 * cpu / segments,
        "net_us_per_segment": 1e6 * (cpu - idle * wall) / segments,
        "segments_per_s": segments / wall,
        "idle_cpu_us_per_s": 1e6 * idle,
        "buffer_bytes_max": buffer.peak,
        "buffer_bound": bound,
    }


def idle_cpu() -> float:
    """CPU seconds per second of this process while it only waits."""
    before = time.process_time()
    time.sleep(IDLE_S)
    return (time.process_time() - before) / IDLE_S


def main() -> None:
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=STORE)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(count, load, Path(folder)) for load in LOADS for count in ACTORS]
    ray.shutdown()
    print_table("Driver CPU per segment", list(rows[0]), [list(row.values()) for row in rows])
    costs = {(row["load"], row["actors"]): row["cpu_us_per_segment"] for row in rows}
    finish(
        "scale",
        {
            "rows": rows,
            "cpu_us_per_segment_at_256": {load: costs[load, 256] for load in LOADS},
            "growth_from_4_to_256": {load: costs[load, 256] / costs[load, 4] for load in LOADS},
            "buffer_within_bound": all(row["buffer_bytes_max"] <= row["buffer_bound"] for row in rows),
        },
    )


if __name__ == "__main__":
    main()
