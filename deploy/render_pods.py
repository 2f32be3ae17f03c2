"""Pods of a RayCluster, as plain values: head group, learner group, rollout group. No I/O here.

How many pods, and how many GPUs each asks for, follows from `deploy.bundles.shares`: what is rendered is what the
driver places. Secrets are referred to by name only.
"""

from __future__ import annotations

import math
from typing import Any

from deploy.bundles import Share, shares
from protocol.config import RunConfig

Manifest = dict[str, Any]

RUN_FOLDER = "/etc/rollmatch"
RAY_VERSION = "2.60.0"
GPU = "nvidia.com/gpu"
UID = 1000
DASHBOARD, AGENT, RAY_METRICS = 8265, 52365, 8080
MIB = 2**20
HEAD_STORE_BYTES = 2 * 2**30
"""Object store of the head, which holds references: weights and segments lie where they were made."""
HEAD_SHM_BYTES = 2**30
"""Shared memory of the head beyond its object store."""
UNDISTURBED = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Keeps those who save nodes from moving the pods of a run."""


def selector(config: RunConfig) -> dict[str, str]:
    """What finds the pods of a run. A label of our own: KubeRay writes `app.kubernetes.io/name` itself."""
    return {"rollmatch-run": config.kubernetes.name}


def labels(config: RunConfig, component: str | None = None) -> dict[str, str]:
    """Labels of everything that belongs to one run; `kubectl get all -l rollmatch-run=NAME` finds it."""
    component_label = {"rollmatch-component": component} if component else {}
    return {"app.kubernetes.io/part-of": "rollmatch", **selector(config), **component_label}


def processes_per_pod(share: Share, gpus_per_node: int) -> int:
    """Learner ranks share a pod, so that they reduce gradients within a node; an actor has a pod of its own.

    The largest divisor of the count that fits a node: 8 ranks of 1 GPU on nodes of 4 give 4. `check` has refused a
    bundle that is larger than a node.
    """
    if share.role == "actor":
        return 1
    most = max(1, int(gpus_per_node / share.resources.get("GPU", 1)))
    return max(size for size in range(1, share.count + 1) if share.count % size == 0 and size <= most)


def cluster_spec(config: RunConfig) -> Manifest:
    """`spec` of a RayCluster."""
    kubernetes, cluster = config.kubernetes, config.cluster
    spec: Manifest = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},  # KubeRay makes the token's Secret
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            # No tasks on the head: the driver, and nothing else.
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", **_object_store(config, "head")},
            "template": _pod(config, "head", _demand(config, "head", kubernetes.head_cpus, kubernetes.head_memory)),
        },
        "workerGroupSpecs": [_group(config, share) for share in shares(config)],
    }
    if cluster.autoscaling:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": kubernetes.idle_seconds,
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
            "securityContext": _locked_down(),
        }
    return spec


def _group(config: RunConfig, share: Share) -> Manifest:
    per_pod = processes_per_pod(share, config.kubernetes.gpus_per_node)
    replicas = share.count // per_pod
    memory = config.kubernetes.learner_memory if share.role == "learner" else config.kubernetes.actor_memory
    resources = _demand(config, share.role, per_pod * share.resources["CPU"], memory, per_pod)
    gpus = math.ceil(per_pod * share.resources.get("GPU", 0))
    if gpus:
        resources[GPU] = str(gpus)
    custom = {name: f"{per_pod * amount:g}" for name, amount in share.resources.items() if name not in ("CPU", "GPU")}
    return {
        "groupName": share.role,
        "minReplicas": 0 if config.cluster.autoscaling else replicas,
        "maxReplicas": replicas,
        "replicas": 0 if config.cluster.autoscaling else replicas,
        "rayStartParams": _object_store(config, share.role),
        **({"labels": share.labels} if share.labels else {}),
        **({"resources": custom} if custom else {}),
        "template": _pod(config, share.role, resources),
    }


def _pod(config: RunConfig, component: str, resources: dict[str, str]) -> Manifest:
    spec: Manifest = {
        **_account(config, component),
        **image_pull(config),
        "priorityClassName": priority_class(config, component),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "fsGroupChangePolicy": "OnRootMismatch",  # a walk over every file of a large volume takes hours
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(config, component, resources)],
        "volumes": _volumes(config, component),
    }
    if GPU in resources:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    metadata = {"labels": labels(config, component), "annotations": dict(UNDISTURBED)}
    return {"metadata": metadata, "spec": spec}


def _account(config: RunConfig, component: str) -> Manifest:
    """Only an autoscaler talks to the API server, and KubeRay gives its pod, the head, an account of its own."""
    if component == "head" and config.cluster.autoscaling:
        return {}
    name = config.kubernetes.service_account
    return {"automountServiceAccountToken": False, **({"serviceAccountName": name} if name else {})}


def image_pull(config: RunConfig) -> Manifest:
    """What a private registry asks for."""
    secret = config.kubernetes.image_pull_secret
    return {"imagePullSecrets": [{"name": secret}]} if secret else {}


def _container(config: RunConfig, component: str, resources: dict[str, str]) -> Manifest:
    kubernetes, head = config.kubernetes, component == "head"
    ports = [{"containerPort": RAY_METRICS, "name": "metrics"}]
    if head:
        ports += [{"containerPort": 6379, "name": "gcs"}, {"containerPort": DASHBOARD, "name": "dashboard"}]
        if config.metrics.enabled and config.metrics.port:
            ports.append({"containerPort": config.metrics.port, "name": "run-metrics"})
    mounts = [
        {"name": "data", "mountPath": kubernetes.data.path, "readOnly": True},
        {"name": "checkpoints", "mountPath": kubernetes.checkpoints.path},
        {"name": "models", "mountPath": kubernetes.models.path},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if head:
        mounts.append({"name": "run", "mountPath": RUN_FOLDER, "readOnly": True})
    secret = {"envFrom": [{"secretRef": {"name": kubernetes.env_secret}}]} if kubernetes.env_secret else {}
    return {
        "name": "ray-head" if head else "ray-worker",
        "image": kubernetes.image,
        "imagePullPolicy": kubernetes.image_pull_policy,
        "ports": ports,
        "env": [
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "HF_HOME", "value": f"{kubernetes.models.path}/huggingface"},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            {"name": "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "value": "0"},
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        ],
        **secret,
        # Requests equal limits: the pod is Guaranteed, and the last one to be evicted.
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": _locked_down(),
        "volumeMounts": mounts,
        **_probes(),
    }


def _probes() -> Manifest:
    """Ray's own health endpoint, which needs no token and asks the head for its GCS too.

    A pod is ended after ten minutes of silence, as KubeRay does by default: Ray's agent may starve on a busy node, and
    a killed pod costs the attempt. The run's deadlines, not a probe, end a driver that hangs.
    """
    alive = {"httpGet": {"path": "/api/healthz", "port": AGENT}, "timeoutSeconds": 5, "periodSeconds": 10}
    return {
        "startupProbe": {**alive, "failureThreshold": 60},
        "livenessProbe": {**alive, "failureThreshold": 60},
        "readinessProbe": {**alive, "failureThreshold": 3},
    }


def _volumes(config: RunConfig, component: str) -> list[Manifest]:
    kubernetes = config.kubernetes
    volumes: list[Manifest] = [
        {"name": "data", "persistentVolumeClaim": {"claimName": kubernetes.data.claim, "readOnly": True}},
        {"name": "checkpoints", "persistentVolumeClaim": {"claimName": kubernetes.checkpoints.claim}},
        {"name": "models", "persistentVolumeClaim": {"claimName": kubernetes.models.claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_bytes(config, component) // MIB}Mi"}},
    ]
    if component == "head":
        volumes.append({"name": "run", "configMap": {"name": f"{kubernetes.name}-run"}})
    return volumes


def store_bytes(config: RunConfig, component: str) -> int | None:
    """Bytes of a pod's object store; None where Ray chooses."""
    given = config.cluster.object_store_bytes
    return given if given is None or component != "head" else min(given, HEAD_STORE_BYTES)


def shm_bytes(config: RunConfig, component: str) -> int:
    """Bytes of /dev/shm: the object store lies in it."""
    beyond = HEAD_SHM_BYTES if component == "head" else config.kubernetes.shm_extra_bytes
    return (store_bytes(config, component) or 0) + beyond


def priority_class(config: RunConfig, component: str) -> str:
    """Name of the PriorityClass of a component's pods."""
    return f"{config.kubernetes.name}-{'rollout' if component == 'actor' else 'learner'}"


def _object_store(config: RunConfig, component: str) -> dict[str, str]:
    given = store_bytes(config, component)
    return {} if given is None else {"object-store-memory": str(given)}


def _locked_down() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _demand(config: RunConfig, component: str, cpus: float, memory: str, processes: int = 1) -> dict[str, str]:
    """CPU and memory of a pod; what lies in /dev/shm counts as memory of the pod."""
    mebibytes = {"Mi": 1, "Gi": 2**10, "Ti": 2**20}[memory[-2:]] * int(memory[:-2]) * processes
    return {"cpu": str(math.ceil(cpus)), "memory": f"{mebibytes + shm_bytes(config, component) // MIB}Mi"}
