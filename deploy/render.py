"""`rollmatch render`: a run's configuration as Kubernetes manifests. A pure function; it talks to no cluster.

    DIR/common/    run file, network policy, priorities, what Prometheus and Grafana read
    DIR/job/       a RayJob: cluster, run, resume after a failure, clean-up   (kubectl apply -k DIR/job)
    DIR/cluster/   a RayCluster that stays, for `rollmatch submit`            (kubectl apply -k DIR/cluster)

`deploy/k8s/` is this for configs/cluster_8gpu.yaml. Claims, Secrets and the namespace are yours: what holds data or
passwords is named, never rendered.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.check_sizing import check_sizing
from deploy.render_observability import common_manifests
from deploy.render_pods import AGENT, DASHBOARD, RAY_METRICS, RUN_FOLDER, Manifest, cluster_spec, image_pull, labels
from deploy.run_paths import DESC_ENCODER, on_a_hub, read_paths, written_paths
from protocol.config import RunConfig
from protocol.errors import ConfigError, refuse

ROOT = Path(__file__).resolve().parent
RAY_PORTS = (6379, DASHBOARD, RAY_METRICS, AGENT)
ASSETS = ("prometheus/rules.yaml", "grafana/*.json")


def read_assets() -> dict[str, str]:
    """Alert rules and dashboards by file name, as they lie beside this file."""
    return {path.name: path.read_text() for pattern in ASSETS for path in sorted(ROOT.glob(pattern))}


def render(config: RunConfig, assets: Mapping[str, str]) -> dict[str, Manifest]:
    """Every manifest by its path below the output folder, kustomization files included."""
    kubernetes = config.kubernetes
    files = {f"common/{name}.yaml": manifest for name, manifest in common_manifests(config, assets).items()}
    files["job/rayjob.yaml"] = ray_job(config)
    files["cluster/raycluster.yaml"] = ray_cluster(config)
    shared = [name.removeprefix("common/") for name in files if name.startswith("common/")]
    files["common/kustomization.yaml"] = _kustomization(shared) | {"namespace": kubernetes.namespace}
    for folder, name in (("job", "rayjob.yaml"), ("cluster", "raycluster.yaml")):
        files[f"{folder}/kustomization.yaml"] = _kustomization(["../common", name]) | {
            "namespace": kubernetes.namespace
        }
    return files


def ray_cluster(config: RunConfig) -> Manifest:
    """A RayCluster that waits for jobs."""
    return _manifest(config, "RayCluster", cluster_spec(config))


def ray_job(config: RunConfig) -> Manifest:
    """A RayJob. Each attempt gets a new cluster and resumes from the newest checkpoint of the run."""
    kubernetes = config.kubernetes
    deadline = kubernetes.active_deadline_seconds
    spec: Manifest = {
        "entrypoint": f"python -m deploy.cli train --config {RUN_FOLDER}/run.yaml training.resume=auto",
        "submissionMode": "K8sJobMode",
        "runtimeEnvYAML": yaml.safe_dump(
            {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(kubernetes.stop_grace_seconds)}}, sort_keys=False
        ),
        "backoffLimit": kubernetes.backoff_limit,
        "submitterConfig": {"backoffLimit": 2},
        **({} if deadline is None else {"activeDeadlineSeconds": deadline}),
        # Not deletionStrategy: KubeRay refuses to delete workers beside an autoscaler, Kueue asks for this field, which
        # excludes rules, and a rule for a failed job does not fire for one that ran out of time. The log stays: it is
        # the submitter's.
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kubernetes.ttl_seconds,
        "rayClusterSpec": cluster_spec(config),
        "submitterPodTemplate": _submitter(config),
    }
    return _manifest(config, "RayJob", spec)


def _submitter(config: RunConfig) -> Manifest:
    """The pod that hands the job to the head and follows its log."""
    resources = {"cpu": "500m", "memory": "512Mi"}
    return {
        "metadata": {"labels": labels(config, "submitter")},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            **image_pull(config),
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "ray-job-submitter",
                    "image": config.kubernetes.image,
                    "imagePullPolicy": config.kubernetes.image_pull_policy,
                    "resources": {"requests": resources, "limits": resources},
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


def _manifest(config: RunConfig, kind: str, spec: Manifest) -> Manifest:
    kubernetes = config.kubernetes
    names = labels(config) | ({"kueue.x-k8s.io/queue-name": kubernetes.queue} if kubernetes.queue else {})
    return {
        "apiVersion": "ray.io/v1",
        "kind": kind,
        "metadata": {"name": kubernetes.name, "namespace": kubernetes.namespace, "labels": names},
        "spec": spec,
    }


def _kustomization(resources: list[str]) -> Manifest:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}


class _Readable(yaml.SafeDumper):
    """Texts of several lines as blocks; no anchors, which kustomize reads and people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Readable.add_representer(str, _text)


