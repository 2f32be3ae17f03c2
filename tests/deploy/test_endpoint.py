"""What the HTTP endpoint answers."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.endpoint import Endpoint, write_scrape_targets
from deploy.health import Health
from protocol.errors import ConfigError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def endpoint(clock: Clock) -> Iterator[Endpoint]:
    served = Endpoint("127.0.0.1", 0, lambda: b"rollmatch_run_step 1.0\n", Health(60, clock))
    yield served
    served.close()


def get(endpoint: Endpoint, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{endpoint.address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_are_served_as_text(endpoint: Endpoint) -> None:
    assert get(endpoint, "/metrics?x=1") == (200, "rollmatch_run_step 1.0\n")


def test_health_answers_503_with_the_reason_when_nothing_moves(endpoint: Endpoint, clock: Clock) -> None:
    assert get(endpoint, "/healthz")[0] == 200
    clock.now = 100.0
    status, sentence = get(endpoint, "/healthz")
    assert status == 503
    assert sentence.startswith("no progress for 100 s")
    assert get(endpoint, "/readyz")[0] == 503


def test_an_unknown_path_lists_those_there_are(endpoint: Endpoint) -> None:
    assert get(endpoint, "/") == (404, "there are /metrics, /healthz, /readyz\n")


@pytest.mark.parametrize(("error", "logged"), [(BrokenPipeError("gone"), 0), (ValueError("no number"), 1)])
def test_a_scraper_that_goes_away_is_no_news_and_an_error_is_logged(
    error: Exception, logged: int, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def render() -> bytes:
        raise error

    served = Endpoint("127.0.0.1", 0, render, Health(60))
    with pytest.raises(ConnectionError):
        get(served, "/metrics")
    served.close()
    assert len(caplog.records) == logged
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken_is_a_config_error_with_its_path() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^metrics\.port: cannot listen on 127\.0\.0\.1:{port} "):
            Endpoint("127.0.0.1", port, bytes, Health(60))


def test_a_closed_endpoint_frees_its_port() -> None:
    first = Endpoint("127.0.0.1", 0, bytes, Health(60))
    port = int(first.address.partition(":")[2])
    first.close()
    Endpoint("127.0.0.1", port, bytes, Health(60)).close()


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_an_ipv6_address_is_served_and_written_in_brackets(clock: Clock) -> None:
    try:
        served = Endpoint("::1", 0, lambda: b"x 1\n", Health(60, clock))
    except ConfigError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    assert served.address.startswith("[::1]:")
    assert get(served, "/metrics") == (200, "x 1\n")
    served.close()


def test_the_driver_and_living_nodes_are_listed_by_job(tmp_path: Path) -> None:
    nodes = [
        {"Alive": True, "NodeManagerAddress": "10.0.0.2", "MetricsExportPort": 8080},
        {"Alive": False, "NodeManagerAddress": "10.0.0.3", "MetricsExportPort": 8080},
        {"Alive": True, "NodeManagerAddress": "fd00::5", "MetricsExportPort": 8080},
    ]
    path = write_scrape_targets(tmp_path, "127.0.0.1:9095", nodes)
    assert json.loads(path.read_text()) == [
        {"targets": ["127.0.0.1:9095"], "labels": {"job": "rollmatch"}},
        {"targets": ["10.0.0.2:8080", "[fd00::5]:8080"], "labels": {"job": "ray"}},
    ]
    assert [each.name for each in tmp_path.iterdir()] == ["scrape_targets.json"]
