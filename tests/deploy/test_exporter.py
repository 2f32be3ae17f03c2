"""The endpoint's series: every metric of the table, and no more of them after a thousand steps than after ten."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.outcome import Outcome
from actors.status import ActorStatus
from deploy.exporter import RESTART_REASONS, Exporter
from protocol.contracts import RequestKey
from protocol.metric_series import labels, series
from protocol.metric_table import EVENTS, METRICS, Metric
from protocol.segments import SegmentMeta, SegmentStats

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def exporter() -> Exporter:
    return Exporter("demo", lambda: {"train": 2.5})


def samples(exporter: Exporter) -> Samples:
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "run"))): sample.value
        for family in text_string_to_metric_families(exporter.render().decode())
        for sample in family.samples
    }


def actor(number: int, *, state: str = "synced", restarts: dict[str, int] | None = None) -> ActorStatus:
    return ActorStatus(
        name=f"actor-{number}",
        state=state,
        version=3,
        num_owed=2,
        num_running=1,
        given_up=False,
        pid=1,
        restarts=restarts or {},
        idle_s=1.0,
    )


def answered(record: int, *, failure: str | None = None, reason: str = "stop") -> Outcome:
    key = RequestKey(record)
    if failure is not None:
        return Outcome(key=key, failure=failure)
    meta = SegmentMeta(
        key=key,
        length=100,
        num_bytes=400,
        first_version=0,
        last_version=0,
        stats=SegmentStats(),
    )
    return Outcome(key=key, meta=meta, new_tokens=40, finish_reason=reason, latency_s=0.3)


def test_every_metric_of_the_table_is_exported_under_its_own_name_with_its_own_labels(exporter: Exporter) -> None:
    text = exporter.render().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len({series(entry) for entry in METRICS}) == len(METRICS), "two metrics share a series"
    for entry in METRICS:
        family = families[series(entry).removesuffix("_total")]
        assert (family.type, family.documentation) == (entry.kind, entry.meaning)
    exporter.log({entry.name: 1.0 for entry in EVENTS})
    shown = {name for name, _ in samples(exporter)}
    assert {series(entry) for entry in EVENTS} <= shown


@pytest.mark.parametrize("entry", METRICS, ids=lambda entry: entry.name)
def test_a_series_has_its_base_unit_and_only_bounded_labels(entry: Metric) -> None:
    name = series(entry)
    assert name.endswith("_total") == (entry.kind == "counter")
    assert entry.unit not in ("seconds", "bytes", "tokens") or entry.unit in name
    assert entry.unit not in ("1/s", "tokens/s") or name.endswith("_per_second")
    assert set(labels(entry)) <= {"run", "actor", "reason", "phase"}


def test_promtool_finds_nothing_to_improve_in_names_and_types(exporter: Exporter) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    exporter.log({entry.name: 1.0 for entry in EVENTS})
    page = exporter.render()
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_counters_add_up_over_events_and_gauges_do_not(exporter: Exporter) -> None:
    for value in (3.0, 4.0):
        exporter.log({"train/tokens": value, "loss/total": value})
    assert samples(exporter)["rollmatch_train_tokens_total", ()] == 7.0
    assert samples(exporter)["rollmatch_loss", ()] == 4.0


def test_a_window_that_is_trained_twice_counts_its_rollouts_once(exporter: Exporter) -> None:
    for reuse in (0.0, 1.0):
        counted = {"rollout/segments": 32.0, "train/tokens": 10.0, "rollout/actor_restarts": 1.0}
        exporter.log(counted | {"rollout/buffer_reuse": reuse})
    assert samples(exporter)["rollmatch_rollout_actor_restarts_total", ()] == 2.0
    assert samples(exporter)["rollmatch_rollout_segments_total", ()] == 32.0
    assert samples(exporter)["rollmatch_train_tokens_total", ()] == 20.0


def test_a_gauge_without_a_value_is_absent_and_a_counter_starts_at_0(exporter: Exporter) -> None:
    shown = samples(exporter)
    assert ("rollmatch_rollout_f1", ()) not in shown
    assert shown["rollmatch_rollout_segments_total", ()] == 0.0
    assert shown["rollmatch_quarantine_records_total", (("reason", "ImageError"),)] == 0.0


def test_the_time_of_the_running_phase_is_read_when_it_is_scraped(exporter: Exporter) -> None:
    assert samples(exporter)["rollmatch_run_phase_seconds_total", (("phase", "train"),)] == 2.5


def test_answers_are_counted_by_reason_and_their_latency_and_lengths_observed(exporter: Exporter) -> None:
    exporter.outcome(answered(1))
    exporter.outcome(answered(2, reason="length"))
    exporter.outcome(answered(3, failure="ImageError: x.png is missing"))
    shown = samples(exporter)
    outcomes = [shown["rollmatch_rollout_outcomes_total", (("reason", r),)] for r in ("stop", "length", "failed")]
    assert outcomes == [1, 1, 1]
    assert shown["rollmatch_rollout_latency_seconds_count", ()] == 2
    assert shown["rollmatch_rollout_latency_seconds_bucket", (("le", "0.5"),)] == 2
    assert shown["rollmatch_rollout_segment_tokens_sum", ()] == 200


def test_records_that_are_set_aside_are_counted_by_reason(exporter: Exporter) -> None:
    for failure in ("ImageError: x.png is missing", "Oversize: t:5: encoded 9 tokens", "some/path/17: of any variety"):
        exporter.quarantined(answered(3, failure=failure))
    for reason in ("ImageError", "Oversize", "other"):
        assert samples(exporter)["rollmatch_quarantine_records_total", (("reason", reason),)] == 1


def test_the_parts_of_a_publish_are_observed_by_phase(exporter: Exporter) -> None:
    exporter.log({"sync/merge_s": 0.2, "sync/load_s": 0.4, "time/train_step_s": 1.0})
    shown = samples(exporter)
    assert shown["rollmatch_sync_latency_seconds_sum", (("phase", "merge"),)] == 0.2
    assert shown["rollmatch_sync_latency_seconds_count", (("phase", "load"),)] == 1
    assert shown["rollmatch_train_step_latency_seconds_count", ()] == 1


def test_an_actor_shows_its_state_version_staleness_load_and_restarts(exporter: Exporter) -> None:
    exporter.actors([actor(0), actor(1, state="stale", restarts={"SyncError": 1})], version=5, now=1000.0)
    exporter.actors([actor(1, restarts={"SyncError": 2, "KeyError": 1})], version=5, now=1001.0)
    shown = samples(exporter)

    def of(name: str, **where: str) -> float:
        return shown[f"rollmatch_actor_{name}", tuple(sorted(where.items()))]

    assert [of("state", actor="actor-1", phase=state) for state in ("synced", "stale", "dead")] == [1, 0, 0]
    assert [of(name, actor="actor-0") for name in ("version", "staleness", "owed", "running")] == [3, 2, 2, 1]
    assert of("last_progress_timestamp_seconds", actor="actor-0") == 999.0
    assert of("restarts_total", actor="actor-1", reason="SyncError") == 2
    assert of("restarts_total", actor="actor-1", reason="other") == 1
    assert of("restarts_total", actor="actor-0", reason="DeadlineError") == 0
    assert {"EngineError", "DeadlineError", "SyncError"} <= set(RESTART_REASONS)


def test_a_new_pool_counts_its_restarts_from_0_and_the_counter_goes_on(exporter: Exporter) -> None:
    for count in (2, 0, 1):
        exporter.actors([actor(0, restarts={"ActorLost": count})], version=0, now=0.0)
    assert samples(exporter)["rollmatch_actor_restarts_total", (("actor", "actor-0"), ("reason", "ActorLost"))] == 3


def test_the_endpoint_has_as_many_series_after_a_thousand_steps_as_after_ten() -> None:
    exporter = Exporter("demo", dict)

    def simulate(steps: Sequence[int]) -> int:
        for step in steps:
            metrics = {entry.name: float(step) for entry in EVENTS} | {"rollout/buffer_reuse": float(step % 2)}
            exporter.log(metrics)
            failure = f"{('ImageError', f'Odd{step}')[step % 2]}: {step}" if step % 5 == 0 else None
            exporter.outcome(answered(step, failure=failure, reason=("stop", "length", f"odd{step}")[step % 3]))
            exporter.actors([actor(n, restarts={f"Odd{step}": 1}) for n in range(4)], version=step, now=float(step))
        return len(samples(exporter))

    assert simulate(range(10)) == simulate(range(10, 1000))
