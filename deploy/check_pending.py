"""Settings that load, because runbook files hold them, but that this version does not act on yet.

They would change the training, so they are refused by name. An entry leaves this table in the commit that builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from deploy.findings import Finding, error
from protocol.config import RunConfig


class Pending(NamedTuple):
    """One setting, when it would matter, and what to write instead."""

    path: str
    asked_for: Callable[[RunConfig], bool]
    instead: str


CHANGES_TRAINING = (
    Pending("training.packing_carry", lambda c: c.training.packing_carry, "set it to false: windows are trained whole"),
)


def check_pending(config: RunConfig) -> Iterator[Finding]:
    """A finding for each setting of the table that the run asks for."""
    for entry in CHANGES_TRAINING:
        if entry.asked_for(config):
            yield error(entry.path, f"is not supported yet, and the run would train without it; {entry.instead}")
