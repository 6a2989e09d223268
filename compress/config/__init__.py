"""The configuration: one TOML file, read, checked and frozen.

Every key has a default. ``--set prune.macs=40%`` overrides a key; an unknown key is an error that suggests the nearest
known key.

>>> load_config(None, ["prune.macs=40%", "target.threads=2"]).prune.budgets()
(Budget(kind='macs', fraction=0.4, limit=None),)
"""

from compress.config.budget import BUDGETS, Budget, BudgetKind
from compress.config.describe import describe_config
from compress.config.load import load_config
from compress.config.section import Section
from compress.config.sections import (
    DataConfig,
    ModelConfig,
    PruneConfig,
    QuantizeConfig,
    RunConfig,
    TargetConfig,
    TensorrtConfig,
    TensorrtRtxConfig,
)
from compress.config.training import FinetuneConfig, QatConfig, TaughtConfig, TrainConfig
from compress.config.whole import Config

__all__ = [
    "BUDGETS",
    "Budget",
    "BudgetKind",
    "Config",
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "PruneConfig",
    "QatConfig",
    "QuantizeConfig",
    "RunConfig",
    "Section",
    "TargetConfig",
    "TaughtConfig",
    "TensorrtConfig",
    "TensorrtRtxConfig",
    "TrainConfig",
    "describe_config",
    "load_config",
]
