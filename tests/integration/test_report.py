"""The report in a real browser: every figure is drawn, the console is silent, and nothing is asked of a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.report.page import write_report
from deploy.run_files import read_run
from tests.deploy.rollouts import ROOT
from tests.deploy.runs import write_run

pytestmark = pytest.mark.integration
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: apt-get install chromium")
def test_a_browser_draws_every_figure_with_a_silent_console_and_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    page = tmp_path / "report.html"
    write_report([read_run(write_run(tmp_path / name)) for name in ("a", "b")], page)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
    command = [str(BROWSER), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)

    # A request to anywhere would be refused by the page's own policy, and the refusal would stand in the console.
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert 'data-ready="yes"' in done.stdout, "the script ran to its end"
    figures = len(re.findall(r'class="[^"]*\bplot\b[^"]*" data-figure=', done.stdout))
    assert figures > 10
    drawn = len(re.findall(r'<svg class="main-svg"[^>]*>\s*<defs', done.stdout))
    assert drawn >= figures, "each figure has its drawing"
