"""What surrounds the pods of a run: its file, who may talk to it, who goes first, what is watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from deploy.render_pods import DASHBOARD, RAY_METRICS, Manifest, labels, priority_class, selector
from protocol.config import RunConfig

NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def common_manifests(config: RunConfig, assets: Mapping[str, str]) -> dict[str, Manifest]:
    """Manifests by file stem. `assets` holds `rules.yaml` and the dashboards by file name."""
    dashboards = {name: text for name, text in assets.items() if name.endswith(".json")}
    head = head_policy(config)
    found = {
        "run": run_file(config),
        "networkpolicy": network_policy(config),
        **({"networkpolicy-head": head} if head is not None else {}),
        "priorityclass-learner": priority(config, "learner", config.kubernetes.learner_priority),
        "priorityclass-rollout": priority(config, "actor", config.kubernetes.actor_priority),
        "podmonitor": pod_monitor(config),
    }
    if "rules.yaml" in assets:
        found["prometheusrule"] = prometheus_rule(config, assets["rules.yaml"])
    for name, text in dashboards.items():
        found[f"dashboard-{name.removesuffix('.json')}"] = dashboard(config, name, text)
    return found


def run_file(config: RunConfig) -> Manifest:
    """The run file as the driver reads it: what was written, with `extends` and overrides resolved.

    A run file holds no secret: settings that name one hold its name.
    """
    values = config.model_dump(mode="json", exclude_unset=True, exclude={"kubernetes"})
    values.setdefault("cluster", {})["address"] = "auto"
    values.setdefault("metrics", {})["host"] = "0.0.0.0"  # the network policy decides who reaches it
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return _core(config, "v1", "ConfigMap", "run") | {"data": {"run.yaml": text}}


def network_policy(config: RunConfig) -> Manifest:
    """Pods of the run talk to each other and to DNS; the operator reaches the dashboard, Prometheus the metrics."""
    kubernetes = config.kubernetes
    own = [{"podSelector": {"matchLabels": selector(config)}}]
    scraped = [RAY_METRICS, *([config.metrics.port] if config.metrics.enabled and config.metrics.port else [])]
    return _core(config, "networking.k8s.io/v1", "NetworkPolicy") | {
        "spec": {
            "podSelector": {"matchLabels": selector(config)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": own},
                {"from": [_namespace(kubernetes.operator_namespace)], "ports": _ports([DASHBOARD])},
                {"from": [_namespace(kubernetes.monitoring_namespace)], "ports": _ports(scraped)},
            ],
            "egress": [
                {"to": own},
                {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]},
            ],
        }
    }


def head_policy(config: RunConfig) -> Manifest | None:
    """What the head asks beyond the run, if anything; the addresses are the cluster's or wandb's, so only ports are
    named. Its autoscaler asks the API server for pods, its driver sends wandb the metrics."""
    ports = [443, 6443] if config.cluster.autoscaling else [443] if "wandb" in config.training.report_to else []
    if not ports:
        return None
    return _core(config, "networking.k8s.io/v1", "NetworkPolicy", "head") | {
        "spec": {
            "podSelector": {"matchLabels": selector(config) | {"rollmatch-component": "head"}},
            "policyTypes": ["Egress"],
            "egress": [{"ports": _ports(ports)}],
        }
    }


def priority(config: RunConfig, component: str, value: int) -> Manifest:
    """A PriorityClass that preempts nobody: it orders the queue and says who is evicted first."""
    manifest: Manifest = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": priority_class(config, component), "labels": labels(config)},
        "value": value,
        "globalDefault": False,
        "preemptionPolicy": "Never",
        "description": f"{'Rollout' if component == 'actor' else 'Head and learner'} pods of {config.kubernetes.name}",
    }
    return manifest


def pod_monitor(config: RunConfig) -> Manifest:
    """Ray's and vLLM's metrics of every pod, the run's own of the head; a pod without the port is passed over."""
    endpoints = [{"port": "metrics", "interval": "15s"}]
    if config.metrics.enabled and config.metrics.port:
        endpoints.append({"port": "run-metrics", "interval": "15s"})
    return _core(config, "monitoring.coreos.com/v1", "PodMonitor") | {
        "spec": {
            "selector": {"matchLabels": selector(config)},
            "podTargetLabels": ["rollmatch-run", "rollmatch-component", "ray.io/cluster"],
            "podMetricsEndpoints": endpoints,
        }
    }


def prometheus_rule(config: RunConfig, rules: str) -> Manifest:
    """deploy/prometheus/rules.yaml as the operator reads it: the same groups."""
    return _core(config, "monitoring.coreos.com/v1", "PrometheusRule") | {"spec": yaml.safe_load(rules)}


def dashboard(config: RunConfig, name: str, text: str) -> Manifest:
    """One dashboard where Grafana's sidecar looks for it."""
    manifest = _core(config, "v1", "ConfigMap", f"dashboard-{name.removesuffix('.json')}")
    manifest["metadata"]["labels"]["grafana_dashboard"] = "1"
    return manifest | {"data": {name: text}}


def _core(config: RunConfig, version: str, kind: str, suffix: str = "") -> Manifest:
    name = f"{config.kubernetes.name}-{suffix}" if suffix else config.kubernetes.name
    metadata: Manifest = {"name": name, "namespace": config.kubernetes.namespace, "labels": labels(config)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: name}}}


def _ports(numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [{"port": number, "protocol": "TCP"} for number in numbers]
