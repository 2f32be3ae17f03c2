"""What every benchmark prints: a table for people, and one JSON object as the last line for machines.

`python -m benchmarks.NAME --write` also stores the object as `benchmarks/results/NAME.json`, with the hardware named.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory, graphics cards and Python: what a number depends on. Names no host."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Numbers are right-aligned, floats shown with four significant digits."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table)


def finish(name: str, result: dict[str, Any], *, write: bool | None = None) -> None:
    """Print `{"benchmark": name, "hardware": ..., **result}` as the last line; store it when `write`, or --write."""
    whole = {"benchmark": name, "hardware": hardware()} | result
    if write if write is not None else "--write" in sys.argv[1:]:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(whole), flush=True)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    return found.stdout.split("\n")[:-1] if found.returncode == 0 else []
