"""A real Prometheus scraped a real run: each panel, alert and metric has data there, or a reason not to."""

from __future__ import annotations

import re

import pytest

from deploy.recorder import read_rollouts
from protocol.metric_series import series
from protocol.metric_table import METRICS
from tests.deploy.test_dashboards import alerts, expressions
from tests.integration.conftest import TwoWindows
from tests.integration.prometheus import MISSING, Prometheus

pytestmark = pytest.mark.integration

NO_ENCODER = "the desc monitor's encoder is off in the demo"
NO_MONITOR = "the desc monitor is off in the demo's training"
NO_M_STEPS = "a window of this run is trained once"
NO_DATA = {
    'ALERTS{alertname=~"Rollmatch.*", alertstate="firing", run=~"$run"}': "no alert fires in a healthy run",
    "rollout/desc_pairs_total": NO_MONITOR,
    "rollout/desc_exact_acc_on_matched": NO_MONITOR,
    "rollout/desc_sem_enabled": NO_MONITOR,
    "rollout/desc_sem_acc_on_matched": NO_MONITOR,
    "rollout/desc_sem_sim_mean": NO_MONITOR,
    "rollout/desc_sem_sim_count": NO_MONITOR,
    "rollout/buffer_reuse": NO_M_STEPS,
    "rollout/buffer_window_step0": NO_M_STEPS,
    "rollout/buffer_completed_steps": NO_M_STEPS,
    "sync/rounding_lost_share": "the demo trains no adapter",
    "eval_rollout_desc_sem_acc_on_matched": NO_ENCODER,
    "eval_rollout_desc_sem_sim_mean": NO_ENCODER,
    "eval_rollout_desc_sem_sim_count": NO_ENCODER,
}
"""Expression or metric → why it has no data in this run."""
SELECTOR = re.compile(r"rollmatch_\w+(?:\{[^}]*\})?")


@pytest.fixture
def prometheus(two_windows: TwoWindows) -> Prometheus:
    if two_windows.prometheus is None:
        pytest.skip(MISSING)
    return two_windows.prometheus


def excused() -> set[str]:
    return {series(entry) for entry in METRICS if entry.name in NO_DATA}


def has_data_or_is_proven_empty(expression: str, run: TwoWindows, prometheus: Prometheus) -> bool:
    """Proven empty: each series that it compares is there, so it is the comparison that let nothing through."""
    concrete = expression.replace("$run", ".+").replace("$__rate_interval", "15s")
    if prometheus.over(concrete, run.began, run.ended):
        return True
    compares = re.search(r"[<>]|==", concrete) is not None
    return compares and all(prometheus.over(selector, run.began, run.ended) for selector in SELECTOR.findall(concrete))


def test_every_expression_of_every_panel_has_data(two_windows: TwoWindows, prometheus: Prometheus) -> None:
    empty = {
        (where, expression)
        for where, queries in expressions().items()
        for expression in queries
        if not has_data_or_is_proven_empty(expression, two_windows, prometheus)
    }
    unexplained = {
        (where, expression)
        for where, expression in empty
        if expression not in NO_DATA and not excused() & set(re.findall(r"rollmatch_\w+", expression))
    }
    assert not unexplained


def test_every_alert_was_evaluated_on_real_series_and_none_fired(
    two_windows: TwoWindows, prometheus: Prometheus
) -> None:
    for rule in alerts():
        assert has_data_or_is_proven_empty(rule["expr"], two_windows, prometheus), rule["alert"]
    loaded = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in loaded} == {rule["alert"] for rule in alerts()}
    assert [rule["lastError"] for rule in loaded if rule["health"] == "err"] == []
    assert prometheus.over('ALERTS{alertstate="firing"}', two_windows.began, two_windows.ended) == []


def test_every_metric_of_the_table_was_scraped(two_windows: TwoWindows, prometheus: Prometheus) -> None:
    times = {"start": two_windows.began, "end": two_windows.ended}
    names = set(prometheus.api("label/__name__/values", **times))
    missing = {
        entry.name
        for entry in METRICS
        if not {series(entry), f"{series(entry)}_count"} & names and entry.name not in NO_DATA
    }
    assert not missing
    assert {name for name in NO_DATA if "/" in name} & {
        entry.name for entry in METRICS if series(entry) in names
    } == set()


def test_the_labels_are_the_four_that_are_promised(two_windows: TwoWindows, prometheus: Prometheus) -> None:
    selector = '{__name__=~"rollmatch_.+"}'
    found = prometheus.api("series", start=two_windows.began, end=two_windows.ended, **{"match[]": selector})
    labels = {label for each in found for label in each}
    assert labels - {"__name__", "job", "instance", "le"} == {"run", "actor", "reason", "phase"}
    assert {each["run"] for each in found} == {"run"}


@pytest.mark.long  # Ray hands engine metrics to its port every ten seconds, which a short run may not see twice
def test_vllms_own_metrics_come_through_rays_port(two_windows: TwoWindows, prometheus: Prometheus) -> None:
    def last(name: str) -> float:
        (series,) = prometheus.over(name, two_windows.began, two_windows.ended)
        assert series["metric"]["job"] == "ray"
        assert series["metric"]["model_name"] == two_windows.config.model.model
        return float(series["values"][-1][1])

    trained = [rollout.trace.stats.rollout_len for rollout in read_rollouts(two_windows.config.run_dir)]
    assert last("ray_vllm_generation_tokens_total") > sum(trained), "evaluations generate too"
    assert last("ray_vllm_time_to_first_token_seconds_count") >= len(trained)
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert last(f"ray_vllm_{name}") >= 0
