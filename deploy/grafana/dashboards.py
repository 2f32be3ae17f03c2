"""The five dashboards: what a person looks at, from "is it healthy" down to "why not"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploy.grafana.panels import Panel, buckets_of, dashboard, of, quantile_of, rate_of

RUN = "{{run}}"
ACTOR = "{{run}} {{actor}}"
SILENCE = f"time() - {of('run/last_progress_timestamp')}"
PHASE_SHARE = f"sum by (run, phase) ({rate_of('run/phase_s')})"
_SYNCED = of("actor/state", 'phase="synced"')
ACTORS_READY = f"sum by (run) ({_SYNCED})"
ENDINGS = f"sum by (run, reason) ({rate_of('rollout/outcomes')})"
OLDEST_VERSION = f"min by (run) ({of('actor/version')})"


def stat(title: str, expression: str, unit: str = "short", *, width: int = 4, text: str = "") -> Panel:
    """One number per run."""
    return Panel(title, [(expression, RUN)], kind="stat", unit=unit, width=width, height=4, text=text)


def lines(title: str, *queries: tuple[str, str], unit: str = "short", text: str = "", width: int = 8) -> Panel:
    """Lines from 0 upwards."""
    return Panel(title, queries, unit=unit, text=text, lowest=0, width=width)


def shares(title: str, *queries: tuple[str, str], text: str = "", width: int = 8) -> Panel:
    """Lines between 0 and 1."""
    return Panel(title, queries, unit="percentunit", text=text, lowest=0, highest=1, width=width)


def named(prefix: str, *names: str) -> list[tuple[str, str]]:
    """One query per metric `prefix + name`, with its name as legend."""
    return [(of(prefix + name), f"{{{{run}}}} {name}") for name in names]


def detection() -> Panel:
    """What the run is about."""
    text = "Of the training rollouts. Recall up and precision down: the model says more, not better."
    return shares("F1, precision, recall", *named("rollout/", "f1", "precision", "recall"), text=text)


def format_health() -> Panel:
    """Rates that rise when rollouts degenerate."""
    names = ("parse_truncated_rate", "parse_obj_drop_frac", "duplicate_rate")
    text = "Truncated rollouts, rejected objects, near-duplicates: alarms, not decoration (docs/runbook.md)."
    return shares("Truncated, rejected, duplicates", *named("rollout/", *names), text=text)


def evaluation() -> Panel:
    """The same scores on unseen records."""
    return shares("Evaluation", *named("eval_rollout_", "f1", "precision", "recall"))


def busy() -> Panel:
    """Where the loop's time goes."""
    text = "Share of wall time per phase of the loop; rollout: the learner waits."
    return Panel("Time by phase", [(PHASE_SHARE, "{{phase}}")], unit="percentunit", stacked=True, text=text)


def actor_states(width: int) -> Panel:
    """Number of actors per state."""
    query = f"sum by (run, phase) ({of('actor/state')})"
    return Panel("Actors by state", [(query, "{{run}} {{phase}}")], width=width, stacked=True)


def overview() -> list[Panel]:
    loss = named("loss/", "total", "ce", "coord_tail", "coord_prefix")
    return [
        stat("Step", of("run/step")),
        stat("of", of("run/max_steps"), width=3),
        stat("F1", of("rollout/f1"), "percentunit", width=3),
        stat("F1, evaluation", of("eval_rollout_f1"), "percentunit"),
        stat("Policy version", of("policy/version"), width=3),
        stat("Actors ready", ACTORS_READY, width=3),
        stat("Since progress", SILENCE, "s", text="`/healthz` answers 503 above metrics.healthy_within_s."),
        detection(),
        evaluation(),
        format_health(),
        Panel("Loss", loss),
        busy(),
        lines("Rollouts per second", (of("rollout/rollouts_per_s"), RUN), unit="ops"),
        Panel(
            "Phase",
            [(of("run/phase"), "{{run}} {{phase}}")],
            kind="state-timeline",
            width=12,
            text="1 where the loop is in that phase.",
        ),
        lines(
            "Restarts and quarantine",
            (f"sum by (run) ({of('actor/restarts')})", "{{run}} restarts"),
            (of("rollout/quarantined"), "{{run}} quarantined"),
            width=12,
        ),
    ]


def rollout_quality() -> list[Panel]:
    lengths = [f"{length}_len_{how}" for length in ("rollout", "append", "encoded") for how in ("mean", "p90")]
    counts = ("gt_per_sample", "pred_per_sample", "fp_per_sample", "fn_per_sample")
    return [
        detection(),
        evaluation(),
        format_health(),
        lines("Objects per rollout", *named("rollout/", *counts), text="pred above 1.5 x gt: precision goes."),
        shares("Rollouts with a valid object, a match", *named("rollout/sample_", "valid_pred_rate", "any_match_rate")),
        shares("maskIoU of matched pairs", (of("rollout/matched_maskiou_mean"), RUN)),
        shares("Gated pairs, excluded pairs", *named("rollout/", "gating_rejection_rate", "excluded_rate")),
        lines(
            "How rollouts end",
            (ENDINGS, "{{run}} {{reason}}"),
            unit="ops",
        ),
        shares("Appended tokens without loss", (of("rollout/tail_ignore_frac"), RUN)),
        lines("Lengths in tokens", *named("rollout/", *lengths), width=12),
        Panel("Generated tokens", [(buckets_of("rollout/new_tokens"), "{{le}}")], kind="heatmap", width=12),
        lines("Generated tokens per rollout", *named("rollout/gen_new_tokens_", "mean", "p90", "p99"), width=12),
        shares(
            "Descriptions of matched pairs",
            *named("eval_rollout_desc_", "exact_acc_on_matched", "sem_acc_on_matched"),
            width=12,
        ),
    ]


