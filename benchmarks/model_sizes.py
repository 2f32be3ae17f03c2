"""Learner and engine at the sizes of Qwen3-VL on one GPU, with random weights, beside what `rollmatch plan` estimates.

    python -m benchmarks.model_sizes [--sizes 4B] [--parts learner eager graphs] [--found FILE ...] [--write]

The run file is configs/node_8gpu.yaml with one engine and one learner rank: DoRA on the last eight language layers,
checkpointing, packs of up to 16,000 tokens, windows of 32 segments with LVIS-like lengths and images of 768 tokens.

    learner    optimizer steps on windows of new lengths, *same again* is the last of them once more; peak memory;
               publishes from masters to host memory; moving states to host memory and back, twice
    eager      an engine without CUDA graphs, behind the actor's loop: 64 requests of 512 tokens at once, then the same
    graphs     *again*, whose images are cached; 128 requests with new images, prepared *between* the engine's steps and
               *beside* them; loads of a first and a later publish, digests included; sleep and waking, twice.
               *graphs* is the same with CUDA graphs

Each part is a process of `benchmarks.model_parts`; checkpoints are written to /dev/shm and removed. `--found` names
files of earlier parts' last lines instead of running them: one part may take minutes. Random weights say nothing about
how long answers are, so all are 512 tokens long. Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.model_files import config_of
from benchmarks.model_parts import WINDOW
from benchmarks.reporting import finish, print_table
from deploy.model_shape import preset
from deploy.sizing import GIB, Device, Load, balance, engine_memory, learner_memory

PARTS = {"learner": ["learner"], "eager": ["engine", "enforce_eager=true"], "graphs": ["engine", "enforce_eager=false"]}
ONE_GPU = ("cluster.gpus_per_actor=1", "cluster.gpus_per_learner=1")
VLLM = "custom.extra.rollout_matching.vllm."
DEADLINE_S = 900.0
PROMPT_TOKENS, ANSWER_TOKENS = 768 + 12, 512


def run_part(size: str, part: str, folder: Path) -> dict[str, Any]:
    """The part's figures, from a process of its own."""
    if not (folder / "config.json").exists():
        _run("write", size, str(folder))
    name, *more = PARTS[part]
    return _run(name, size, str(folder), *(VLLM + each for each in more))


def _run(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.model_parts", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def estimate(size: str) -> dict[str, float]:
    """What `rollmatch plan` says of the same run."""
    shape = preset(size)
    config = config_of(size, Path(f"/models/{size}"), *ONE_GPU)
    memory = learner_memory(shape, config, 2)
    load = Load(prompt_tokens=PROMPT_TOKENS, answer_tokens=ANSWER_TOKENS)
    planned = {"states_bytes": memory.states, "peak_bytes": memory.total}
    for part in ("eager", "graphs"):
        # All of max_num_seqs are asked at once here, as if the window were that large.
        more = [f"training.effective_batch_size={config.matching.vllm.max_num_seqs}", VLLM + PARTS[part][1]]
        full = config_of(size, Path(f"/models/{size}"), *ONE_GPU, *more)
        found = balance(shape, full, load, Device(), engine_memory(shape, full))
        planned["train_tokens_per_s"] = found.learner_tokens_s
        planned[f"answer_tokens_per_s_{part}"] = found.actor_tokens_s
    return planned


def rows(size: str, found: dict[str, Any], planned: dict[str, float]) -> Iterator[list[object]]:
    """(size, what, measured, planned) for the table."""
    if learner := found.get("learner"):
        yield [size, "learner: states, GiB", learner["states_bytes"] / GIB, planned["states_bytes"] / GIB]
        yield [size, "learner: peak, GiB", learner["peak_bytes"] / GIB, planned["peak_bytes"] / GIB]
        yield [size, "learner: tokens/s", learner["tokens_per_s"], planned["train_tokens_per_s"]]
        yield [size, f"learner: step of {WINDOW} segments, s", learner["step_s"][-1], ""]
        yield [size, "learner: same again, s", learner["same_again_s"], ""]
        for kind, each in learner["publish"].items():
            yield [size, f"publish, {kind}: {each['bytes'] / 1e9:.2f} GB, s", each["seconds"], ""]
        for number, each in enumerate(learner["residence"] or []):
            yield [size, f"learner leaves the GPU ({number + 1}), s", each["leave_s"], ""]
            yield [size, f"learner is back ({number + 1}), s", each["enter_s"], ""]
            yield [size, f"left on the GPU ({number + 1}), GiB", each["away_bytes"] / GIB, ""]
    for part in ("eager", "graphs"):
        if engine := found.get(part):
            timed = {"again": engine["answers"][-1], **engine.get("prepared", {})}
            for kind, each in timed.items():
                plan = planned[f"answer_tokens_per_s_{part}"]
                yield [size, f"engine, {part}: tokens/s, images {kind}", each["tokens"] / each["seconds"], plan]
            yield [size, f"engine, {part}: start, s", engine["start_s"], ""]
            for kind, each in engine["loads"].items():
                yield [size, f"engine, {part}: load, {kind}: {each['bytes'] / 1e9:.2f} GB, s", each["load_s"], ""]
            for number, each in enumerate(engine["residence"]):
                yield [size, f"engine, {part}: sleeps ({number + 1}), s", each["sleep_s"], ""]
                yield [size, f"engine, {part}: wakes ({number + 1}), s", each["wake_s"], ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", default=["4B"], help="of Qwen3-VL: 2B, 4B, 8B")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--found", nargs="*", default=[], metavar="SIZE/PART=FILE", help="last lines of earlier parts")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {size: {} for size in arguments.sizes}
    for each in arguments.found:
        name, file = each.split("=", 1)
        size, part = name.split("/")
        found.setdefault(size, {})[part] = json.loads(Path(file).read_text().splitlines()[-1])
    missing = [part for size in arguments.sizes for part in arguments.parts if part not in found[size]]
    if missing and not torch.cuda.is_available():
        print("skipped: needs a GPU")
        finish("model_sizes", {"skipped": "no GPU"}, write=False)
        return
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="rm-") as folder:
            for part in arguments.parts:
                if part not in found[size]:
                    print(f"{size}: {part}", file=sys.stderr, flush=True)
                    found[size][part] = run_part(size, part, Path(folder) / size)
    planned = {size: estimate(size) for size in found}
    table = [row for size, parts in found.items() for row in rows(size, parts, planned[size])]
    print_table("Qwen3-VL, random weights, one GPU", ["size", "what", "measured", "planned"], table)
    measured_on = next(part["hardware"] for parts in found.values() for part in parts.values())
    figures = {"hardware": measured_on, "sizes": found, "planned": planned}
    finish("model_sizes", figures, write=arguments.write)


if __name__ == "__main__":
    main()
