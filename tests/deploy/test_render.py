"""Manifests: current, valid in every field, and counted with the function that the driver places with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from deploy.bundles import shares, totals
from deploy.cli import main
from deploy.render import as_yaml, read_assets, render
from deploy.render_pods import GPU, processes_per_pod
from protocol.config import RunConfig, config_from_mapping, load_config
from protocol.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "deploy" / "k8s"
CONFIG = ROOT / "configs" / "cluster_8gpu.yaml"
CRDS = ROOT.parent / "shared" / "data" / "crds"
SCHEMAS = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "PodMonitor": "monitoring.coreos.com_podmonitors.yaml",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules.yaml",
}
needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="no CRD schemas at ../shared/data/crds")


def config(*overrides: str) -> RunConfig:
    return load_config(CONFIG, overrides=list(overrides))


def rendered(*overrides: str) -> dict[str, Any]:
    return render(config(*overrides), read_assets())


@cache
def schema(kind: str) -> dict[str, Any]:
    """The schema of a custom resource, closed: the API server would prune what it does not name."""
    definition = yaml.load((CRDS / SCHEMAS[kind]).read_text(), Loader=yaml.CSafeLoader)
    (version,) = (each for each in definition["spec"]["versions"] if each["storage"])
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    _close(found)
    found["properties"]["metadata"] = {"type": "object"}
    return found


def _close(node: Any) -> None:
    if isinstance(node, dict):
        if node.get("x-kubernetes-int-or-string"):
            node.pop("type", None)
            node.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
        if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
        for value in list(node.values()):
            _close(value)
    elif isinstance(node, list):
        for value in node:
            _close(value)


def validate(manifest: dict[str, Any]) -> None:
    """As an API server would, unknown fields refused."""
    kind = manifest["kind"]
    if kind in SCHEMAS:
        jsonschema.Draft202012Validator(schema(kind)).validate(manifest)
    elif kind != "Kustomization":
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_the_committed_manifests_are_current() -> None:
    files = rendered()
    written = {str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*.yaml")}
    command = "rollmatch render --config configs/cluster_8gpu.yaml -o deploy/k8s"
    assert set(files) == written, f"run `{command}`"
    for name, manifest in files.items():
        assert (GOLDEN / name).read_text() == as_yaml(manifest), f"{name} is out of date: run `{command}`"


@needs_crds
@pytest.mark.shared
def test_every_manifest_is_valid_with_unknown_fields_refused() -> None:
    for manifest in rendered().values():
        validate(manifest)
    more = ["kubernetes.queue=gpu", "kubernetes.env_secret=wandb", "kubernetes.service_account=runner"]
    more += ["kubernetes.image_pull_secret=registry", "kubernetes.active_deadline_seconds=86400"]
    for manifest in rendered(*more, "cluster.autoscaling=false", "cluster.actor_resources={fast: 1}").values():
        validate(manifest)


def _job(change: Callable[[dict[str, Any]], Any]) -> Any:
    return ("job/rayjob.yaml", change)


def worker(manifest: dict[str, Any]) -> Any:
    return manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


def container(manifest: dict[str, Any]) -> Any:
    return worker(manifest)["template"]["spec"]["containers"][0]


MUTATIONS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "a typo in the spec": _job(lambda m: m["spec"].update(entryPoint="x")),
    "a limit that is text": _job(lambda m: m["spec"].update(backoffLimit="3")),
    "an unknown mode": _job(lambda m: m["spec"]["rayClusterSpec"]["authOptions"].update(mode="password")),
    "a group without bounds": _job(lambda m: worker(m).pop("maxReplicas")),
    "an unknown field of a pod": _job(lambda m: worker(m)["template"]["spec"].update(securitycontext={})),
    "a probe without its kind": _job(lambda m: container(m)["livenessProbe"].update(httpget={})),
    "an end that is text": _job(lambda m: m["spec"].update(shutdownAfterJobFinishes="yes")),
    "an unknown way to grow": _job(
        lambda m: m["spec"]["rayClusterSpec"]["autoscalerOptions"].update(upscalingMode="Fast")
    ),
    "a cluster without a head": ("cluster/raycluster.yaml", lambda m: m["spec"].pop("headGroupSpec")),
    "a port that is no number": (
        "common/networkpolicy.yaml",
        lambda m: m["spec"]["ingress"][1]["ports"][0].update(port={}),
    ),
    "a policy with an unknown field": ("common/networkpolicy.yaml", lambda m: m["spec"].update(inbound=[])),
    "a priority that is text": ("common/priorityclass-rollout.yaml", lambda m: m.update(value="high")),
    "a config map of numbers": ("common/run.yaml", lambda m: m["data"].update({"run.yaml": 3})),
    "a monitor without selector": ("common/podmonitor.yaml", lambda m: m["spec"].pop("selector")),
}


@needs_crds
@pytest.mark.shared
@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mutated_manifest_is_refused(what: str) -> None:
    name, change = MUTATIONS[what]
    manifest = copy.deepcopy(rendered()[name])
    change(manifest)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(manifest)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("cluster.num_learners=8", "kubernetes.gpus_per_node=4"),
        ("cluster.num_learners=6", "kubernetes.gpus_per_node=4", "rollout.num_actors=3"),
    ],
)
def test_the_pods_ask_for_exactly_the_gpus_that_the_driver_places(overrides: tuple[str, ...]) -> None:
    given = config(*overrides)
    groups = rendered(*overrides)["job/rayjob.yaml"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    asked = sum(
        group["maxReplicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"][GPU])
        for group in groups
    )
    assert asked == totals(shares(given))["GPU"]
    for share, group in zip(shares(given), groups, strict=True):
        per_pod = processes_per_pod(share, given.kubernetes.gpus_per_node)
        assert group["maxReplicas"] * per_pod == share.count
        assert per_pod * share.resources["GPU"] <= given.kubernetes.gpus_per_node
        assert group["labels"] == share.labels


def test_a_retry_resumes_and_the_driver_joins_the_cluster_it_runs_in() -> None:
    files = rendered()
    spec = files["job/rayjob.yaml"]["spec"]
    assert spec["backoffLimit"] == 3
    assert "training.resume=auto" in spec["entrypoint"]
    run = yaml.safe_load(files["common/run.yaml"]["data"]["run.yaml"])
    read, given = config_from_mapping(run).as_mapping(), config("metrics.host=0.0.0.0").as_mapping()
    assert read["cluster"]["address"] == "auto"
    assert read | {"kubernetes": None} == given | {"kubernetes": None}, "the driver reads the same run"


@pytest.mark.parametrize("queued", [False, True])
def test_the_operators_rules_beyond_their_schemas_are_kept(queued: bool) -> None:
    """KubeRay 1.7 refuses deletion rules beside shutdownAfterJobFinishes, which Kueue demands and suspension needs; and
    a group whose resources stand in two places. Kueue refuses an autoscaler, and a group named head."""
    overrides = ("kubernetes.queue=gpu", "cluster.autoscaling=false") if queued else ()
    job = rendered(*overrides, "cluster.actor_resources={fast: 1}")["job/rayjob.yaml"]
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"]
    assert "deletionStrategy" not in spec
    assert cluster.get("enableInTreeAutoscaling", False) is not queued
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"] != "head"
        assert not {"num-cpus", "num-gpus", "memory", "resources", "labels"} & set(group["rayStartParams"])
        assert "restartPolicy" not in group["template"]["spec"], "the autoscaler wants Never, KubeRay writes it"


def test_a_queue_and_an_autoscaler_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"kubernetes\.queue: Kueue admits a fixed number of pods"):
        config("kubernetes.queue=gpu")


def test_an_api_token_is_mounted_for_the_autoscaler_alone() -> None:
    def automounts(*overrides: str) -> list[bool]:
        cluster = rendered(*overrides)["cluster/raycluster.yaml"]["spec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        return [group["template"]["spec"].get("automountServiceAccountToken", True) for group in groups]

    assert automounts() == [True, False, False]
    assert automounts("cluster.autoscaling=false") == [False, False, False]


def test_only_the_heads_autoscaler_may_leave_the_run() -> None:
    files = rendered()
    (own, names) = files["common/networkpolicy.yaml"]["spec"]["egress"]
    assert own["to"] == files["common/networkpolicy.yaml"]["spec"]["ingress"][0]["from"]
    assert {port["port"] for port in names["ports"]} == {53}
    head = files["common/networkpolicy-head.yaml"]["spec"]
    assert head["podSelector"]["matchLabels"]["rollmatch-component"] == "head"
    assert {port["port"] for port in head["egress"][0]["ports"]} == {443, 6443}
    assert "common/networkpolicy-head.yaml" not in rendered("cluster.autoscaling=false")


def test_the_driver_reaches_wandb_where_the_run_reports_to_it() -> None:
    files = rendered("cluster.autoscaling=false", "training.report_to=[tensorboard, wandb]")
    head = files["common/networkpolicy-head.yaml"]["spec"]
    assert head["podSelector"]["matchLabels"]["rollmatch-component"] == "head"
    assert head["egress"] == [{"ports": [{"port": 443, "protocol": "TCP"}]}]
    assert "networkpolicy-head.yaml" in files["common/kustomization.yaml"]["resources"]


def test_the_page_about_clusters_has_the_claims_that_the_pods_mount_and_applies_what_it_has_rendered() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    claims = list(yaml.safe_load_all(page.split("```yaml\n# claims.yaml\n")[1].split("```")[0]))
    for claim in claims:
        kubernetes_validate.validate(claim, "1.37", strict=True)
    volumes = worker(rendered()["job/rayjob.yaml"])["template"]["spec"]["volumes"]
    mounted = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}
    assert {claim["metadata"]["name"] for claim in claims} == mounted
    assert {claim["metadata"]["namespace"] for claim in claims} == {config().kubernetes.namespace}
    assert "-o build/k8s\n" in page
    assert "kubectl apply -k build/k8s/job\n" in page


def test_no_secret_is_rendered_only_its_name() -> None:
    files = rendered("kubernetes.env_secret=wandb", "kubernetes.image_pull_secret=registry")
    assert all(manifest["kind"] != "Secret" for manifest in files.values())
    job = files["job/rayjob.yaml"]
    pod = worker(job)["template"]["spec"]
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "wandb"}}]
    for each in (pod, job["spec"]["submitterPodTemplate"]["spec"]):
        assert each["imagePullSecrets"] == [{"name": "registry"}]


def test_every_container_is_locked_down_and_every_pod_is_no_root() -> None:
    spec = rendered()["job/rayjob.yaml"]["spec"]
    cluster = spec["rayClusterSpec"]
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in [template["spec"] for template in [*templates, spec["submitterPodTemplate"]]]:
        assert pod["securityContext"]["runAsNonRoot"]
        for each in pod["containers"]:
            assert each["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_paths_that_no_pod_would_find_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(ROOT / "configs" / "demo.yaml")
    assert main(["render", "--config", demo]) == 2
    printed = capsys.readouterr()
    first, *paths = printed.err.splitlines()
    assert first == "rollmatch: 4 things are wrong"
    assert [line.split(":")[0] for line in paths] == [
        "model.model",
        "custom.train_jsonl",
        "custom.val_jsonl",
        "training.output_dir",
    ]
    assert not printed.out
    assert main(["render", "--config", str(CONFIG), "training.output_dir=/data/runs"]) == 2, "mounted read-only"
    capsys.readouterr()
    for override, where in (
        ("deepspeed.config=/elsewhere/ds.json", "deepspeed.config"),
        ("training.logging_dir=/tb", "training.logging_dir"),
        ("kubernetes.checkpoints.path=/models", "kubernetes.models.path"),
        ("kubernetes.data.path=/etc/rollmatch/", "kubernetes.data.path"),
        ("metrics.port=8080", "metrics.port"),
        ("training.resume=/checkpoints/other/checkpoint-4", "training.resume"),
    ):
        moved = ["training.output_dir=/models"] if where == "kubernetes.models.path" else []
        moved += ["custom.train_jsonl=/models/t", "custom.val_jsonl=/models/v"] if "data.path" in override else []
        assert main(["render", "--config", str(CONFIG), override, *moved]) == 2
        assert capsys.readouterr().err.startswith(f"rollmatch: {where}: "), override
    assert main(["render", "--config", str(CONFIG), "kubernetes.gpus_per_node=2"]) == 2
    assert capsys.readouterr().err.startswith("rollmatch: cluster.gpus_per_actor: is 4, more than the 2 GPUs of a node")


def test_an_output_that_is_a_file_is_refused_with_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "k8s").touch()
    assert main(["render", "--config", str(CONFIG), "-o", str(tmp_path / "k8s")]) == 2
    assert capsys.readouterr().err.startswith(f"rollmatch: -o: {tmp_path / 'k8s'} is a file")


def test_rendering_changes_neither_the_configuration_nor_its_own_result() -> None:
    given = config()
    before = given.as_mapping()
    assert render(given, {}) == render(given, {})
    assert given.as_mapping() == before
