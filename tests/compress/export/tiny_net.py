"""A residual network small enough to train in a test: ``arch = "tiny_net:tiny"``."""

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        logits: Tensor = self.fc(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
        return logits


def tiny(num_classes: int = 10) -> nn.Module:
    return Tiny(num_classes)
