"""A checkpoint whose values are finite and cannot be worked with is refused where it comes in."""

from pathlib import Path

import pytest
import torch

from compress.config import load_config
from compress.errors import CheckpointError, ModelError
from compress.models.registry import build
from compress.run import Run
from compress.train.stage import baseline


def baseline_of(tmp_path: Path, **values: float) -> Path:
    torch.manual_seed(0)
    state = build("cifar_resnet20", 10).state_dict()
    for name, value in values.items():
        state[name.replace("__", ".")].view(-1)[0] = value
    torch.save(state, tmp_path / "w.pth")
    chosen = [f"model.weights={tmp_path / 'w.pth'}", "model.arch=cifar_resnet20", "data.input_size=32"]
    return baseline(load_config(None, chosen), Run(tmp_path / "run"))


@pytest.mark.parametrize(
    ("values", "layer"),
    [
        ({"layer1__0__conv1__weight": 1e30}, "layer1.0.conv1"),
        ({"layer2__0__bn2__weight": 3e38}, "layer2.0.bn2"),
        ({"layer2__0__bn1__running_mean": 1e38}, "layer2.0.bn1"),
        ({"linear__bias": 1e30}, "linear"),
    ],
)
def test_values_that_nothing_can_hold_name_the_layer(tmp_path: Path, values: dict[str, float], layer: str) -> None:
    with pytest.raises(ModelError, match=rf"layer '{layer}' gives values of up to"):
        baseline_of(tmp_path, **values)
    assert not (tmp_path / "run" / "baseline").exists()


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_variance_that_cannot_be_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(CheckpointError, match=r"bn1\.running_var"):
        baseline_of(tmp_path, bn1__running_var=value)


@pytest.mark.parametrize("value", [0.0, 1e-40])
def test_a_dead_channel_is_no_fault(tmp_path: Path, value: float) -> None:
    assert (baseline_of(tmp_path, layer1__0__bn1__running_var=value) / "model.json").exists()
