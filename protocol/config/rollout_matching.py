"""`custom.extra.rollout_matching`: how rollouts are made, matched and turned into targets (SPEC 19.1)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from protocol.config.base import (
    AnyCase,
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    Section,
    UnitFloat,
    require,
    zero_means,
)
from protocol.config.vllm import VllmConfig


class RepeatTerminateConfig(Section):
    """The repeat guard (SPEC 4.3, A16): ends a rollout that only repeats itself."""

    enabled: bool = False
    """Watch every rollout."""
    min_new_tokens: NonNegativeInt = 256
    """No rollout is ended before this many tokens."""
    max_consecutive_token_repeats: NonNegativeInt = 64
    """End after this many equal tokens in a row; 0 switches the check off."""
    ngram_size: NonNegativeInt = 64
    """Length of the block whose repetition is watched, in tokens; 0 switches the check off."""
    ngram_repeats: Annotated[int, Field(ge=2), BeforeValidator(zero_means(2))] = 2
    """End when the block stands this many times in a row; 0 means 2."""
    max_object_keys: PositiveInt | None = None
    """End when this many object keys have been written, counted on decoded text. Null: no limit."""


class RolloutBufferConfig(Section):
    """Reuse of a window's rollouts (SPEC 14)."""

    enabled: bool = False
    """Train every window `m_steps` times."""
    m_steps: PositiveInt = 1
    """Optimizer steps per window."""


class OffloadConfig(Section):
    """Move training state off the GPU while rollouts are generated (SPEC 4.6, A19)."""

    enabled: bool = False
    """Switches the section on; without `offload_model` or `offload_optimizer` nothing is moved."""
    offload_model: bool = False
    """Move the parameters, frozen ones too; they keep a copy in page-locked host memory."""
    offload_optimizer: bool = False
    """Move the optimizer state; in bfloat16 DeepSpeed can with ZeRO stage 2 only."""

    @property
    def active(self) -> bool:
        """Something would be moved."""
        return bool(self.parts)

    @property
    def parts(self) -> tuple[str, ...]:
        """What is moved: `model`, `optimizer`."""
        wanted = {"model": self.offload_model, "optimizer": self.offload_optimizer}
        return tuple(name for name, asked in wanted.items() if self.enabled and asked)


class DescMonitorConfig(Section):
    """Compares descriptions of matched pairs; metrics only (SPEC 16)."""

    enabled: bool = False
    """Run the monitor."""
    mode: Annotated[Literal["exact", "semantic", "both"], AnyCase] = "semantic"
    """`exact` compares normalised text; the others embed it as well."""
    every_steps: NonNegativeInt = 0
    """Optimizer steps between two reports in training; 0: `training.logging_steps`."""
    max_pairs: Annotated[int, Field(ge=0)] = 0
    """Pairs looked at per segment; 0: 64 in training, all in evaluation."""
    semantic_model: NonEmpty = "sentence-transformers/all-MiniLM-L6-v2"
    """Directory or hub name of the text encoder."""
    semantic_threshold: Annotated[float, Field(gt=0, le=1), BeforeValidator(zero_means(0.6))] = 0.6
    """Cosine from which two descriptions count as equal; 0 means 0.6."""
    semantic_device: NonEmpty = "cpu"
    """Device of the encoder; `auto` takes the first GPU if there is one."""
    semantic_batch_size: PositiveInt = 64
    """Texts per encoder pass."""
    semantic_max_length: Annotated[int, Field(ge=8)] = 64
    """Tokens per text."""

    def every(self, logging_steps: int) -> int:
        """Optimizer steps between two runs."""
        return self.every_steps or logging_steps or 1


class MonitorDumpConfig(Section):
    """Writes whole samples for people to read (SPEC 18)."""

    enabled: bool = False
    """Write dumps."""
    every_steps: NonNegativeInt = 0
    """Optimizer steps between two dumps; 0: `training.logging_steps`."""
    dump_first_step: bool | None = None
    """Dump step 0 too. Null: as `training.logging_first_step`."""
    only_world_process_zero: bool = True
    """Accepted for runbook files; without effect: one process of the service writes all dumps."""
    max_events: NonNegativeInt = 20
    """Most dumps of a run; 0: no limit."""
    max_samples: PositiveInt = 1
    """Samples per dump."""
    max_text_chars: Annotated[int, Field(gt=0), BeforeValidator(zero_means(4000))] = 4000
    """Characters of each text before it is clipped and marked; 0 means 4000."""
    write_markdown: bool = True
    """Write a Markdown page beside the JSON."""
    out_dir: str | None = None
    """Folder of the dumps. Null: `<run folder>/monitor_dumps`."""

    def due(self, step: int, num_written: int, *, logging_steps: int, logging_first_step: bool) -> bool:
        """Whether a step with fresh rollouts dumps its samples: `step` others and `num_written` dumps are behind it."""
        first = logging_first_step if self.dump_first_step is None else self.dump_first_step
        has_room = not self.max_events or num_written < self.max_events
        return self.enabled and has_room and step % (self.every_steps or logging_steps) == 0 and (first or step > 0)


