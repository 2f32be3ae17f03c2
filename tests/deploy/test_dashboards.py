"""Dashboards and alerts are what the code says, speak of metrics that exist, and lead to the runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import health_model
from deploy.grafana.__main__ import FOLDER, as_text
from deploy.grafana.dashboards import dashboards
from protocol.metric_series import series
from protocol.metric_table import METRICS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
UNIT_TESTS = ROOT / "tests" / "deploy" / "prometheus" / "alerts.yaml"
RUNBOOK = ROOT / "docs" / "runbook.md"
NAMES = {
    series(entry) + part
    for entry in METRICS
    for part in (("_bucket", "_sum", "_count") if entry.kind == "histogram" else ("",))
}


def expressions() -> dict[tuple[str, str], list[str]]:
    """(Dashboard, panel title) → its expressions, with Grafana's variables in them."""
    return {
        (uid, panel["title"]): [target["expr"] for target in panel["targets"]]
        for uid, board in dashboards().items()
        for panel in board["panels"]
    }


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def runbook_entries() -> dict[str, str]:
    """Anchor → text, of the section "Alerts"."""
    section = RUNBOOK.read_text().split("\n## Alerts\n")[1].split("\n## ")[0]
    parts = re.split(r"^### (.+)$", section, flags=re.MULTILINE)
    return {anchor(heading): text for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_the_committed_dashboards_are_current() -> None:
    boards = dashboards()
    assert {path.stem for path in FOLDER.glob("*.json")} == set(boards)
    for name, board in boards.items():
        assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == as_text(board), "run python -m deploy.grafana"


@pytest.mark.parametrize("board", dashboards().values(), ids=lambda board: board["uid"])
def test_a_dashboard_asks_for_datasource_and_run_and_its_panels_do_not_overlap(board: dict[str, Any]) -> None:
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "run"]
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        own = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        assert not cells & own, panel["title"]
        assert max(x for x, _ in own) < 24
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all("$run" in target["expr"] for target in panel["targets"]), panel["title"]
        cells |= own
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert len({panel["title"] for panel in board["panels"]}) == len(board["panels"])


def test_every_series_that_is_asked_for_exists() -> None:
    asked = [expression for each in expressions().values() for expression in each] + [rule["expr"] for rule in alerts()]
    for expression in asked:
        found = re.findall(r"\brollmatch_\w+", expression)
        assert set(found) <= NAMES, expression


def test_each_alert_has_a_runbook_entry_and_each_entry_an_alert() -> None:
    entries = runbook_entries()
    links = {rule["annotations"]["runbook_url"].removeprefix("docs/runbook.md#"): rule["alert"] for rule in alerts()}
    assert links.keys() == entries.keys()
    for name, text in entries.items():
        assert f"`{links[name]}`" in text
        assert [part for part in ("**Means**", "**Look at**", "**Do**") if part not in text] == []


def test_the_runbook_speaks_of_panels_and_settings_that_exist() -> None:
    titles = {title for _, title in expressions()}
    text = " ".join(" ".join(runbook_entries().values()).split())
    assert set(re.findall(r'"([A-Z][^"]+)"', text)) <= titles
    reference = (ROOT / "docs" / "configuration.md").read_text()
    for setting in re.findall(r"`((?:metrics|rollout|buffer|sync|quarantine|cluster)\.\w+)`", text):
        assert setting.partition(".")[2] in reference, setting


def test_every_alert_says_how_bad_it_is_and_which_run() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert "{{ $labels.run }}" in rule["annotations"]["summary"]


def test_alerts_and_the_findings_of_the_report_have_the_same_bounds() -> None:
    bounds = {
        "RollmatchParseTruncated": health_model.TRUNCATED,
        "RollmatchInvalidObjects": health_model.REJECTED,
        "RollmatchDuplicates": health_model.DUPLICATES,
        "RollmatchF1Collapse": health_model.COLLAPSE,
        "RollmatchRecallWithoutPrecision": health_model.PREDICTIONS_PER_TRUTH,
    }
    rules = {rule["alert"]: rule["expr"] for rule in alerts()}
    for alert, bound in bounds.items():
        assert re.search(rf"[<>] {bound:g}(?![\d.])", rules[alert]), alert


def test_every_alert_is_fired_by_a_unit_test() -> None:
    fired = set(re.findall(r'alertname="(\w+)"', UNIT_TESTS.read_text()))
    assert fired == {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize(
    "command", [["check", "rules", str(RULES)], ["test", "rules", str(UNIT_TESTS)]], ids=["check", "test"]
)
def test_promtool_accepts_the_rules_and_their_unit_tests(command: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_dashboard_is_plain_json_that_grafana_can_import() -> None:
    for path in FOLDER.glob("*.json"):
        board = json.loads(path.read_text())
        assert board["schemaVersion"] == 39
        assert board["title"].startswith("rollmatch / ")
