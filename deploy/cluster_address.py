"""`cluster.address` as a driver can join it. No Ray is imported here: a check refuses what the start would refuse."""

from __future__ import annotations

from protocol.errors import ConfigError


def head_of(address: str) -> tuple[str, int] | None:
    """Host, an IPv6 one without its brackets, and port of the head's GCS; None for `auto`.

    Raises ConfigError for an address that a driver cannot join.
    """
    if address == "auto":
        return None
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(
            f"cluster.address: must be auto or host:port of the head's GCS (such as head:6379), got {address!r}; from "
            "outside the cluster use rollmatch submit --address http://head:8265"
        )
    return host.strip("[]"), int(port)
