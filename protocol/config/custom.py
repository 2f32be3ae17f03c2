"""`custom`: data files, prompts, coordinate loss, and the home of `extra.rollout_matching` (SPEC 19.2)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from protocol.config.base import (
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    Section,
    require,
)
from protocol.config.rollout_matching import RolloutMatchingConfig


class CoordTokensConfig(Section):
    """Coordinates written as vocabulary tokens."""

    enabled: bool | None = None
    """Null or true: coordinates are tokens, which this trainer needs. True, once written, also demands
    `coord_soft_ce_w1.enabled`."""
    skip_bbox_norm: bool = True
    """Coordinates of the data are bins already; must stay true."""


class CoordLossConfig(Section):
    """The coordinate loss (SPEC 12); `rollout_matching` may override each value. Its weights apply whether or not
    `enabled` is set."""

    enabled: bool = False
    """Demanded by `coord_tokens.enabled`; kept from the runbook."""
    soft_ce_weight: NonNegativeFloat = 1.0
    """Weight of the cross-entropy against the soft target."""
    w1_weight: NonNegativeFloat = 1.0
    """Weight of the Wasserstein-1 distance."""
    gate_weight: NonNegativeFloat = 1.0
    """Weight of the probability mass that misses the coordinate tokens."""
    temperature: PositiveFloat = 1.0
    """Divides the logits."""
    target_sigma: PositiveFloat = 2.0
    """Width of the soft target, in bins."""
    target_truncate: NonNegativeInt | None = None
    """Bins from which the soft target is zero; 0 is one-hot. Null: never."""

    @model_validator(mode="after")
    def _weighs_something(self) -> CoordLossConfig:
        if self.enabled and self.soft_ce_weight == self.w1_weight == self.gate_weight == 0:
            message = (
                "soft_ce_weight, w1_weight and gate_weight are all 0 although enabled; make one positive, or disable it"
            )
            require([Problem(("soft_ce_weight", "w1_weight", "gate_weight", "enabled"), message)])
        return self


class CoordOffsetConfig(Section):
    """Additive rows on the embedding, a stage-1 device."""

    enabled: Literal[False] = False
    """Only false: merge the offsets into the checkpoint first."""


class ExtraConfig(Section):
    """Where the runbook keeps the trainer's own settings."""

    rollout_matching: RolloutMatchingConfig = RolloutMatchingConfig()
    """Rollouts, matching and targets."""


class CustomConfig(Section):
    """Data and task."""

    trainer_variant: Literal["rollout_matching_sft"] = "rollout_matching_sft"
    """Only this trainer is here."""
    train_jsonl: NonEmpty | None = None
    """Training records, one JSON object per line; `jsonl` is accepted as another name. Required."""
    val_jsonl: NonEmpty | None = None
    """Records of the evaluation."""
    fusion_config: NonEmpty | None = None
    """Mixtures of data sets are not supported: concatenate the files instead."""
    emit_norm: Literal["none"]
    """Required, and only `none`: coordinates are written as bins, never as fractions."""
    json_format: Literal["standard"]
    """Required, and only `standard`."""
    object_ordering: Literal["sorted", "random"] = "sorted"
    """Order of the objects in a target: by (min y, min x), or shuffled anew per record and epoch."""
    system_prompt: NonEmpty | None = None
    """System prompt, or a path that ends in .txt. Null: the built-in one for `object_ordering`."""
    user_prompt: NonEmpty | None = None
    """User prompt, or a path that ends in .txt. Null: the built-in one for `object_ordering`."""
    train_sample_limit: PositiveInt | None = None
    """Use only the first records of the training file."""
    val_sample_limit: PositiveInt | None = None
    """Use only the first records of the evaluation file."""
    val_sample_with_replacement: bool = False
    """Draw `val_sample_limit` evaluation records with replacement (seed 53)."""
    coord_tokens: CoordTokensConfig = CoordTokensConfig()
    """Coordinates as tokens."""
    coord_soft_ce_w1: CoordLossConfig = CoordLossConfig()
    """The coordinate loss."""
    coord_offset: CoordOffsetConfig = CoordOffsetConfig()
    """Stage-1 offsets."""
    extra: ExtraConfig = ExtraConfig()
    """The trainer's own settings."""

    @model_validator(mode="before")
    @classmethod
    def _reads_jsonl(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "jsonl" not in data:
            return data
        if "train_jsonl" in data:
            message = "stands beside train_jsonl, of which it is only another name; keep train_jsonl"
            require([Problem(("jsonl", "train_jsonl"), message)])
        return {("train_jsonl" if key == "jsonl" else key): value for key, value in data.items()}

    @model_validator(mode="after")
    def _rules(self) -> CustomConfig:
        problems = []
        if self.train_jsonl is None and self.fusion_config is None:
            message = (
                "is required, got neither train_jsonl nor fusion_config; name the JSONL file of the training records"
            )
            problems.append(Problem(("train_jsonl", "fusion_config"), message))
        if self.coord_tokens.enabled and not self.coord_soft_ce_w1.enabled:
            message = "is true but coord_soft_ce_w1.enabled is not; set coord_soft_ce_w1.enabled: true"
            problems.append(Problem(("coord_tokens.enabled", "coord_soft_ce_w1.enabled"), message))
        if not self.coord_tokens.skip_bbox_norm:
            message = "must be true, got false; convert the data to bins once (`rollmatch import-coco`)"
            problems.append(Problem(("coord_tokens.skip_bbox_norm",), message))
        if self.val_sample_with_replacement and self.val_sample_limit is None:
            message = "needs val_sample_limit, the number of records to draw; set it"
            problems.append(Problem(("val_sample_with_replacement", "val_sample_limit"), message))
        require(problems)
        return self
