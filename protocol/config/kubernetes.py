"""`kubernetes`: what `rollmatch render` needs beyond the run itself. Secrets are named here, never held."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protocol.config.base import NonEmpty, NonNegativeInt, PositiveInt, Section

GIB = 2**30
DnsLabel = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)$")]
MountPath = Annotated[str, Field(pattern=r"^/[^:]+$")]


class VolumeConfig(Section):
    """An existing PersistentVolumeClaim and where it is mounted in every pod."""

    claim: DnsLabel
    """Name of the claim; it is not rendered, so deleting the manifests never deletes data."""
    path: MountPath
    """Where it is mounted; `custom.train_jsonl`, `model.model` and `training.output_dir` name files below it."""


class KubernetesConfig(Section):
    """The manifests of `rollmatch render`; without effect on a run."""

    name: DnsLabel = "rollmatch"
    """Name of the RayJob and RayCluster, prefix of everything beside them."""
    namespace: DnsLabel = "rollmatch"
    """Namespace of everything that is rendered."""
    image: NonEmpty = "registry.example.com/rollmatch:0.1.0-gpu"
    """Image of all pods, built from `deploy/docker/gpu.Dockerfile`."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When nodes fetch the image."""
    gpus_per_node: PositiveInt = 8
    """GPUs of a GPU node: the most that one pod may ask for."""
    head_cpus: PositiveInt = 4
    """CPU cores of the head pod, where the driver runs."""
    head_memory: Quantity = "32Gi"
    """Memory of the head pod, where the driver keeps references and traces, without shared memory."""
    learner_memory: Quantity = "96Gi"
    """Memory per learner rank, without shared memory."""
    actor_memory: Quantity = "64Gi"
    """Memory per rollout actor, without shared memory."""
    shm_extra_bytes: PositiveInt = 8 * GIB
    """Shared memory of a worker pod beyond `cluster.object_store_bytes`: NCCL and vLLM's workers."""
    data: VolumeConfig = VolumeConfig(claim="rollmatch-data", path="/data")
    """Records and images; mounted read-only."""
    checkpoints: VolumeConfig = VolumeConfig(claim="rollmatch-checkpoints", path="/checkpoints")
    """Runs and checkpoints; must be writable from several nodes (ReadWriteMany)."""
    models: VolumeConfig = VolumeConfig(claim="rollmatch-models", path="/models")
    """Start checkpoints, and the model hub's cache (`HF_HOME`)."""
    env_secret: DnsLabel | None = None
    """Secret whose keys become environment variables of all pods, such as WANDB_API_KEY; only its name is rendered."""
    service_account: DnsLabel | None = None
    """Service account of the pods. Null: the namespace's default. No token is mounted, except for the head's
    autoscaler, whose account KubeRay makes."""
    image_pull_secret: DnsLabel | None = None
    """Secret with which nodes fetch the image from a private registry; only its name is rendered."""
    queue: DnsLabel | None = None
    """Kueue LocalQueue of the RayJob (docs/kueue.md); needs `cluster.autoscaling: false`."""
    learner_priority: int = 1000
    """Priority of head and learner pods: losing one ends the attempt, so rollout pods go first."""
    actor_priority: int = 500
    """Priority of rollout pods: the run survives the loss of one."""
    backoff_limit: NonNegativeInt = 3
    """Further attempts of the RayJob, each on a new cluster and resumed from the newest checkpoint."""
    ttl_seconds: NonNegativeInt = 600
    """Seconds for which a finished RayJob keeps its pods, GPUs included, for a look at Ray's logs."""
    active_deadline_seconds: PositiveInt | None = None
    """Seconds after which the RayJob is ended. Null: never."""
    stop_grace_seconds: PositiveInt = 900
    """Seconds that a stopped driver has to finish its window and write a checkpoint."""
    idle_seconds: PositiveInt = 300
    """Seconds after which the autoscaler removes an idle worker; only with `cluster.autoscaling`."""
    monitoring_namespace: DnsLabel = "monitoring"
    """Namespace whose pods may scrape metrics."""
    operator_namespace: DnsLabel = "kuberay-system"
    """Namespace of the KubeRay operator, which asks the head for the state of a job."""
