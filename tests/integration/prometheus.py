"""A real Prometheus beside a test: scrapes a run every second, evaluates the project's alert rules."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BINARY = shutil.which("prometheus")
MISSING = "prometheus is not installed (Debian's package; .ci/run installs it where apt-get may)"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Prometheus:
    """The HTTP API of a running server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def wait(self, deadline_s: float = 60.0) -> None:
        """Until it answers; an error at the deadline."""
        end = time.monotonic() + deadline_s
        while True:
            try:
                urllib.request.urlopen(f"{self._url}/-/ready", timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < end, f"Prometheus was not ready within {deadline_s} s"
                time.sleep(0.2)

    def api(self, path: str, **parameters: object) -> Any:
        """`data` of an API answer."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def over(self, expression: str, began: float, ended: float) -> list[Any]:
        """The series that `expression` has between two Unix times, every second."""
        found: list[Any] = self.api("query_range", query=expression, start=began, end=ended, step="1s")["result"]
        return found


@contextlib.contextmanager
def scraping(targets: Path, folder: Path) -> Iterator[Prometheus]:
    """A server that scrapes what the file `targets` lists, as soon as it is there, and ends with this context."""
    assert BINARY is not None, MISSING
    folder.mkdir(parents=True)
    listed = {"files": [str(targets)], "refresh_interval": "1s"}
    # Ray's page is long and changes every ten seconds.
    jobs = [
        {"job_name": job, "scrape_interval": interval, "file_sd_configs": [listed], "relabel_configs": [_only(job)]}
        for job, interval in (("rollmatch", "1s"), ("ray", "5s"))
    ]
    rules = str(ROOT / "deploy" / "prometheus" / "rules.yaml")
    every = {"evaluation_interval": "1s"}
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump({"global": every, "rule_files": [rules], "scrape_configs": jobs})
    )
    port = free_port()
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [BINARY, *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, text=True
        )
        try:
            server = Prometheus(port)
            server.wait()
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=20)


def _only(job: str) -> dict[str, object]:
    return {"source_labels": ["job"], "regex": job, "action": "keep"}
