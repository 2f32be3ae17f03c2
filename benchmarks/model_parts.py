"""One part of `benchmarks.model_sizes`, in a process of its own.

    python -m benchmarks.model_parts PART SIZE FOLDER [overrides of configs/node_8gpu.yaml]

PART is `write` (a checkpoint with random weights), `learner` or `engine`. The last line is one JSON object. On a CPU
SIZE `tiny` is for trying the program out: seconds are then processor seconds, bytes the process's.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.engine_loop import EngineLoop
from benchmarks.engines import draw_requests, open_engine
from benchmarks.learner import join_alone
from benchmarks.learner_head import forget_peak, now, peak_bytes
from benchmarks.model_files import MATCHING, config_of, write
from benchmarks.packing import lengths
from benchmarks.reporting import hardware
from protocol.config import RunConfig
from protocol.contracts import Completion, RolloutRequest
from protocol.packing import plan_packs
from protocol.segments import Segment
from tests.learner import tiny

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WINDOW = 32
STEPS = 3
NEW_TOKENS = {"tiny": 16}
IMAGE = {"tiny": (128, 96)}
"""Width and height; elsewhere 1,024 x 768, which is 768 tokens."""
TIMEOUT_S = 600.0


def learner(size: str, folder: Path, *more: str) -> dict[str, Any]:
    """Memory and speed of whole optimizer steps, of publishes, and of moving the states to host memory."""
    from learner.settings import LearnerSettings
    from learner.worker import LearnerWorker

    join_alone()
    config = config_of(size, folder, f"{MATCHING}.offload.enabled=false", *more)
    worker = LearnerWorker(LearnerSettings.from_config(config, num_steps=100))
    states = forget_peak(DEVICE)
    windows = [_window(size, folder, config.global_max_length, number) for number in range(STEPS + 1)]
    seconds = [_timed(partial(worker.train_step, window)) for window in windows]
    tokens = [sum(len(segment.input_ids) for pack in window for segment in pack) for window in windows]
    again = _timed(lambda: worker.train_step(windows[-1]))
    peak = peak_bytes(DEVICE)
    publish = {kind: _publish(worker, full) for kind, full in (("first", True), ("later", False), ("next", False))}
    return {
        "tokens": tokens,
        "packs": [len(window) for window in windows],
        "states_bytes": states,
        "peak_bytes": peak,
        "step_s": seconds,
        "same_again_s": again,
        "tokens_per_s": sum(tokens[1:]) / sum(seconds[1:]),
        "publish": publish,
        "residence": [_residence(worker) for _ in range(2)] if torch.cuda.is_available() else None,
    }


def _window(size: str, folder: Path, capacity: int, seed: int) -> list[list[Segment]]:
    """Packs of one optimizer step; lengths differ from window to window, as in training."""
    image = IMAGE.get(size, (1024, 768))
    sizes = [min(each, capacity) for each in lengths("LVIS-like", WINDOW, np.random.default_rng(seed))]
    frame = len(tiny.make_segment(folder, 0, prefix=8, tail=8, size=image).input_ids) - 12

    def make(number: int) -> Segment:
        free = max(16, sizes[number] - frame)
        return tiny.make_segment(folder, WINDOW * seed + number, prefix=free // 2, tail=free - free // 2, size=image)

    with ThreadPoolExecutor() as threads:  # drawing the images takes longest
        segments = list(threads.map(make, range(WINDOW)))
    plan = plan_packs([len(segment.input_ids) for segment in segments], capacity=capacity, num_ranks=1)
    return [[segments[at] for at in row[0]] for row in plan.micro_batches]


def _publish(worker: Any, full: bool) -> dict[str, float]:
    """Seconds from masters to buckets in host memory; the object store's copy comes on top."""
    items: deque[Any] = deque(maxlen=1)  # buckets are let go, the manifest comes last
    seconds = _timed(lambda: items.extend(worker.publish(1, full)))
    num_bytes = sum(entry.num_bytes for entry in items[0].tensors)
    return {"bytes": num_bytes, "seconds": seconds, "gb_per_s": num_bytes / seconds / 1e9}


def _residence(worker: Any) -> dict[str, float]:
    """What moving to host memory and back takes and frees (`rollout_matching.offload`)."""
    before = forget_peak(DEVICE)
    leave = _timed(lambda: worker._engine.offload(("model", "optimizer")))
    away = forget_peak(DEVICE)
    enter = _timed(worker._engine.reload)
    return {"leave_s": leave, "enter_s": enter, "before_bytes": before, "away_bytes": away}


