"""What overlapping generation with training gives: `rollout.max_staleness` 1 against 0, the same work, in one run.

Part 1, real: the demo on 2 cores, one engine and one learner rank, runs taking turns; steps per hour from the metrics'
own clock (start-up, evaluation and checkpoints left out), and F1 on the validation scenes after equal rollouts.
Bars: at least 1.5x steps per hour (2.0 would be perfect), F1 within 0.02. *Busy cores* says how much is left to gain:
where they are all busy nothing is, and the more of them the run without overlap keeps busy, the less overlap can give.
Beside them stands what two processes that have nothing to do with each other gain by running side by side on this
machine (`benchmarks.machine`).

Part 2, simulated: 8 actors and a learner of 4 ranks, answers as long as LVIS answers, an engine's pace as on a GPU,
all times divided by `SPEED`; real Ray, pool, buffer, loop. Windows are trained in request order, so what generation
takes is set by the longest answers, and more windows in flight hide them better: for each staleness it is measured
first, with a learner that takes no time. Then the learner gets steps of `BALANCES` times that, and its share of the
wall time is measured. Bar: at least 95 % where the balance allows it. A window's requests are admitted `max_staleness`
windows before it is trained; where the training of those takes longer than the longest answer, some 115 s here, the
learner has no rollout to wait for. Engines load (1.5 s) while the next window is trained; what is left between two
steps is the driver's and Ray's own time, which the division makes `SPEED` times as heavy.

`--steps`, `--rounds` set the size of part 1; `--only real|simulated` leaves a part out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.progress import track

from actors.buffer import SegmentBuffer
from actors.controller import Controller
from actors.engine_loop import InFlight
from actors.loop import LoopSettings
from actors.pool import RolloutPool
from actors.requests import RequestStream
from actors.rollout_actor import THREADS
from actors.scripted_engine import Pace
from actors.simulated_answers import AnswerModel, lvis_like_record
from actors.simulation import SimulatedActor, Simulation
from actors.supervision import PoolSettings
from benchmarks.machine import busy_cores, parallel_gain
from benchmarks.reporting import finish, print_table
from benchmarks.silent import FreshLearner, SilentKeeper, SilentObserver
from deploy.demo.scenes import TRAIN_SEED, VALIDATION_SEED, write_scenes
from protocol.contracts import Record
from protocol.packing import plan_packs

WARM = 3
"""First steps that are not measured: caches and kernels warm up."""
SPEED = 20.0
BALANCES = (1.3, 2.0)
"""Training over generation: the learner is the narrow side."""
BATCH = 32
ACTORS = 8
CHARACTERS_PER_TOKEN = 2.2
"""The simulation's codec has one token per character; a box takes about 68 of them, 31 in Qwen's tokenizer."""
GPU_TOKEN_S, GPU_SEQUENCE_S, PREFILL_S = 0.012, 0.0001, 0.06


def train_once(staleness: int, steps: int, folder: Path, seed: int) -> dict[str, float]:
    """One run of the demo in a process of its own."""
    name = f"s{staleness}-{seed}"
    overrides = [
        f"custom.train_jsonl={folder / 'data' / 'train.jsonl'}",
        f"custom.val_jsonl={folder / 'data' / 'val.jsonl'}",
        f"training.output_dir={folder}",
        f"training.run_name={name}",
        f"training.max_steps={steps}",
        f"training.seed={seed}",
        "training.eval_steps=null",
        'training.save_strategy="no"',
        "custom.extra.rollout_matching.rollout_buffer.m_steps=1",
        f"rollout.max_staleness={staleness}",
    ]
    command = [sys.executable, "-m", "deploy.cli", "train", "--config", "configs/demo.yaml", *overrides]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with busy_cores() as busy:
        subprocess.run(command, check=True, capture_output=True, timeout=3600, env=os.environ | {"PATH": path})
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss/ce" in line][WARM:]
    wall = trained[-1]["time"] - trained[0]["time"]
    f1 = [line["eval_rollout_f1"] for line in lines if "eval_rollout_f1" in line]
    return {
        "steps_per_h": 3600 * (len(trained) - 1) / wall,
        "waited_share": sum(line["time/wait_rollouts_s"] for line in trained[1:]) / wall,
        "busy_cores": statistics.mean(cores for at, cores in busy if trained[0]["time"] < at < trained[-1]["time"]),
        "f1_before": f1[0],
        "f1_after": f1[-1],
    }


def real(steps: int, rounds: int) -> dict[str, Any]:
    """Medians of runs that take turns."""
    found: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder) / "data", "train", 2000, TRAIN_SEED)
        write_scenes(Path(folder) / "data", "val", 256, VALIDATION_SEED)
        for seed in range(1, rounds + 1):
            for staleness in (0, 1):
                found[staleness].append(train_once(staleness, steps, Path(folder), seed))
    medians = {
        staleness: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for staleness, runs in found.items()
    }
    rows = [[staleness, *values.values()] for staleness, values in medians.items()]
    print_table("Real: demo, 1 engine, 1 rank", ["max_staleness", *medians[0]], rows)
    print(f"two unrelated processes side by side do {(gain := parallel_gain()):.2f} times the work of one")
    return {
        "steps": steps,
        "rounds": rounds,
        "parallel_gain": gain,
        "runs": found,
        "speedup": medians[1]["steps_per_h"] / medians[0]["steps_per_h"],
        "f1_difference": medians[1]["f1_after"] - medians[0]["f1_after"],
    }


class LvisLike:
    """Records whose answers are as long as those of LVIS."""

    def __len__(self) -> int:
        return 100_000

    def read(self, rows: Iterable[tuple[int, int]]) -> Iterator[Record]:
        return (lvis_like_record(index) for index, _ in rows)


def run_simulated(staleness: int, in_flight: InFlight, step_s: float, windows: int) -> tuple[float, float]:
    """Share of the wall time that the learner trained, and seconds per window."""
    per_character = 1 / CHARACTERS_PER_TOKEN / SPEED
    pace = Pace(
        token_s=GPU_TOKEN_S * per_character,
        sequence_s=GPU_SEQUENCE_S * per_character,
        prefill_s=PREFILL_S / SPEED,
        load_s=1.5 / SPEED,
    )
    simulation = Simulation(tokens_per_step=64, max_new_tokens=1 << 16, pace=pace, answers=AnswerModel())
    remote = ray.remote(num_cpus=0, concurrency_groups=THREADS)(SimulatedActor)
    limits = PoolSettings(
        num_actors=ACTORS,
        max_in_flight_per_actor=64,
        startup_timeout_s=300,
        stall_timeout_s=300,
        sync_timeout_s=300,
        max_restarts=0,
        max_retries=0,
        in_flight=in_flight,
    )
    pool, learner, observer = (
        RolloutPool(limits, lambda _: remote.remote(simulation), None),
        FreshLearner(step_s),
        SilentObserver(),
    )
    pool.start()
    clock: list[float] = []
    observer.on_step = lambda step: clock.extend([time.monotonic(), learner.busy_s]) if step == WARM else None
    Controller(
        LoopSettings(
            batch_size=BATCH,
            m_steps=1,
            max_steps=WARM + windows,
            max_staleness=staleness,
            eval_steps=0,
            save_last=False,
            top_k=5,
            capacity=1 << 20,
        ),
        pool=pool,
        learner=learner,
        buffer=SegmentBuffer(1 << 30, 4096, 1 << 20),
        requests=RequestStream(LvisLike(), seed=0),
        validation=[],
        plan=lambda lengths: plan_packs(lengths, capacity=1 << 20, num_ranks=4),
        observer=observer,
        keeper=SilentKeeper(),
    ).run()
    wall = time.monotonic() - clock[0]
    pool.close()
    return (learner.busy_s - clock[1]) / wall, wall / windows


def simulated(windows: int) -> dict[str, Any]:
    """The learner's busy share over staleness and balance."""
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=512 * 2**20)
    modes: tuple[tuple[int, InFlight], ...] = (
        (1, "drain"),
        (1, "continue"),
        (2, "continue"),
        (4, "continue"),
    )
    rows = []
    for staleness, in_flight in track(modes, "simulating", console=Console(file=sys.stderr)):
        _, generation = run_simulated(staleness, in_flight, 0.0, windows)
        for balance in BALANCES:
            share, window = run_simulated(staleness, in_flight, balance * generation, windows)
            rows.append([staleness, in_flight, *(SPEED * s for s in (generation, balance * generation, window)), share])
    ray.shutdown()
    columns = ["max_staleness", "in_flight", "generation_s", "training_s", "window_s", "learner_busy"]
    print_table(f"Simulated: {ACTORS} actors, 4 ranks, LVIS-like lengths", columns, rows)
    return {
        "speed": SPEED,
        "rows": [dict(zip(columns, row, strict=True)) for row in rows],
        "learner_busy": {"least": min(row[-1] for row in rows), "most": max(row[-1] for row in rows)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--only", choices=["real", "simulated"])
    parser.add_argument("--write", action="store_true", help="store the result with the hardware's name")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    if arguments.only != "simulated":
        result["real"] = real(arguments.steps, arguments.rounds)
    if arguments.only != "real":
        result["simulated"] = simulated(arguments.windows)
    finish("overlap", result, write=arguments.write)


if __name__ == "__main__":
    main()