class RolloutMatchingConfig(Section):
    """Rollouts, matching and targets."""

    rollout_backend: Annotated[Literal["vllm", "hf"], AnyCase] = "vllm"
    """Which library generates."""
    decode_mode: Annotated[Literal["greedy", "beam"], AnyCase] = "greedy"
    """`greedy` samples when `temperature` > 0; `beam` exists with the hf backend only."""
    max_new_tokens: PositiveInt = 512
    """Most tokens of one rollout."""
    num_beams: PositiveInt = 1
    """Beams of `beam`."""
    num_return_sequences: PositiveInt | None = None
    """Sequences that `beam` compares. Null: `num_beams`."""
    temperature: NonNegativeFloat = 0.0
    """0 takes the most likely token; above 0 samples with a seed per request."""
    repetition_penalty: Annotated[float, Field(gt=0), BeforeValidator(lambda v: v or 1.0)] = 1.0
    """Divides the logits of tokens that were written before; 0 or null means 1.0 (off)."""
    repeat_terminate: RepeatTerminateConfig = RepeatTerminateConfig()
    """The repeat guard."""
    rollout_generate_batch_size: PositiveInt = 1
    """Prompts per generate call of the hf backend."""
    candidate_top_k: PositiveInt = 10
    """Ground-truth objects that are compared with each prediction."""
    maskiou_gate: UnitFloat = 0.3
    """Pairs with a smaller maskIoU cannot match."""
    maskiou_resolution: PositiveInt = 256
    """Side of the raster on which maskIoU is computed, in cells."""
    fp_cost: NonNegativeFloat = 1.0
    """Cost of leaving a prediction unmatched."""
    fn_cost: NonNegativeFloat = 1.0
    """Cost of leaving a ground-truth object unmatched."""
    prefix_policy: Literal["rollout", "matched"] = "rollout"
    """`rollout` keeps the generated tokens as prefix, `matched` rebuilds it from matched objects only (SPEC A21)."""
    supervise_eos: bool = True
    """Teach the end-of-turn token after the tail (SPEC A2)."""
    teach_format: bool = False
    """Where nothing of an answer can be kept, train a whole one, opening brace and descriptions included."""
    ot_cost: Annotated[Literal["l1", "l2"], AnyCase] = "l2"
    """Point distance of the transport between shapes of different form, in bins."""
    ot_epsilon: PositiveFloat = 10.0
    """Softness of that transport, in bins."""
    ot_iters: PositiveInt = 30
    """Iterations of that transport."""
    target_sigma: PositiveFloat | None = None
    """Wins over `custom.coord_soft_ce_w1.target_sigma`."""
    target_truncate: NonNegativeInt | None = None
    """Wins over `custom.coord_soft_ce_w1.target_truncate` where the key is written, null included."""
    temperature_coord: PositiveFloat | None = None
    """Wins over `custom.coord_soft_ce_w1.temperature`."""
    soft_ce_weight: NonNegativeFloat | None = None
    """Wins over `custom.coord_soft_ce_w1.soft_ce_weight`."""
    w1_weight: NonNegativeFloat | None = None
    """Wins over `custom.coord_soft_ce_w1.w1_weight`."""
    gate_weight: NonNegativeFloat | None = None
    """Wins over `custom.coord_soft_ce_w1.gate_weight`."""
    rollout_buffer: RolloutBufferConfig = RolloutBufferConfig()
    """Reuse of a window's rollouts."""
    offload: OffloadConfig = OffloadConfig()
    """Offload during generation."""
    desc_monitor: DescMonitorConfig = DescMonitorConfig()
    """Comparison of descriptions."""
    monitor_dump: MonitorDumpConfig = MonitorDumpConfig()
    """Samples for people to read."""
    debug_dump_parse_failures: bool = False
    """Log the first rollouts that the parser dropped something from."""
    debug_dump_max: NonNegativeInt = 3
    """How many of them, per actor."""
    vllm: VllmConfig = VllmConfig()
    """The vLLM engine."""

    @model_validator(mode="after")
    def _decoding_fits_the_backend(self) -> RolloutMatchingConfig:
        problems = []
        if self.decode_mode == "beam" and self.rollout_backend == "vllm":
            message = "must be greedy with rollout_backend vllm, got beam; write greedy, or rollout_backend: hf"
            problems.append(Problem(("decode_mode", "rollout_backend"), message))
        if self.decode_mode == "beam" and self.temperature > 0:
            message = f"beam search does not sample, got temperature {self.temperature:g}; write 0, or greedy"
            problems.append(Problem(("decode_mode", "temperature"), message))
        if (self.num_return_sequences or 1) > self.num_beams:
            message = f"must be <= num_beams {self.num_beams}, got {self.num_return_sequences}; raise num_beams"
            problems.append(Problem(("num_return_sequences", "num_beams"), message))
        require(problems)
        return self

    @property
    def m_steps(self) -> int:
        """Optimizer steps per window: 1 unless the rollout buffer is enabled."""
        return self.rollout_buffer.m_steps if self.rollout_buffer.enabled else 1

    def overrides(self) -> dict[str, Any]:
        """The coordinate-loss settings written here; they win over `custom.coord_soft_ce_w1` (SPEC 12)."""
        names = ("target_sigma", "soft_ce_weight", "w1_weight", "gate_weight")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.temperature_coord is not None:
            found["temperature"] = self.temperature_coord
        if "target_truncate" in self.model_fields_set:
            found["target_truncate"] = self.target_truncate
        return found