def as_yaml(manifest: Manifest) -> str:
    """One manifest as text; the same values give the same text."""
    return yaml.dump(manifest, Dumper=_Readable, sort_keys=False, width=10_000, allow_unicode=True)


def write(files: Mapping[str, Manifest], folder: Path) -> None:
    """Writes every manifest below `folder`, and removes files of an earlier rendering that are no longer part of it."""
    for name, manifest in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_yaml(manifest))
    for name in ("common", "job", "cluster"):
        for path in (folder / name).glob("*.yaml"):
            if str(path.relative_to(folder)) not in files:
                path.unlink()


def unmounted(config: RunConfig) -> list[str]:
    """Paths of the run that no pod would find, or whose files would be gone with the pod; one line each."""
    kubernetes = config.kubernetes
    kept = [kubernetes.checkpoints.path, kubernetes.models.path]
    read = [kubernetes.data.path, *kept]
    asked = [(name, path, read) for name, path in read_paths(config).items() if not _is_encoder_on_hub(name, path)]
    asked += [(name, path, kept) for name, path in written_paths(config).items()]
    return [
        f"{name}: {path} lies on no volume that the pods keep, which are {', '.join(volumes)} (kubernetes.*.path); "
        "write a path below one of them"
        for name, path, volumes in asked
        if not any(Path(path).is_relative_to(volume) for volume in volumes)
    ]


def _is_encoder_on_hub(name: str, path: str) -> bool:
    """It is looked up in the hub cache on the models' volume."""
    return name == DESC_ENCODER and on_a_hub(name, path)


def _mounts(config: RunConfig) -> Iterator[str]:
    """Two volumes at one path, which Kubernetes refuses."""
    taken = {"/dev/shm": "the object store", RUN_FOLDER: "the run file"}
    for name in ("data", "checkpoints", "models"):
        path = os.path.normpath(getattr(config.kubernetes, name).path)
        if path in taken:
            yield (
                f"kubernetes.{name}.path: {path} is where {taken[path]} lies, and a path has one volume; write another "
                "(one claim may be named several times)"
            )
        taken[path] = f"kubernetes.{name}"


def refusals(config: RunConfig) -> list[str]:
    """Why pods could not do this run, one line each."""
    found = [*unmounted(config), *_mounts(config)]
    found += [str(finding) for finding in check_sizing(config, None) if finding.is_error]
    if config.training.resume not in ("never", "auto"):
        found.append(
            f"training.resume: is {config.training.resume}, and each attempt of a RayJob resumes from the newest "
            "checkpoint of its own run; start from that one's merged/ folder (model.model), or use rollmatch submit"
        )
    if config.metrics.enabled and config.metrics.port in RAY_PORTS:
        found.append(f"metrics.port: {config.metrics.port} is Ray's own in the head's pod; write another, such as 9095")
    if config.cluster.colocate:
        found.append("cluster.colocate: engine and learner have pods, and so GPUs, of their own; set it to false")
    return found


def run(config: RunConfig, output: Path | None) -> int:
    """Writes the files, or prints what a RayJob needs as one stream. ConfigError where pods could not do the run."""
    if output is not None and output.exists() and not output.is_dir():
        raise ConfigError(f"-o: {output} is a file, and several are written; name a folder")
    refuse(refusals(config))
    files = render(config, read_assets())
    if output is not None:
        write(files, output)
        print(f"{len(files)} files in {output}; kubectl apply -k {output}/job")
        return 0
    printed = [manifest for name, manifest in files.items() if name.startswith(("common/", "job/"))]
    print("---\n".join(as_yaml(manifest) for manifest in printed if manifest["kind"] != "Kustomization"), end="")
    return 0
