"""The classifier is the layer that makes the output, whatever it is called and wherever it is defined."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.graph.head import head_of


class Net(nn.Module):
    def __init__(self, end: Callable[["Net", torch.Tensor], object]) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop, self.map = nn.Dropout(0.2), nn.Conv2d(8, 5, 1)
        self.gate = nn.Linear(8, 8)
        self.end = end

    def forward(self, x: torch.Tensor) -> object:
        x = self.body(x)
        return self.end(self, x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None])


@pytest.mark.parametrize(
    ("end", "head"),
    [
        (lambda net, x: net.fc(x.mean((2, 3))), "fc"),
        (lambda net, x: net.fc(net.drop(x.mean((2, 3)))).softmax(1), "fc"),
        (lambda net, x: F.log_softmax(net.fc(x.mean((2, 3))) / 2.0, 1), "fc"),
        (lambda net, x: F.adaptive_avg_pool2d(net.map(x), 1).flatten(1), "map"),
        (lambda net, x: net.map(x.mean((2, 3), keepdim=True))[:, :, 0, 0], "map"),
        (lambda net, x: torch.sigmoid(net.fc(x.mean((2, 3)))), "fc"),
        (lambda net, x: x.mean((2, 3)), None),
        (lambda net, x: F.normalize(net.fc(x.mean((2, 3))), dim=1), None),
        (lambda net, x: net.map(x), None),
        (lambda net, x: {"logits": net.fc(x.mean((2, 3))), "features": x}, None),
        (lambda net, x: net.body(net.fc(x.mean((2, 3)))[:, :3, None, None]).flatten(1), None),
    ],
)
def test_the_head_is_found_by_the_flow_to_the_output(
    end: Callable[[Net, torch.Tensor], object], head: str | None
) -> None:
    assert head_of(Net(end).eval(), (3, 8, 8)) == head
