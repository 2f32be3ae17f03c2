"""The documentation names files and commands that exist; tests/integration/test_docs.py runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted({*(ROOT / "docs").glob("*.md"), ROOT / "README.md"})
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_that_a_page_names_exist(page: Path) -> None:
    from deploy.cli import build_parser

    usage = build_parser().format_help()
    blocks = "\n".join(re.findall(r"```bash.*?```|```\n.*?```", page.read_text(), re.DOTALL))
    for command in re.findall(r"^ *rollmatch ([a-z-]+)", blocks, re.MULTILINE):
        assert re.search(rf"^    {command}\b", usage, re.MULTILINE), f"{page.name}: rollmatch {command}"
