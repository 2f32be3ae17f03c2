"""The package stays light: what a person waits for before the first line of output."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "peft", "tokenizers", "scipy", "PIL")

SCRIPT = f"""
import importlib, pkgutil, sys
import protocol
for module in pkgutil.walk_packages(protocol.__path__, "protocol."):
    importlib.import_module(module.name)
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_importing_all_of_protocol_loads_no_heavy_library() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
