"""The whole configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import field_validator

from compress.config.section import Section
from compress.config.sections import DataConfig, ModelConfig, PruneConfig, QuantizeConfig, RunConfig, TargetConfig
from compress.config.training import FinetuneConfig, QatConfig, TrainConfig


class Config(Section):
    """The whole configuration: one section per stage."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    target: TargetConfig = TargetConfig()
    train: TrainConfig = TrainConfig()
    prune: PruneConfig = PruneConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    qat: QatConfig = QatConfig()

    @field_validator("*", mode="before")
    @classmethod
    def _is_table(cls, value: Any) -> Any:
        if not isinstance(value, Mapping | Section):
            raise ValueError("must be a table of keys")
        return value

    @property
    def name(self) -> str:
        """The prefix of exported files: ``resnet18`` in ``resnet18_int8.onnx``."""
        place, _, name = self.model.arch.rpartition(":")
        return self.run.name or (name.partition(".")[0] if place == "timm" else name.rpartition(".")[2])