def throughput() -> list[Panel]:
    parts = ("fetch_s", "mask_build_s", "forward_s", "backward_s", "optimizer_s", "post_rollout_pack_s")
    waits = of("time/wait_rollouts_s") + " / " + of("time/step_s")
    return [
        busy(),
        lines("Rollouts per second", (of("rollout/rollouts_per_s"), RUN), unit="ops"),
        lines("Tokens per second", *named("", "rollout/gen_tokens_per_s", "train/tokens_per_s")),
        shares("Share of the step that waits for rollouts", (waits, RUN), text="High: add actors or staleness."),
        Panel("Step in parts, slowest rank", named("time/", *parts), unit="s", stacked=True),
        lines("Step", *named("time/", "step_s", "wait_rollouts_s", "train_step_s", "sync_s"), unit="s"),
        lines(
            "Rollout latency",
            *(
                (quantile_of(share, "rollout/latency_s"), f"{{{{run}}}} p{share * 100:.0f}")
                for share in (0.5, 0.9, 0.99)
            ),
            unit="s",
        ),
        lines("Training step p90", (quantile_of(0.9, "train/step_latency_s"), RUN), unit="s"),
        shares("Pack fill, cost imbalance", *named("packing/", "post_rollout_fill", "cost_imbalance")),
        lines("Packs", *named("packing/", "micro_batches", "post_rollout_segments", "empty_packs")),
        lines("Requests held by actors", (of("actor/owed"), ACTOR)),
        lines("Requests waiting", (of("queue/requests"), RUN)),
        lines(
            "Buffer in segments",
            (of("buffer/segments"), "{{run}} buffered"),
            (of("buffer/taken"), "{{run}} leased"),
            (of("limit/buffer_segments"), "{{run}} bound"),
        ),
        lines("Buffer in bytes", (of("buffer/bytes"), RUN), (of("limit/buffer_bytes"), "{{run}} bound"), unit="bytes"),
        Panel("Tokens of a segment", [(buckets_of("rollout/segment_tokens"), "{{le}}")], kind="heatmap"),
    ]


def sync() -> list[Panel]:
    legend = "{{run}} {{phase}}"
    return [
        lines(
            "Published version, oldest actor",
            (of("policy/version"), "{{run}} published"),
            (OLDEST_VERSION, "{{run}} oldest"),
        ),
        lines(
            "Staleness of what was trained",
            (of("policy/staleness_max"), "{{run}} oldest segment"),
            (of("limit/staleness"), "{{run}} rollout.max_staleness"),
        ),
        lines("Versions behind, per actor", (of("actor/staleness"), ACTOR)),
        lines("Sync, as the loop saw it", (of("time/sync_s"), RUN), unit="s"),
        lines("Sync by part", (quantile_of(0.9, "sync/latency_s", by="phase"), legend + " p90"), unit="s"),
        lines("Published bytes", (of("sync/bytes"), RUN), unit="bytes"),
        lines(
            "Changed tensors per second",
            (rate_of("sync/changed_tensors"), RUN),
            text="0: nothing is learned.",
        ),
        actor_states(16),
    ]


def faults() -> list[Panel]:
    return [
        Panel(
            "Firing alerts",
            [('ALERTS{alertname=~"Rollmatch.*", alertstate="firing", run=~"$run"}', "")],
            kind="table",
            width=24,
            text="Each alert has an entry in docs/runbook.md.",
        ),
        stat("Since progress", SILENCE, "s", width=6),
        stat("Since the last step", f"time() - {of('run/last_step_timestamp')}", "s", width=6),
        stat("Actors given up", f"sum by (run) ({of('actor/given_up')})", width=6),
        stat("Quarantined", of("rollout/quarantined"), width=6),
        lines("Restarts by cause", (f"sum by (run, reason) ({of('actor/restarts')}) > 0", "{{run}} {{reason}}")),
        lines("Restarts by actor", (f"sum by (run, actor) ({of('actor/restarts')})", ACTOR)),
        actor_states(8),
        lines("Quarantine by reason", (f"{of('quarantine/records')} > 0", "{{run}} {{reason}}")),
        lines("Quarantine and its limit", (of("rollout/quarantined"), RUN), (of("limit/quarantined"), "{{run}} limit")),
        lines("Too long for a segment", (of("rollout/oversize_dropped"), RUN)),
        lines("Skipped optimizer steps", (of("train/skipped_steps"), RUN), text="Loss or gradient not finite."),
        lines("Learner restarts", (of("train/restarts"), RUN)),
        lines("Silence per actor", (f"time() - {of('actor/last_progress_timestamp')}", ACTOR), unit="s"),
        lines(
            "Oldest request, oldest segment",
            (of("queue/oldest_s"), "{{run}} request"),
            (of("buffer/oldest_s"), "{{run}} segment"),
            unit="s",
        ),
        lines("Dumps dropped", (of("dump/dropped"), RUN)),
    ]


_DASHBOARDS: dict[str, tuple[str, Callable[[], list[Panel]]]] = {
    "overview": ("Overview", overview),
    "rollout-quality": ("Rollout quality", rollout_quality),
    "throughput": ("Throughput and overlap", throughput),
    "sync": ("Sync and staleness", sync),
    "faults": ("Faults", faults),
}


def dashboards() -> dict[str, dict[str, Any]]:
    """File name without suffix → dashboard."""
    return {uid: dashboard(uid, title, panels()) for uid, (title, panels) in _DASHBOARDS.items()}
