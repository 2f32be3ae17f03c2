"""One part of `benchmarks.model_sizes`, in a process of its own.

    python -m benchmarks.model_parts PART SIZE FOLDER [overrides of configs/node_8gpu.yaml]

PART is `write` (a checkpoint with random weights), `learner` or `engine`. The last line is one JSON object. On a CPU
SIZE `tiny` is for trying the program out: seconds are then processor seconds, bytes the process's.
"""

from __future__ import annotations

import json
import os
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

from benchmarks.engines import open_engine
from benchmarks.learner import join_alone
from benchmarks.learner_head import forget_peak, now, peak_bytes
from benchmarks.model_files import MATCHING, config_of, write
from benchmarks.packing import lengths
from benchmarks.reporting import hardware
from protocol.config import RunConfig
from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.packing import plan_packs
from protocol.segments import Segment
from tests.learner import tiny

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WINDOW = 32
STEPS = 3
NEW_TOKENS = {"tiny": 16}
IMAGE = {"tiny": (128, 96)}
"""Width and height; elsewhere 1,024 x 768, which is 768 tokens."""


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
    """Tokens per second of a full batch, loads of the first and of a later publish, sleep and waking."""
    from actors.settings import ActorSettings

    # Random weights say nothing about an answer's length: all are as long as allowed.
    config = config_of(size, folder, f"{MATCHING}.max_new_tokens={NEW_TOKENS.get(size, 512)}", *more)
    settings = ActorSettings.from_config(config)
    if torch.cuda.is_available():
        settings.engine.options["enable_sleep_mode"] = True
    started = time.perf_counter()
    vllm = open_engine(settings)
    start_s = time.perf_counter() - started
    records = [_record(size, folder, number) for number in range(settings.engine.options.get("max_num_seqs", 64))]
    answered = []
    for seed in range(2):
        started = time.perf_counter()
        count = _answer(vllm, records, seed)
        answered.append({"tokens": count, "seconds": time.perf_counter() - started})
    loads = {kind: _load(vllm, config, folder, kind == "later") for kind in ("first", "later")}
    turns = range(2 if torch.cuda.is_available() else 0)
    slept = [{"sleep_s": _timed(vllm.sleep), "wake_s": _timed(vllm._wake)} for _ in turns]
    vllm.close()
    return {"start_s": start_s, "at_once": len(records), "answers": answered, "loads": loads, "residence": slept}


def _record(size: str, folder: Path, number: int) -> Record:
    width, height = IMAGE.get(size, (1024, 768))
    image = tiny.draw_image(folder / f"{number}.png", number, width, height)
    return Record(index=number, source=image, images=(image,), width=width, height=height, objects=())


def _answer(vllm: Any, records: Sequence[Record], seed: int) -> int:
    """Answer tokens."""
    for record in records:
        request = RolloutRequest(key=RequestKey(record.index), record=record, seed=seed)
        vllm.submit(request, vllm.prepare(request))
    count = 0
    while vllm.num_unfinished:
        count += sum(len(completion.token_ids) for completion in vllm.step())
    return count


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
