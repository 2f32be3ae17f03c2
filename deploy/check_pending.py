"""Settings that load, because runbook files hold them, but that this version does not act on yet.

What would change the training is refused by name; what would only show something is a warning. An entry leaves this
table in the commit that builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from deploy.findings import Finding, error, warning
from protocol.config import RunConfig

MATCHING = "custom.extra.rollout_matching"


class Pending(NamedTuple):
    """One setting, when it would matter, and what to write instead."""

    path: str
    asked_for: Callable[[RunConfig], bool]
    instead: str


CHANGES_TRAINING = (
    Pending("sync.backend", lambda c: c.sync.backend != "object_store", "write object_store"),
    Pending(
        "custom.val_sample_with_replacement",
        lambda c: c.custom.val_sample_with_replacement,
        "set it to false: each validation record is scored once",
    ),
    Pending("data.dataset_shuffle", lambda c: not c.data.dataset_shuffle, "write true: epochs are seeded permutations"),
    Pending(
        "template.truncation_strategy",
        lambda c: c.template.truncation_strategy == "raise",
        "write delete: targets that are too long are quarantined, and quarantine.max_records bounds them",
    ),
    Pending("training.eval_strategy", lambda c: c.training.eval_strategy == "epoch", "write steps and eval_steps"),
)

ONLY_SHOWS = (Pending("training.logging_steps", lambda c: c.training.logging_steps > 1, "every step is logged"),)


def check_pending(config: RunConfig) -> Iterator[Finding]:
    """A finding for each setting of the tables that the run asks for."""
    for entry in CHANGES_TRAINING:
        if entry.asked_for(config):
            yield error(entry.path, f"is not supported yet, and the run would train without it; {entry.instead}")
    for entry in ONLY_SHOWS:
        if entry.asked_for(config):
            yield warning(entry.path, f"has no effect yet: {entry.instead}")
