"""vLLM against transformers as rollout backend: rollouts and tokens per second, and peak memory, on equal cores.

    python -m benchmarks.rollout_backends [--samples 32] [--repeats 2] [--batches 1 4 8 16 32] [--threads 1] [--write]

The runbook's ablation on the demo's checkpoint: greedy, at most 256 new tokens, natural stopping, the same drawn scenes
for every engine, and new ones in every round: in training weights change between two answers to a scene, so no cache
may help. vLLM runs eagerly, as the demo has it, and compiled (`vllm.enforce_eager: false`), as it does on GPUs by
default. Compiled code is not cached before, so *start* is that of a first start. Each engine lives in a process of its
own behind the actor's loop (`actors/engine_loop.py`), as in production, and sleeps while another is measured; rounds
alternate between all of them, and the first round warms up. A rate is the median over the rounds; *eager ratio* and
*compiled ratio* are the medians of vLLM's rate by that engine's, within each round. *CPU* is the process's own time,
which other work on the machine changes least. *Peak* is the process's largest resident memory; *engine* leaves out what
importing its libraries took. *Same* counts answers equal to vLLM's: a backend that stopped early would look fast.
Every engine has one thread, as the demo's actor has: with two, each is slower on a model of this size. Where there is a
GPU all engines use it, in bfloat16, whose rounding makes some answers differ.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import queue
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from actors.engine_loop import EngineLoop
from benchmarks.engines import demo_settings, open_engine
from benchmarks.reporting import finish, print_table

TARGET = 1.84
"""vLLM against HF on two A100s, as the runbook measured it (SPEC, part C)."""
ON_GPU = [
    "cluster.gpus_per_actor=1",
    "model.torch_dtype=bfloat16",
    "custom.extra.rollout_matching.vllm.gpu_memory_utilization=0.2",
]
START_TIMEOUT_S = ROUND_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Variant:
    """One engine under test."""

    name: str
    backend: str
    batch_size: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    """Engine arguments of vLLM."""


VLLM = (
    Variant("vllm", "vllm", options={"enforce_eager": True}),
    Variant("vllm compiled", "vllm", options={"enforce_eager": False}),
)


def main() -> None:
    arguments = read_arguments()
    variants = [*VLLM, *(Variant(f"hf batch {size}", "hf", size) for size in arguments.batches)]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        data = draw_scenes(Path(folder), arguments.samples * (arguments.repeats + 1) + 1)  # one to warm up with
        engines, starts = {}, {}
        for each in variants:
            engines[each.name] = stack.enter_context(engine_process(each, data, arguments))
            starts[each.name] = receive(engines[each.name], START_TIMEOUT_S, f"{each.name} to start")
        rounds = [
            {name: measured(engine, number * arguments.samples, arguments.samples) for name, engine in engines.items()}
            for number in range(arguments.repeats + 1)
        ][1:]
    report(variants, starts, rounds, arguments)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


def draw_scenes(folder: Path, count: int) -> Path:
    from deploy.demo.scenes import write_scenes

    write_scenes(folder, "train", count, seed=77)
    return folder / "train.jsonl"


@contextlib.contextmanager
def engine_process(variant: Variant, data: Path, arguments: argparse.Namespace) -> Iterator[Connection]:
    """Starts an engine in a fresh interpreter, which says when it has answered once, and after how many seconds; ends
    it afterwards."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, variant, data, arguments.threads), name=variant.name, daemon=True
    )
    with environment(arguments.threads, data.parent / "compiled"):
        process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(30)
        process.kill()


@contextlib.contextmanager
def environment(threads: int, compiled: Path) -> Iterator[None]:
    """What an actor's process is given: as many threads as it has cores, which sleep when they are idle. And a folder
    for compiled code."""
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="0", KMP_BLOCKTIME="0")
    os.environ.update(VLLM_CACHE_ROOT=str(compiled))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def measured(engine: Connection, first: int, count: int) -> dict[str, Any]:
    engine.send((first, count))
    result: dict[str, Any] = receive(engine, ROUND_TIMEOUT_S, "a round of answers")
    return result


def receive(engine: Connection, timeout_s: float, what: str) -> Any:
    if not engine.poll(timeout_s):
        raise TimeoutError(f"waited {timeout_s:.0f} s for {what}; the engine's own output is above")
    return engine.recv()


