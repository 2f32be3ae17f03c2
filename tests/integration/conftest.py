"""Small real runs: drawn scenes, the demo model, real engines. Each run has its own folder and its own Ray."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.demo.scenes import write_scenes
from deploy.launch import train
from protocol.config import RunConfig, load_config
from protocol.segments import Segment
from tests.integration import learner_cases
from tests.integration.prometheus import BINARY, Prometheus, scraping
from tests.learner import tiny

ROOT = Path(__file__).resolve().parents[2]
ON_GPU = torch.cuda.is_available() and packages_distributions().get("vllm") == ["vllm"]
"""Whether there is a GPU, and vLLM's build for it."""


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 12 validation scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "train", 24, seed=101)
    write_scenes(folder, "val", 12, seed=102)
    return folder


@pytest.fixture
def arguments(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Overrides that turn the demo's configuration into a run of two small windows."""
    monkeypatch.chdir(ROOT)
    return lambda *more: [*small_run(scenes, tmp_path), *more]


def small_run(scenes: Path, folder: Path) -> list[str]:
    """Overrides of `configs/demo.yaml`: two windows of four rollouts, one optimizer step each."""
    return [
        f"custom.train_jsonl={scenes / 'train.jsonl'}",
        f"custom.val_jsonl={scenes / 'val.jsonl'}",
        f"training.output_dir={folder}",
        "training.run_name=run",
        "training.effective_batch_size=4",
        "training.max_steps=2",
        "training.warmup_steps=0",
        "training.eval_steps=null",
        "custom.extra.rollout_matching.rollout_buffer.m_steps=1",
    ]


@pytest.fixture
def demo_config(arguments: Callable[..., list[str]]) -> Callable[..., RunConfig]:
    return lambda *more: load_config(ROOT / "configs" / "demo.yaml", overrides=arguments(*more))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray for learner ranks alone."""
    with learner_cases.small_cluster(tmp_path_factory.mktemp("ray")):
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a head of its own."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Segment]:
    """Four to train on."""
    return learner_cases.four_segments(tmp_path_factory.mktemp("images"))


@dataclass(frozen=True)
class TwoWindows:
    """One small run that several tests look at."""

    config: RunConfig
    summary: dict[str, Any]
    began: float
    ended: float
    """Unix times."""
    prometheus: Prometheus | None
    """It scraped the run; None where it is not installed."""


@pytest.fixture(scope="session")
def two_windows(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoWindows]:
    """Two windows on two learner ranks, at a learning rate that moves the answers, scraped by a real Prometheus.

    Ray hands vLLM's metrics on every second instead of every ten: the whole run is not much longer than that.
    """
    folder = tmp_path_factory.mktemp("two-windows")
    overrides = small_run(scenes, folder)
    overrides += ["cluster.num_learners=2", "training.learning_rate=1e-3", "training.save_steps=1"]
    overrides += ["custom.extra.rollout_matching.monitor_dump.enabled=true", "metrics.vllm=true"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(ROOT))
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("RAY_metrics_report_interval_ms", "1000")
        config = load_config(ROOT / "configs" / "demo.yaml", overrides=overrides)
        targets = folder / "run" / "scrape_targets.json"
        prometheus = stack.enter_context(scraping(targets, folder / "prometheus")) if BINARY else None
        began = time.time()
        summary = train(config)
        yield TwoWindows(config, summary, began, time.time(), prometheus)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def processes_with(marker: str) -> list[str]:
    """Command lines of living processes whose environment holds `marker`."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and marker.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended between listing and reading, which is what the caller hopes for
    return found


def descendants(pid: int) -> dict[int, str]:
    """Command lines of the living processes below `pid`, by process id."""
    parents, commands = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between listing and reading
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: commands[child] for child in below - {pid} if child in commands}
