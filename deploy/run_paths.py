"""Which settings of a run name files: what another machine must find, and what it must keep."""

from __future__ import annotations

from protocol.config import RunConfig
from protocol.config.rules import MATCHING
from protocol.config.sections import ZERO_STAGES

DESC_ENCODER = f"{MATCHING}.desc_monitor.semantic_model"


def read_paths(config: RunConfig) -> dict[str, str]:
    """Dotted path → file or folder that the run reads; a model may be a name on a hub instead."""
    custom, monitor, deepspeed = config.custom, config.matching.desc_monitor, config.deepspeed.config
    found = {
        "model.model": config.model.model,
        "custom.train_jsonl": custom.train_jsonl,
        "custom.val_jsonl": custom.val_jsonl,
        "training.resume": None if config.training.resume in ("never", "auto") else config.training.resume,
        "deepspeed.config": deepspeed if isinstance(deepspeed, str) and deepspeed not in ZERO_STAGES else None,
        DESC_ENCODER: monitor.semantic_model if monitor.enabled and monitor.mode != "exact" else None,
    }
    for name in ("system_prompt", "user_prompt"):
        prompt = getattr(custom, name)
        found[f"custom.{name}"] = prompt if prompt is not None and prompt.endswith(".txt") else None
    return {name: path for name, path in found.items() if path is not None}


def written_paths(config: RunConfig) -> dict[str, str]:
    """Dotted path → folder that the run writes to."""
    dump = config.matching.monitor_dump
    found = {
        "training.output_dir": config.training.output_dir,
        "training.logging_dir": config.training.logging_dir,
        f"{MATCHING}.monitor_dump.out_dir": dump.out_dir if dump.enabled else None,
    }
    return {name: path for name, path in found.items() if path is not None}


def on_a_hub(name: str, path: str) -> bool:
    """Whether a value of `read_paths` has the form of a name on a model hub: `owner/model`."""
    return name in ("model.model", DESC_ENCODER) and path.count("/") == 1 and path[0] not in "./"
