"""The documentation names files and commands that exist; tests/integration/test_docs.py runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protocol.config import RunConfig
from protocol.config.explain import all_paths
from protocol.config.reference import as_markdown

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted({*(ROOT / "docs").glob("*.md"), ROOT / "README.md"})
SECTIONS = (
    "custom|training|cluster|rollout|metrics|kubernetes|buffer|sync|template|tuner|deepspeed|data|quarantine|model"
)
SETTING = re.compile(rf"`((?:{SECTIONS})\.[a-z0-9_.]*[a-z0-9_])")
METRIC = re.compile(r"`((?:rollout|loss|time|sync|packing|policy|train|dump|buffer|learner)/[a-z0-9_]+)`")
NO_SETTINGS = {"training.learning_rat", "training.resume_from_checkpoint", "training.gradient_accumulation_steps"}
"""What the pages name because it is none."""
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


def test_the_migration_page_names_every_setting_that_has_no_effect() -> None:
    _, _, page = (ROOT / "docs" / "migration.md").read_text().partition("Keys that load and do nothing:")
    named = re.findall(r"`([\w.]+)`", page.partition("\n\n")[0])
    dead = re.findall(r"^\| `([\w.]+)` .* Accepted for runbook files; without effect", as_markdown(), re.MULTILINE)
    assert len(dead) > 5
    assert not [key for key in dead if not key.endswith(tuple(named))]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "ARCHITECTURE.md"], ids=lambda page: page.name)
def test_the_settings_and_metrics_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    named = {name for name in SETTING.findall(text) if not name.endswith(".jsonl")}
    assert named - set(all_paths(RunConfig)) <= NO_SETTINGS
    table = (ROOT / "docs" / "metrics.md").read_text()
    assert not [name for name in METRIC.findall(text) if f"`{name}`" not in table]