def engine(size: str, folder: Path, *more: str) -> dict[str, Any]:
    """Tokens per second of a full batch, and of two with new images, prepared between the steps and beside them; loads
    of the first and of a later publish, sleep and waking."""
    from actors.settings import ActorSettings

    # Random weights say nothing about an answer's length: all are as long as allowed.
    config = config_of(size, folder, f"{MATCHING}.max_new_tokens={NEW_TOKENS.get(size, 512)}", *more)
    settings = ActorSettings.from_config(config)
    if torch.cuda.is_available():
        settings.engine.options["enable_sleep_mode"] = True
    started = time.perf_counter()
    loop = EngineLoop(lambda: Preparing(open_engine(settings)))
    loop.start()
    start_s = _told("start_s", time.perf_counter() - started)
    at_once = settings.engine.options.get("max_num_seqs", 64)
    again, *new = _requests(folder, IMAGE.get(size, (1024, 768)), at_once)
    answers = [_told("again", _answer(loop, again)) for _ in range(2)]
    prepared = {}
    for manner, requests in zip(("between", "beside"), new, strict=True):
        loop.ask(partial(Preparing.switch, beside=manner == "beside"))
        prepared[manner] = _told(manner, _answer(loop, requests))
    load = partial(_load, config=config, folder=folder)
    loads = {kind: _told(kind, loop.ask(partial(load, later=kind == "later"))) for kind in ("first", "later")}
    turns = range(2 if torch.cuda.is_available() else 0)
    slept = [_told("asleep", loop.ask(_sleep)) for _ in turns]
    loop.close()
    found = {"answers": answers, "prepared": prepared, "loads": loads, "residence": slept}
    return {"start_s": start_s, "at_once": at_once} | found


def _told(name: str, figures: Any) -> Any:
    """The figures; whoever waits for the last line sees them now."""
    print(f"{name}: {figures}", file=sys.stderr, flush=True)
    return figures


def _requests(folder: Path, image: tuple[int, int], at_once: int) -> list[list[RolloutRequest]]:
    """A full batch, and twice two of them, each with images of its own."""
    counts = enumerate([at_once, 2 * at_once, 2 * at_once])
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda each: draw_requests(folder, *image, each[1], seed=each[0]), counts))


def _sleep(vllm: Any) -> dict[str, float]:
    return {"sleep_s": _timed(vllm.sleep), "wake_s": _timed(vllm._wake)}


class Preparing:
    """An engine that prepares images beside its steps, as the loop asks it to, or else between two."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._beside = engine, True

    def switch(self, beside: bool) -> None:
        self._beside = beside

    def prepare(self, request: RolloutRequest) -> Any:
        return self._engine.prepare(request) if self._beside else None

    def submit(self, request: RolloutRequest, prepared: Any) -> None:
        self._engine.submit(request, prepared or self._engine.prepare(request))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _answer(loop: EngineLoop, requests: Sequence[RolloutRequest]) -> dict[str, float]:
    """All at once: answer tokens, and the seconds they took."""
    started = time.perf_counter()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loop.submit(requests, lambda _, answer: answers.put(answer))
    tokens = 0
    for _ in requests:
        answer = answers.get(timeout=TIMEOUT_S)
        assert isinstance(answer, Completion), answer
        tokens += len(answer.token_ids)
    return {"tokens": tokens, "seconds": time.perf_counter() - started}


def _load(vllm: Any, config: RunConfig, folder: Path, later: bool) -> dict[str, float]:
    """A publish of the checkpoint itself, whole or of the layers with adapters: digests, copies, caches."""
    from learner.export import read_merged
    from learner.publisher import publish_as_is

    wanted = _adapted(config) if later else [""]
    chosen = ((name, tensor) for name, tensor in read_merged(folder) if any(part in name for part in wanted))
    *buckets, manifest = publish_as_is(chosen, 1 + later, config.sync.bucket_bytes)
    report = vllm.load_weights(manifest, buckets)
    num_bytes = sum(entry.num_bytes for entry in manifest.tensors)
    return {
        "bytes": num_bytes,
        "load_s": report.load_seconds,
        "resume_s": report.resume_seconds,
        "gb_per_s": num_bytes / report.load_seconds / 1e9,
    }


def _adapted(config: RunConfig) -> list[str]:
    assert config.tuner.target_regex is not None
    last = config.tuner.target_regex.split("layers\\.(")[1].split(")")[0].split("|")
    return [*(f".layers.{layer}." for layer in last), "merger"]


def _timed(call: Callable[[], object]) -> float:
    started = now(DEVICE)
    call()
    return now(DEVICE) - started


def main() -> None:
    part, size, folder, more = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    figures = {"write": write, "learner": learner, "engine": engine}[part](size, folder, *more)
    print(json.dumps({"part": part, "overrides": more, "hardware": hardware()} | figures))


if __name__ == "__main__":
    main()
