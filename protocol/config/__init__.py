"""The run file: typed, closed, frozen, documented under each field; rules between settings hold at construction.

`load_config` is the door. Sections live one per file, `rules` holds what no single section can know, `reference`
writes docs/configuration.md from the models.
"""

from protocol.config.base import Section
from protocol.config.custom import CoordLossConfig, CoordTokensConfig, CustomConfig
from protocol.config.loading import build_section, config_from_mapping, load_config
from protocol.config.rollout_matching import RolloutBufferConfig, RolloutMatchingConfig
from protocol.config.run import CoordLossWeights, RunConfig
from protocol.config.sections import DeepSpeedConfig, TunerConfig
from protocol.config.training import TrainingConfig
from protocol.config.vllm import VllmConfig

__all__ = [
    "CoordLossConfig",
    "CoordLossWeights",
    "CoordTokensConfig",
    "CustomConfig",
    "DeepSpeedConfig",
    "RolloutBufferConfig",
    "RolloutMatchingConfig",
    "RunConfig",
    "Section",
    "TrainingConfig",
    "TunerConfig",
    "VllmConfig",
    "build_section",
    "config_from_mapping",
    "load_config",
]
