"""What a command ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from deploy.tables import print_health
from tests.deploy.rollouts import ROOT
from tests.deploy.runs import START, write_run


def test_health_at_the_end_reads_of_the_events_only_restarts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run = write_run(tmp_path / "one", truncated=0.37)
    restart = {"time": START, "kind": "restart", "step": 8, "cause": "rank 1 died"}
    (run / "events.jsonl").write_text("not even JSON\n" + json.dumps(restart) + "\n")
    (run / "ledger.jsonl").unlink()
    print_health(run, console=Console(width=200))
    told = capsys.readouterr().out
    assert "act: Truncated rollouts. Truncation rose from 0 % to 37 %" in told
    assert "watch: The learner was restarted. 1 so far, the last went back to step 8: rank 1 died." in told
