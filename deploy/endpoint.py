"""The driver's HTTP endpoint: `/metrics`, `/healthz`, `/readyz`.

| who waits | for what | who ends the wait |
|---|---|---|
| a scraper | the text of one moment | its own thread here; a socket that is silent for 10 s is closed |
| `close` | the serving thread | the server, which polls for the end every 0.1 s |

Nothing here waits for the loop: values are read, never asked for. The threads are daemons and end with the driver.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from deploy.health import Health
from protocol.errors import ConfigError
from protocol.whole_file import write_whole

log = logging.getLogger("rollmatch")

Route = Callable[[], tuple[int, str, bytes]]
"""→ status, content type, body."""


class Endpoint:
    """Serves from construction until `close`."""

    def __init__(self, host: str, port: int, render: Callable[[], bytes], health: Health) -> None:
        """ConfigError when the address cannot be had."""
        routes: dict[str, Route] = {
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, render()),
            "/healthz": lambda: _answer(*health.healthz()),
            "/readyz": lambda: _answer(*health.readyz()),
        }
        try:
            self._server = (_ServerOn6 if ":" in host else _Server)((host, port), _handler(routes))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"metrics.port: cannot listen on {host}:{port} ({error}); another run may have it: set metrics.port "
                "to a free one, to 0 for any, or metrics.enabled to false"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="metrics-endpoint", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """`host:port` as it was bound."""
        host, port = self._server.server_address[:2]
        return host_port(str(host), port)

    def close(self) -> None:
        """Stops answering and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that went away is no news; anything else is logged, where the base class prints on the terminal."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            log.warning("the metrics endpoint could not answer %s", client_address, exc_info=error)


class _ServerOn6(_Server):
    address_family = socket.AF_INET6


def host_port(host: str, port: int) -> str:
    """`10.0.0.2:9095`, `[fd00::5]:9095`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def write_scrape_targets(run_dir: Path, driver: str, nodes: Iterable[Mapping[str, Any]] = ()) -> Path:
    """`scrape_targets.json` in the run's folder, for Prometheus' `file_sd_configs`.

    The driver's endpoint is job `rollmatch`; the metrics ports of Ray's living nodes are job `ray`.

    Args:
        driver: `host:port`.
        nodes: what `ray.nodes()` says.
    """
    ray = [host_port(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes if node["Alive"]]
    jobs = {"rollmatch": [driver], "ray": sorted(ray)}
    groups = [{"targets": targets, "labels": {"job": job}} for job, targets in jobs.items() if targets]
    path = run_dir / "scrape_targets.json"
    write_whole(path, json.dumps(groups, indent=1) + "\n")
    return path


def _answer(ok: bool, sentence: str) -> tuple[int, str, bytes]:
    return (200 if ok else 503), "text/plain; charset=utf-8", f"{sentence}\n".encode()


def _handler(routes: dict[str, Route]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            listing = f"there are {', '.join(routes)}\n".encode()
            status, kind, body = route() if route else (404, "text/plain; charset=utf-8", listing)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A scrape every few seconds is no news."""

    return Handler
