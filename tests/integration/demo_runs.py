"""Small runs of the demo, each in a process of its own, and what a run has written.

The phases of a run are read from its `events.jsonl` while it runs. Two runs are the same if their `Result` is equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from deploy.checkpoints import newest_checkpoint
from deploy.demo.scenes import write_scenes
from deploy.ledger import LedgerLine, check_ledger, read_ledger
from tests.integration.conftest import ROOT, processes_with

PHASES = ("start", "rollout", "train", "sync", "save")
BATCH, M_STEPS = 4, 2
"""Rollouts of a window, and the demo's optimizer steps on it."""
DEADLINE_S = 1200
TIMES = re.compile(r"^(time|sync)/|^time$|_s$|writer|health|memory")
"""Metrics that differ from run to run."""


def settings(folder: Path, num_steps: int, save_steps: int) -> list[str]:
    """The demo in small: windows of four rollouts, trained twice. The second epoch begins within 12 steps."""
    write_scenes(folder, "train", 20, seed=101)
    return [
        f"custom.train_jsonl={folder / 'train.jsonl'}",
        *("custom.val_jsonl=null", "training.eval_steps=null", f"training.effective_batch_size={BATCH}"),
        *(f"training.max_steps={num_steps}", f"training.save_steps={save_steps}", "training.save_total_limit=2"),
        *("training.warmup_steps=0", "training.report_to=[none]", "metrics.port=0"),
    ]


@dataclass
class Run:
    """One process of the command line, in a process group of its own."""

    folder: Path
    overrides: Sequence[str]
    resume: bool = False
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / f"log-{self.marker[:8]}.txt"
        self.launched = time.time()
        command = [sys.executable, "-m", "deploy.cli", "train", "--config", "configs/demo.yaml"]
        where = [f"training.output_dir={self.folder}", "training.run_name=run"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *self.overrides, *where, *(["--resume", "auto"] if self.resume else [])],
                cwd=ROOT,
                env=os.environ | {"ROLLMATCH_TEST_MARKER": self.marker},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def phases(self) -> Iterator[tuple[str, float]]:
        """(phase, time of the clock) of each that this process begins, until it has ended."""
        seen, end = 0, time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            events = whole_lines(self.folder / "run" / "events.jsonl")
            phases = [(event["name"], event["since"]) for event in events if event["kind"] == "phase"]
            found = [phase for phase in dict.fromkeys(phases) if phase[0] in PHASES and phase[1] > self.launched]
            yield from found[seen:]
            seen = len(found)
            assert time.monotonic() < end, f"the run did not end within {DEADLINE_S} s"
            time.sleep(0.05)

    def finish(self) -> None:
        """Waits for success."""
        code = self.process.wait(timeout=DEADLINE_S)
        assert code == 0, f"exit code {code}: {self.log.read_text()[-3000:]}"

    def kill(self) -> float:
        """SIGKILL for the process group; seconds until no process of the run was left."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return self.seconds_until_gone()

    def seconds_until_gone(self, deadline_s: float = 60) -> float:
        began = time.monotonic()
        while alive := processes_with(self.marker):
            assert time.monotonic() - began < deadline_s, f"still alive after {deadline_s} s: {alive}"
            time.sleep(0.2)
        return time.monotonic() - began


class Result(NamedTuple):
    """What must not depend on whether a run was killed."""

    metrics: list[dict[str, Any]]
    """Of each step, all that is no time: equal only if the rollouts were the same token by token."""
    ledger: list[LedgerLine]
    weights: str
    """Checksum of the merged weights; empty before the last checkpoint."""

    @property
    def losses(self) -> list[float]:
        return [line["loss/total"] for line in self.metrics]


def written(run_dir: Path, num_steps: int) -> Result:
    """What a run has on disk, also if it was killed: a last line that was not written whole is no line."""
    metrics = whole_lines(run_dir / "metrics.jsonl")
    weights = run_dir / f"checkpoint-{num_steps}" / "merged" / "model.safetensors"
    return Result(
        metrics=[{k: v for k, v in line.items() if not TIMES.search(k)} for line in metrics if "loss/total" in line],
        ledger=read_ledger(run_dir),
        weights=hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else "",
    )


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Of a file that may be missing, or be written just now."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def check_whole(result: Result, num_steps: int) -> None:
    """Raises where a step is missing or doubled, or the ledger is no proof."""
    assert [line["step"] for line in result.metrics] == list(range(1, num_steps + 1)), "each step once"
    check_ledger(result.ledger, num_steps=num_steps, num_trained=BATCH * num_steps // M_STEPS)
    assert result.weights, "no last checkpoint"


def last_step(run_dir: Path) -> int:
    """Of the newest whole checkpoint; 0 without one."""
    newest = newest_checkpoint(run_dir)
    return int(newest.name.rpartition("-")[2]) if newest else 0
