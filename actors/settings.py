"""What a rollout actor needs to know, as one picklable value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from actors.adapter import lora_options
from actors.desc_monitor import DescSettings
from protocol.config import RunConfig
from protocol.config.rollout_matching import RolloutMatchingConfig
from protocol.matching import MatchSettings
from protocol.prompts import resolve_prompts
from protocol.repeat_guard import RepeatSettings
from protocol.targets import TargetSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """How a rollout is sampled (SPEC 4.4): top_p 1 and no top_k, on every backend alike."""

    max_new_tokens: int
    temperature: float = 0.0
    repetition_penalty: float = 1.0
    mode: Literal["greedy", "beam"] = "greedy"
    """`greedy` samples when `temperature` > 0; `beam` exists with the hf backend only."""
    num_beams: int = 1
    num_return_sequences: int = 1
    batch_size: int = 1
    """Prompts per generate call of the hf backend; vLLM batches by itself."""
    repeat: RepeatSettings | None = None
    """Limits of the repeat guard; None switches it off."""

    @classmethod
    def from_config(cls, matching: RolloutMatchingConfig) -> DecodeSettings:
        """Reads `rollout_matching.*`; beams count in beam mode only (SPEC 4.2)."""
        beams = matching.num_beams if matching.decode_mode == "beam" else 1
        guard = matching.repeat_terminate
        return cls(
            max_new_tokens=matching.max_new_tokens,
            temperature=matching.temperature,
            repetition_penalty=matching.repetition_penalty,
            mode=matching.decode_mode,
            num_beams=beams,
            num_return_sequences=(matching.num_return_sequences or beams) if beams > 1 else 1,
            batch_size=matching.rollout_generate_batch_size,
            repeat=RepeatSettings(**guard.model_dump(exclude={"enabled"})) if guard.enabled else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How the inference engine is built."""

    model: str
    dtype: str
    max_model_len: int
    """Most tokens of prompt and answer together; 0: what the model can hold (hf only)."""
    num_threads: int
    on_cpu: bool
    max_pixels: int | None = None
    """Of the largest image that is opened; None: `protocol.record_lines` has the limit."""
    backend: Literal["vllm", "hf"] = "vllm"
    attn_impl: str = "sdpa"
    """Attention of the hf backend; vLLM chooses its own."""
    watches_repeats: bool = False
    """The repeat guard is on: vLLM must know it before it starts."""
    export_stats: bool = False
    """vLLM's own metrics go to Ray's metrics port (`metrics.vllm`)."""
    options: dict[str, Any] = field(default_factory=dict)
    """`rollout_matching.vllm.*` as vLLM's engine arguments name them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSettings:
    """Engine, prompts, decoding, matching and targets of one actor."""

    engine: EngineSettings
    decode: DecodeSettings
    system_prompt: str
    user_prompt: str
    match: MatchSettings
    target: TargetSettings
    descs: DescSettings = field(default_factory=DescSettings)
    trace: bool = False
    """Send along what recording and dumps need: a few KB per training rollout."""

    @classmethod
    def from_config(cls, config: RunConfig) -> ActorSettings:
        """Reads the actor's share of a run's configuration."""
        matching = config.matching
        system_prompt, user_prompt = resolve_prompts(config)
        return cls(
            engine=EngineSettings(
                model=str(config.model.model),
                dtype=matching.vllm.dtype or config.model.torch_dtype,
                max_model_len=matching.vllm.max_model_len,
                num_threads=max(1, int(config.cluster.cpus_per_actor)),
                on_cpu=config.cluster.gpus_per_actor == 0,
                max_pixels=config.template.max_pixels,
                backend=matching.rollout_backend,
                attn_impl=config.model.attn_impl,
                watches_repeats=matching.repeat_terminate.enabled,
                export_stats=config.metrics.vllm,
                options=matching.vllm.engine_options()
                | lora_options(config)
                | ({"enable_sleep_mode": True} if config.cluster.colocate else {}),
            ),
            decode=DecodeSettings.from_config(matching),
            system_prompt=system_prompt,
            user_prompt=user_prompt,
            match=MatchSettings(
                candidate_top_k=matching.candidate_top_k,
                maskiou_gate=matching.maskiou_gate,
                maskiou_resolution=matching.maskiou_resolution,
                fp_cost=matching.fp_cost,
                fn_cost=matching.fn_cost,
            ),
            target=TargetSettings(
                prefix_policy=matching.prefix_policy,
                supervise_eos=matching.supervise_eos,
                teach_format=matching.teach_format,
                max_length=config.global_max_length,
                ot_cost=matching.ot_cost,
                ot_epsilon=matching.ot_epsilon,
                ot_iters=matching.ot_iters,
            ),
            descs=DescSettings.from_config(config),
            trace=config.rollout.record_bytes > 0
            or matching.monitor_dump.enabled
            or matching.debug_dump_parse_failures,
        )
