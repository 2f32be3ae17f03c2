"""DeepSpeed's JSON as users write it, and what DeepSpeed is given.

Free of torch and DeepSpeed, so that `rollmatch check` refuses what a rank would refuse, before anything is started.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from learner.settings import LearnerSettings

OWNED = {
    "train_batch_size": "the packs of a step, which training.effective_batch_size sets",
    "train_micro_batch_size_per_gpu": "the packs of a step",
    "gradient_accumulation_steps": "the packs of a step",
    "gradient_clipping": "training.max_grad_norm",
    "optimizer": "training.learning_rate and its neighbours",
    "scheduler": "training.lr_scheduler_type",
}
"""Keys that another setting decides; `auto` is accepted, a value is refused."""


def deepspeed_config(settings: LearnerSettings) -> dict[str, Any]:
    """What DeepSpeed is given: the user's JSON without `auto`, and what other settings decide.

    Raises:
        ConfigError: the JSON repeats what another setting decides, or asks for what cannot work.
    """
    given = read_json(settings.deepspeed, settings.torch_dtype, settings.offload)
    return {
        "steps_per_print": 10**9,
        **given,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.optimizer.max_grad_norm,
        "zero_optimization": {**given.get("zero_optimization", {}), "stage": settings.zero_stage},
        "zero_allow_untested_optimizer": True,
        "data_types": {"grad_accum_dtype": "fp32", **given.get("data_types", {})},
        "bf16": {**given.get("bf16", {}), "enabled": settings.compute_dtype == "bfloat16"},
    }


def read_json(deepspeed: Mapping[str, Any], torch_dtype: str, moved: tuple[str, ...] = ()) -> dict[str, Any]:
    """The user's mapping without `auto` and without an optimizer that is only named.

    Args:
        moved: what `rollout_matching.offload` moves to host memory between steps.
    """
    given: dict[str, Any] = _without_auto(deepspeed)
    if _is_plain_adamw(given.get("optimizer")):
        del given["optimizer"]
    for problem in _problems(given, torch_dtype, moved):
        raise ConfigError(f"deepspeed.config: {problem}")
    return given


def offloads_optimizer(config: Mapping[str, Any]) -> bool:
    """Whether the optimizer's state and step live in host memory."""
    return _device(config.get("zero_optimization", {}), "offload_optimizer") != "none"


def _without_auto(value: Any) -> Any:
    """Without the entries that say `auto` or null, at any depth."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without_auto(item) for key, item in value.items() if item is not None and item != "auto"}


def _is_plain_adamw(optimizer: Any) -> bool:
    """What configurations for other trainers hold: the type that is used anyway, every value `auto`."""
    if not isinstance(optimizer, Mapping):
        return False
    return str(optimizer.get("type")).lower() == "adamw" and not optimizer.get("params")


def _problems(given: Mapping[str, Any], torch_dtype: str, moved: tuple[str, ...]) -> Iterator[str]:
    for key, owner in OWNED.items():
        if key in given:
            yield f"{key} is set to {given[key]!r}, but {owner} decides it; remove it"
    if given.get("bf16", {}).get("enabled") and torch_dtype != "bfloat16":
        yield f"bf16.enabled is true but model.torch_dtype is {torch_dtype}; write auto, or change the dtype"
    if given.get("fp16", {}).get("enabled"):
        yield "fp16.enabled is true, and nothing is trained in float16; write auto, and bfloat16 as model.torch_dtype"
    zero = given.get("zero_optimization", {})
    for key, stages in (("offload_optimizer", (1, 2, 3)), ("offload_param", (3,))):
        where, device, stage = f"zero_optimization.{key}", _device(zero, key), zero.get("stage", 0)
        if device not in ("none", "cpu"):
            yield f"{where}.device is {device!r}; write cpu or none, nothing else is supported"
        if device == "cpu" and stage not in stages:
            yield f"{where} needs stage {' or '.join(map(str, stages))}, got {stage}; raise the stage, or write none"
    if "optimizer" in moved and _device(zero, "offload_optimizer") == "cpu":
        yield (
            "zero_optimization.offload_optimizer keeps the optimizer in host memory, and "
            "custom.extra.rollout_matching.offload.offload_optimizer would move it to the GPU for each step; keep one"
        )
    if given.get("bf16", {}).get("check_grad_overflow") is False:
        yield ("bf16.check_grad_overflow is false, and a step whose gradient is not finite would be applied; remove it")
    if zero.get("compute_grad_norm") is False:
        yield (
            "zero_optimization.compute_grad_norm is false, and a step whose gradient is not finite would be applied in "
            "float32; remove it"
        )
    if "model" in moved and _device(zero, "offload_param") == "cpu":
        yield (
            "zero_optimization.offload_param keeps the parameters in host memory, and DeepSpeed cannot move such; set "
            "custom.extra.rollout_matching.offload.offload_model to false"
        )


def _device(zero: Mapping[str, Any], key: str) -> str:
    return str(zero.get(key, {}).get("device", "none"))
