"""The network that the stages start from: from its factory, its weights, or with a new classifier."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.config import Config, load_config
from compress.errors import CheckpointError, DataError
from compress.models.model import load_model
from compress.run import Run
from compress.train.stage import baseline


class Net(nn.Module):
    """Lazy layers and a weight norm; always seven classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, 4, 1))
        self.body = nn.Sequential(nn.LazyConv2d(8, 3, 2, 1), nn.LazyBatchNorm2d(), nn.ReLU())
        self.fc = nn.Linear(8, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


def config(*overrides: str) -> Config:
    own = [f"model.arch={__name__}:Net", "data.input_size=16", "train.device=cpu", "train.flip=false", "train.epochs=1"]
    return load_config(None, [*own, *overrides])


def test_a_new_head_needs_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="7 outputs"):
        baseline(config(), Run(tmp_path / "run"))
    model = load_model(baseline(config("model.new_head=true"), Run(tmp_path / "run")), f"{__name__}:Net")
    assert model.net(model.example()).shape == (1, 10)
    assert not [name for name in model.net.state_dict() if "parametrizations" in name]


def test_a_wrong_file_is_reported_before_the_images_are_opened(tmp_path: Path, monkeypatch: Any) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    monkeypatch.setattr("compress.data.load_data", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        baseline(config(f"model.weights={tmp_path / 'w.pth'}"), Run(tmp_path / "run"))
