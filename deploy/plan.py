"""`rollmatch plan`: what a run needs and how its sides balance, as a table; starts nothing, needs no checkpoint."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from deploy.bundles import shares, shown, totals
from deploy.check_sizing import check_sizing
from deploy.findings import Finding, note, print_findings
from deploy.model_shape import PRESETS, ModelShape, model_shape, preset
from deploy.sizing import GIB, Device, Load, balance, engine_memory, host_memory, learner_memory, learner_stage
from protocol.config import RunConfig
from protocol.errors import ConfigError

Row = tuple[str, str, str]
N = TypeVar("N", int, float)


def _positive(kind: Callable[[str], N]) -> Callable[[str], N]:
    def read(text: str) -> N:
        value = kind(text)
        if not 0 < value < math.inf:
            raise ValueError
        return value

    read.__name__ = f"{kind.__name__} above 0"  # what argparse calls it: "invalid int above 0 value: '-5'"
    return read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Inputs of the estimate, beside the run file."""
    device = Device()
    parser.add_argument("--model", choices=sorted(PRESETS), help="count with this Qwen3-VL, not with model.model")
    parser.add_argument(
        "--prompt-tokens", type=_positive(int), default=1000, help="mean prompt with image (default 1000)"
    )
    parser.add_argument(
        "--answer-tokens", type=_positive(int), help="mean answer (default: a quarter of max_new_tokens)"
    )
    parser.add_argument(
        "--bandwidth", type=_positive(float), default=device.bandwidth_gbytes_s, help="of a GPU, GB/s (default 3350)"
    )
    parser.add_argument(
        "--tflops", type=_positive(float), default=device.tflops, help="of a GPU, dense bfloat16 (default 990)"
    )


def plan(config: RunConfig, arguments: argparse.Namespace, console: Console | None = None) -> list[Finding]:
    """Prints the table and the findings; ConfigError where the model's size is unknown."""
    shape = preset(arguments.model) if arguments.model else model_shape(config)
    if shape is None:
        raise ConfigError(
            f"model.model: {config.model.model} is no folder with a Qwen3-VL config.json, and no size stands in its "
            f"name; add --model {' or '.join(PRESETS)}"
        )
    answer = arguments.answer_tokens or max(1, config.matching.max_new_tokens // 4)
    load = Load(prompt_tokens=arguments.prompt_tokens, answer_tokens=answer)
    device = Device(bandwidth_gbytes_s=arguments.bandwidth, tflops=arguments.tflops)
    table = Table(title=f"Plan: {shape.source}, {shape.num_params / 1e9:.3g} billion parameters")
    for column in ("what", "size", "how"):
        table.add_column(column, overflow="fold")
    for row in rows(config, shape, load, device):
        table.add_row(*row)
    console = console or Console()
    console.print(table)
    findings = [
        *check_sizing(config, shape),
        note("plan", "estimates; docs/sizing.md says what was measured beside them"),
    ]
    print_findings(findings, console=console)
    return findings


def rows(config: RunConfig, shape: ModelShape, load: Load, device: Device) -> Sequence[Row]:
    """The table."""
    on_gpu = config.cluster.gpus_per_actor > 0 and config.cluster.gpus_per_learner > 0
    return [
        ("placed", ", ".join(f"{n:g} {name}" for name, n in totals(shares(config)).items()), _placed(config)),
        *_memory(config, shape),
        *(_throughput(config, shape, load, device) if on_gpu else [("throughput", "-", "is estimated for GPUs only")]),
    ]


def _placed(config: RunConfig) -> str:
    return "; ".join(f"{share.count} x {share.role} with {shown(share.resources)}" for share in shares(config))


def _memory(config: RunConfig, shape: ModelShape) -> list[Row]:
    learner = learner_memory(shape, config, learner_stage(config))
    engine, host = engine_memory(shape, config), host_memory(shape, config)
    cache = "on a CPU vLLM is given 1 GiB"
    if config.cluster.gpus_per_actor > 0:
        cache = f"{_size(engine.cache)} left for it; {engine.num_full} rollouts of max_model_len at once"
    return [
        ("trained parameters", f"{shape.trainable(config.tuner) / 1e6:.1f} M", f"tuner.{config.tuner.train_type}"),
        ("learner rank: states", _size(learner.states), f"ZeRO {learner_stage(config)}; {_states(learner)}"),
        ("learner rank: full pack", _size(learner.activations + learner.head), f"{config.global_max_length} tokens"),
        ("learner rank: together", _size(learner.total), f"a GPU has {config.cluster.gpu_memory_gib:g} GiB"),
        ("engine: weights per GPU", _size(engine.weights), f"over {config.matching.vllm.tensor_parallel_size} GPUs"),
        ("engine: cache per token", f"{engine.cache_per_token / 1024:.1f} KiB", cache),
        ("publish: first, later", f"{_size(host.first_publish)}, {_size(host.later_publish)}", "merged weights"),
        ("segments waiting", _size(host.segments), "at most"),
        ("object store", _size(host.object_store), "first publish, twice a later one, segments"),
    ]


def _states(memory: object) -> str:
    return ", ".join(f"{name} {_size(getattr(memory, name))}" for name in ("weights", "gradients", "optimizer"))


def _throughput(config: RunConfig, shape: ModelShape, load: Load, device: Device) -> list[Row]:
    found = balance(shape, config, load, device, engine_memory(shape, config))
    window = max if config.rollout.max_staleness else sum
    seconds = window((found.rollout_s, found.train_s))
    overlap = "side by side" if config.rollout.max_staleness else "one after the other"
    return [
        ("answers per actor", f"{found.actor_tokens_s:,.0f} tokens/s", f"mean answer {load.answer_tokens} tokens"),
        ("training per rank", f"{found.learner_tokens_s:,.0f} tokens/s", f"mean prompt {load.prompt_tokens} tokens"),
        ("rollouts of a window", f"{found.rollout_s:.0f} s", f"{config.training.effective_batch_size} rollouts"),
        ("training of a window", f"{found.train_s:.0f} s", f"{config.m_steps} optimizer steps"),
        ("window", f"{seconds:.0f} s", f"{overlap} (rollout.max_staleness {config.rollout.max_staleness})"),
        ("actors per learner rank", f"{found.actors_per_learner:.2f}", "at which neither side waits"),
    ]


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 100 else f"{num_bytes / 2**20:.1f} MiB"
