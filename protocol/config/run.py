"""The whole run file as one frozen, picklable value."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator

from protocol.config.base import PositiveInt, Section, require
from protocol.config.custom import CoordLossConfig, CustomConfig
from protocol.config.kubernetes import KubernetesConfig
from protocol.config.rollout_matching import RolloutMatchingConfig
from protocol.config.rules import cross_problems
from protocol.config.sections import DataConfig, DebugConfig, DeepSpeedConfig, ModelConfig, TemplateConfig, TunerConfig
from protocol.config.service import (
    BufferConfig,
    ClusterConfig,
    MetricsConfig,
    QuarantineConfig,
    RolloutConfig,
    SyncConfig,
)
from protocol.config.training import TrainingConfig
from protocol.whole_file import write_whole


class RunConfig(Section):
    """A run. Build it with `load_config` or `config_from_mapping`, which report everything that is wrong at once."""

    global_max_length: PositiveInt = 20000
    """Most tokens of a segment, and the capacity of a pack."""
    model: ModelConfig
    """Which checkpoint is trained and served."""
    template: TemplateConfig = TemplateConfig()
    """The chat template."""
    data: DataConfig = DataConfig()
    """How data are read."""
    tuner: TunerConfig = TunerConfig()
    """Which parameters are trained."""
    training: TrainingConfig = TrainingConfig()
    """How the learner trains."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    """DeepSpeed."""
    custom: CustomConfig
    """Data and task."""
    rollout: RolloutConfig = RolloutConfig()
    """The pool of rollout actors."""
    buffer: BufferConfig = BufferConfig()
    """Segments between actors and learner."""
    sync: SyncConfig = SyncConfig()
    """Weight sync."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray resources."""
    metrics: MetricsConfig = MetricsConfig()
    """The driver's HTTP endpoint."""
    quarantine: QuarantineConfig = QuarantineConfig()
    """Records that cannot be trained on."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """Manifests of `rollmatch render`; without effect on a run."""
    debug: DebugConfig = DebugConfig()
    """A short variant of the same run."""

    @model_validator(mode="after")
    def _rules(self) -> RunConfig:
        require(list(cross_problems(self)))
        return self

    @property
    def matching(self) -> RolloutMatchingConfig:
        """`custom.extra.rollout_matching`."""
        return self.custom.extra.rollout_matching

    @property
    def coord_loss(self) -> CoordLossConfig:
        """The coordinate loss as it is computed: `rollout_matching` overrides `coord_soft_ce_w1` (SPEC 12)."""
        return self.custom.coord_soft_ce_w1.model_copy(update=self.matching.overrides())

    @property
    def m_steps(self) -> int:
        """Optimizer steps per window."""
        return self.matching.m_steps

    @property
    def run_dir(self) -> Path:
        """Where the run writes: `<output_dir>/<run_name>`."""
        return Path(self.training.output_dir) / (self.training.run_name or "")

    @property
    def logging_dir(self) -> Path:
        """Where TensorBoard files go."""
        given = self.training.logging_dir
        return self.run_dir if given is None else Path(given) / (self.training.run_name or "")

    @property
    def monitor_dump_dir(self) -> Path:
        """Where monitor dumps go."""
        given = self.matching.monitor_dump.out_dir
        return self.run_dir / "monitor_dumps" if given is None else Path(given)

    def num_optimizer_steps(self, num_records: int) -> int:
        """Optimizer steps of the run: `max_steps`, or what `num_train_epochs` over `num_records` records give."""
        if self.training.max_steps >= 0:
            return self.training.max_steps
        windows = _decimal(self.training.num_train_epochs) * num_records / self.training.effective_batch_size
        whole = math.floor(windows) if self.training.dataloader_drop_last else math.ceil(windows)
        return whole * self.m_steps

    def steps_per_epoch(self, num_records: int) -> Fraction:
        """Optimizer steps that one pass over `num_records` records takes."""
        return Fraction(self.m_steps * num_records, self.training.effective_batch_size)

    def interval(self, strategy: str, steps: int | None, num_records: int) -> Fraction:
        """Optimizer steps between two evaluations, or checkpoints, of this strategy; 0: none."""
        if strategy == "epoch":
            return self.steps_per_epoch(num_records)
        return Fraction(steps or 0) if strategy == "steps" else Fraction(0)

    def save_delay(self, num_records: int) -> Fraction:
        """The optimizer step before which no checkpoint is written but the last."""
        training = self.training
        epochs = _decimal(training.save_delay_epochs)
        return max(Fraction(training.save_delay_steps), epochs * self.steps_per_epoch(num_records))

    def as_mapping(self) -> dict[str, Any]:
        """Every setting in effect as plain JSON values; `config_from_mapping` reads it back to an equal run."""
        values = self.model_dump(mode="json")
        matching = values["custom"]["extra"]["rollout_matching"]
        loss = self.coord_loss
        matching.update({name: getattr(loss, name) for name in ("target_sigma", "target_truncate", "soft_ce_weight")})
        matching.update(w1_weight=loss.w1_weight, gate_weight=loss.gate_weight, temperature_coord=loss.temperature)
        return values

    def dump(self, path: str | Path) -> None:
        """Writes every setting in effect as YAML, readable by `load_config`."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.as_mapping(), sort_keys=False, allow_unicode=True, width=120)
        write_whole(Path(path), text)


def _decimal(value: float) -> Fraction:
    """The number that was written: as floats, 1.1 times 100 is more than 110."""
    return Fraction(str(value))