def serve(pipe: Connection, variant: Variant, data: Path, threads: int) -> None:
    """The engine's process: one round per message, until the other end is closed."""
    import torch

    from protocol.records import RecordFile

    settings = demo_settings(f"cluster.cpus_per_actor={threads}", *(ON_GPU if torch.cuda.is_available() else []))
    settings = replace(
        settings,
        engine=replace(settings.engine, backend=variant.backend, options=settings.engine.options | variant.options),
        decode=replace(settings.decode, max_new_tokens=256, batch_size=variant.batch_size),
    )
    records, started = list(RecordFile(data)), time.perf_counter()
    loop, libraries = start(settings)
    answer(loop, records[-1:])
    pipe.send(time.perf_counter() - started)
    with contextlib.suppress(EOFError):
        while True:
            first, count = pipe.recv()
            round_ = records[first : first + count]
            pipe.send(answer(loop, round_) | {"peak_bytes": peak_bytes(), "library_bytes": libraries})
    loop.close()


def start(settings: Any) -> tuple[EngineLoop, int]:
    """The engine in its loop, and the memory of the process before it was built but after its library was imported."""
    import importlib

    from actors.vllm_environment import engine_environment

    os.environ.update(engine_environment(settings.engine))
    importlib.import_module("vllm.v1.engine.llm_engine" if settings.engine.backend == "vllm" else "actors.hf_engine")
    libraries = peak_bytes()
    loop = EngineLoop(lambda: open_engine(settings), settings.decode.batch_size)
    loop.start()
    return loop, libraries


def answer(loop: EngineLoop, records: Sequence[Any]) -> dict[str, Any]:
    """All records at once, as a rollout call hands them over; everything from the image file on is timed."""
    from protocol.contracts import RequestKey, RolloutRequest

    requests = [RolloutRequest(key=RequestKey(record.index), record=record, seed=0) for record in records]
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    started, cpu = time.perf_counter(), time.process_time()
    loop.submit(requests, lambda asked, answer: arrived.put((asked.key.record, answer)))
    answers = dict(arrived.get(timeout=ROUND_TIMEOUT_S) for _ in requests)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "tokens": sum(len(each.token_ids) for each in answers.values()),
        "stopped": sum(each.finish_reason == "stop" for each in answers.values()),
        "answers": [answers[record.index].token_ids.tolist() for record in records],
    }


def peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(
    variants: Sequence[Variant], starts: dict[str, float], rounds: Sequence[dict[str, dict[str, Any]]], arguments: Any
) -> None:
    cases = [case(variant.name, rounds, arguments) | {"start_s": starts[variant.name]} for variant in variants]
    best = max(cases[len(VLLM) :], key=lambda each: each["rollouts_per_s"])
    columns = ("engine", "start_s", "rollouts_per_s", "tokens_per_s", "cpu_s", "eager_ratio", "compiled_ratio")
    columns += ("peak_mb", "engine_mb", "same")
    title = f"{arguments.samples} samples, {arguments.repeats} rounds, {arguments.threads} threads, up to 256 tokens"
    rows = [[each[name] for name in columns] for each in cases]
    print_table(title, [name.replace("_", " ") for name in columns], rows)
    ratios = {name: best[f"{name}_ratio"] for name in ("eager", "compiled")}
    print(
        f"vLLM is {ratios['eager']:.2f}x HF's best batch ({best['engine']}), compiled {ratios['compiled']:.2f}x; "
        f"aimed at {TARGET}x"
    )
    settings = {name: getattr(arguments, name) for name in ("samples", "repeats", "threads")}
    found = {"settings": settings, "ratio_to_best_hf": ratios, "best_hf": best["engine"], "cases": cases}
    finish("rollout_backends", found)


def case(name: str, rounds: Sequence[dict[str, dict[str, Any]]], arguments: Any) -> dict[str, Any]:
    """What the rounds say of one engine."""
    mine = [each[name] for each in rounds]
    same = sum(a == b for each in rounds for a, b in zip(each[name]["answers"], each["vllm"]["answers"], strict=True))

    def ratio(to: str) -> float:
        return statistics.median(each[name]["seconds"] / each[to]["seconds"] for each in rounds)

    return {
        "engine": name,
        "rollouts_per_s": statistics.median(arguments.samples / each["seconds"] for each in mine),
        "tokens_per_s": statistics.median(each["tokens"] / each["seconds"] for each in mine),
        "cpu_s": statistics.median(each["cpu_seconds"] for each in mine),
        "eager_ratio": ratio("vllm"),
        "compiled_ratio": ratio("vllm compiled"),
        "peak_mb": mine[-1]["peak_bytes"] / 1e6,
        "engine_mb": (mine[-1]["peak_bytes"] - mine[-1]["library_bytes"]) / 1e6,
        "same": f"{same}/{arguments.samples * len(rounds)}",
        "stopped": sum(each["stopped"] for each in mine),
        "mean_tokens": statistics.mean(each["tokens"] for each in mine) / arguments.samples,
    }


if __name__ == "__main__":
    main()
