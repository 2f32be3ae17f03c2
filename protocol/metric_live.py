"""Metrics of the moment: what the endpoint tells between two events, and what is counted rollout by rollout.

They are on `/metrics` only. The events' metrics, which are everywhere, are in `metric_names`.
"""

from __future__ import annotations

from functools import partial

from .metric_series import Metric, add_rows

LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
"""Seconds: from a demo's rollout to the deadline of an optimizer step."""
LENGTH_BUCKETS = tuple(float(2**power) for power in range(4, 16))
"""Tokens: 16 to 32,768."""

LIVE: dict[str, Metric] = {}
"""Metric by name."""


_add = partial(add_rows, LIVE)

_add(
    "gauge",
    "1",
    {
        "run/step": "Optimizer steps done.",
        "run/max_steps": "Optimizer steps of the whole run.",
        "run/ready": "1 when every engine has attested its first version and the loop runs.",
        "queue/requests": "Requests that no actor holds yet.",
        "limit/actors": "rollout.num_actors.",
        "limit/staleness": "rollout.max_staleness.",
        "limit/buffer_segments": "buffer.max_segments.",
        "limit/quarantined": "quarantine.max_records.",
    },
)
_add("gauge", "bytes", {"limit/buffer_bytes": "buffer.max_bytes."})
_add("gauge", "seconds", {"limit/healthy_within_s": "metrics.healthy_within_s."})
_add("gauge", "1", {"run/phase": "1 for the phase that the loop is in, 0 for the others."}, "phase")
_add(
    "gauge",
    "seconds",
    {
        "run/last_progress_timestamp": (
            "Unix time of the last thing that moved: an answer, a step, a version, a checkpoint.",
            "Older than metrics.healthy_within_s: `/healthz` says what the run waits for.",
        ),
        "run/last_step_timestamp": "Unix time of the last optimizer step.",
        "queue/oldest_s": ("Age of the oldest request without an answer.", "Growing: actors are stuck or too few."),
        "buffer/oldest_s": "Age of the oldest segment in the buffer.",
    },
)
_add(
    "gauge",
    "1",
    {
        "actor/version": "Policy version that the actor attested last; -1 before it has started.",
        "actor/staleness": ("Newest published version minus that version.", "Above rollout.max_staleness: not synced."),
        "actor/owed": "Requests that the actor holds.",
        "actor/running": "Requests that its engine runs, as its last heartbeat said.",
        "actor/given_up": (
            "1 when it failed too often in a row.",
            "Above 0: read its log; the run goes on without it.",
        ),
    },
    "actor",
)
_add(
    "gauge",
    "seconds",
    {"actor/last_progress_timestamp": "Unix time when its engine was last seen to work, or to have nothing to do."},
    "actor",
)
_add(
    "gauge",
    "1",
    {"actor/state": ("1 for the state (label phase) that the actor is in.", "Not synced for long: read its log.")},
    "actor",
    "phase",
)
_add(
    "counter",
    "1",
    {"actor/restarts": ("Restarts, by the class of their cause.", "Growing: read the actor's log.")},
    "actor",
    "reason",
)
_add(
    "counter",
    "1",
    {
        "rollout/outcomes": "Training requests answered: stop, length, or failed (to the quarantine).",
        "quarantine/records": ("Records set aside, by reason.", "Growing: read quarantine.jsonl."),
    },
    "reason",
)
_add("counter", "seconds", {"run/phase_s": "Time that the loop has spent in each phase."}, "phase")
_add(
    "histogram",
    "seconds",
    {
        "rollout/latency_s": "One rollout, from the engine's queue to its last token.",
        "train/step_latency_s": "Training part of one optimizer step, as the driver saw it.",
    },
    buckets=LATENCY_BUCKETS,
)
_add(
    "histogram",
    "seconds",
    {"sync/latency_s": "One publish, by part: the `sync/*_s` of its event."},
    "phase",
    buckets=LATENCY_BUCKETS,
)
_add(
    "histogram",
    "tokens",
    {"rollout/new_tokens": "Generated tokens of one rollout.", "rollout/segment_tokens": "Tokens of one segment."},
    buckets=LENGTH_BUCKETS,
)
