"""What a learner rank needs to know: small, frozen, picklable, free of torch.

The worker takes these and never the run's configuration, so that tests build a learner without a file and a change of
a configuration path touches one function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from protocol.prompts import resolve_prompts

if TYPE_CHECKING:  # importing the configuration costs pydantic, which a rank does not need
    from protocol.config import RunConfig, TrainingConfig, TunerConfig

Normalization = Literal["global", "micro_batch"]
ScheduleKind = Literal["constant", "linear", "cosine"]
DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Weights and shapes of the losses (SPEC 12); defaults are the reference's."""

    soft_ce_weight: float = 1.0
    w1_weight: float = 1.0
    gate_weight: float = 1.0
    temperature: float = 1.0
    target_sigma: float = 2.0
    """Width of the soft target, in bins."""
    target_truncate: float | None = None
    """Bins beyond which the soft target is zero; 0 is one-hot, None keeps the whole bell."""
    normalization: Normalization = "global"
    """SPEC A9: one denominator for the whole optimizer step, or the reference's mean of means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunerSettings:
    """What is trained: everything that is not frozen, or adapters in it."""

    kind: Literal["full", "lora"] = "full"
    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.0
    use_dora: bool = False
    use_rslora: bool = False
    target_modules: tuple[str, ...] | str = "all-linear"
    """Suffixes of module names, a regular expression over whole names, or `all-linear`: every linear layer of the
    parts that are not frozen, the head excluded."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained whole beside the adapters."""
    freeze_llm: bool = False
    freeze_vit: bool = True
    freeze_aligner: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW, with one learning rate per part of the model."""

    learning_rate: float
    vit_lr: float | None
    """Vision tower; None takes `learning_rate`."""
    aligner_lr: float | None
    """Vision mergers; None takes `learning_rate`."""
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    max_grad_norm: float
    """0 does not clip."""

    @classmethod
    def from_config(cls, training: TrainingConfig) -> OptimizerSettings:
        """The run's optimizer; what a run file leaves out has its default there."""
        return cls(
            learning_rate=training.learning_rate,
            vit_lr=training.vit_lr,
            aligner_lr=training.aligner_lr,
            weight_decay=training.weight_decay,
            beta1=training.adam_beta1,
            beta2=training.adam_beta2,
            epsilon=training.adam_epsilon,
            max_grad_norm=training.max_grad_norm,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """Learning rate over optimizer steps; see `learner.schedule`."""

    kind: ScheduleKind = "cosine"
    max_steps: int = 1000
    warmup_steps: int = 0
    min_lr: float = 0.0
    """Floor of every group, in absolute units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """Everything a learner rank is told, apart from its rank."""

    model: str
    """Checkpoint folder, or a name on a model hub."""
    system_prompt: str
    user_prompt: str
    optimizer: OptimizerSettings
    torch_dtype: DType = "bfloat16"
    """What the engines serve: merged weights are rounded to it once (SPEC A17)."""
    attn_impl: str = "sdpa"
    loss: LossSettings = field(default_factory=LossSettings)
    tuner: TunerSettings = field(default_factory=TunerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """DeepSpeed's own JSON; `auto` and absent values are filled in by `deepspeed_config`."""
    max_skipped_steps: int = 5
    """Skipped optimizer steps in a row that the group bears."""
    seed: int = 17
    gradient_checkpointing: bool = False
    packing: bool = True
    """True: one padding-free row per micro-batch. False: one right-padded row per segment."""
    max_length: int = 16000
    """Tokens a packed row may hold."""
    bucket_bytes: int = 256 * 2**20
    """Size at which a weight bucket is closed; one larger tensor gets a bucket of its own."""
    publishes_adapter: bool = False
    """Publish the adapter itself, not merged weights (SPEC A18)."""
    offload: tuple[str, ...] = ()
    """What goes to host memory between a publish and the next training step: `model`, `optimizer` (SPEC A19)."""
    num_threads: int = 1
    """Torch threads of a rank on CPU."""
    image_threads: int = 2
    """Threads that read and encode images; at least one works."""
    pixel_cache_bytes: int = 512 * 2**20
    """Encoded images kept for the next optimizer step on the same window."""
    collective_timeout_s: float = 600.0

    @classmethod
    def from_config(cls, config: RunConfig, num_steps: int) -> LearnerSettings:
        """The learner's view of a run of `num_steps` optimizer steps (`RunConfig.num_optimizer_steps`)."""
        system_prompt, user_prompt = resolve_prompts(config)
        training = config.training
        return cls(
            model=_model(config.model.model),
            system_prompt=system_prompt,
            user_prompt=user_prompt,
            torch_dtype=config.model.torch_dtype,
            attn_impl=config.model.attn_impl,
            loss=LossSettings(
                **config.coord_loss.model_dump(exclude={"enabled"}), normalization=training.loss_normalization
            ),
            tuner=_tuner(config.tuner),
            optimizer=OptimizerSettings.from_config(training),
            schedule=_schedule(training, num_steps),
            deepspeed=config.deepspeed.resolve(),
            max_skipped_steps=training.max_skipped_steps,
            seed=training.seed,
            gradient_checkpointing=training.gradient_checkpointing,
            packing=training.packing,
            max_length=config.global_max_length,
            bucket_bytes=config.sync.bucket_bytes,
            publishes_adapter=config.matching.vllm.enable_lora,
            offload=config.matching.offload.parts,
            num_threads=max(1, int(config.cluster.cpus_per_learner)),
            image_threads=config.data.dataloader_num_workers,
            collective_timeout_s=config.cluster.step_timeout_s,
        )

    @property
    def compute_dtype(self) -> DType:
        """Dtype of forward and backward: `torch_dtype`, unless DeepSpeed's JSON switches its bf16 off."""
        section = self.deepspeed.get("bf16") or {}
        return "float32" if section.get("enabled", "auto") is False else self.torch_dtype

    @property
    def zero_stage(self) -> int:
        """ZeRO stage 0..3 that DeepSpeed runs.

        At stage 0 it cannot accumulate low-precision gradients in fp32; stage 1 can, and differs only in where the
        optimizer's state lies.
        """
        stage = int((self.deepspeed.get("zero_optimization") or {}).get("stage", 0))
        return stage if self.compute_dtype == "float32" else max(1, stage)


def _model(name: str) -> str:
    """A folder as an absolute path, since ranks may run in another working directory; a hub name as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _tuner(tuner: TunerConfig) -> TunerSettings:
    targets: tuple[str, ...] | str = tuner.target_regex or tuner.target_modules
    return TunerSettings(
        kind=tuner.train_type,
        rank=tuner.lora_rank,
        alpha=tuner.lora_alpha,
        dropout=tuner.lora_dropout,
        use_dora=tuner.use_dora,
        target_modules="all-linear" if targets == ("all-linear",) else targets,
        modules_to_save=tuner.modules_to_save,
        freeze_llm=tuner.freeze_llm,
        freeze_vit=tuner.freeze_vit,
        freeze_aligner=tuner.freeze_aligner,
    )


def _schedule(training: TrainingConfig, num_steps: int) -> ScheduleSettings:
    kinds: dict[str, ScheduleKind] = {"linear": "linear", "cosine": "cosine", "cosine_with_min_lr": "cosine"}
    warmup_steps = training.warmup_steps or math.ceil(num_steps * training.warmup_ratio)
    return ScheduleSettings(
        kind=kinds.get(training.lr_scheduler_type, "constant"),
        max_steps=num_steps,
        warmup_steps=0 if training.lr_scheduler_type == "constant" else warmup_steps,
        min_lr=training.lr_floor if training.lr_scheduler_type == "cosine_with_min_lr" else 0.0,
    )
