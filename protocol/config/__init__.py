"""The run file: typed, closed, frozen, documented under each field; rules between settings hold at construction.

`load_config` is the door. Sections live one per file, `rules` holds what no single section can know, `reference`
writes docs/configuration.md from the models.
"""

from protocol.config.loading import config_from_mapping, load_config
from protocol.config.run import RunConfig
from protocol.config.sections import DeepSpeedConfig, TunerConfig
from protocol.config.training import TrainingConfig
from protocol.config.vllm import VllmConfig

__all__ = [
    "DeepSpeedConfig",
    "RunConfig",
    "TrainingConfig",
    "TunerConfig",
    "VllmConfig",
    "config_from_mapping",
    "load_config",
]
