"""A narrow ResNet, so that the examples take a minute on a laptop: use torchvision's own in its place."""

from typing import Any

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

CHANNELS = (64, 128, 256, 512)
"""Of the outputs of layer1 to layer4."""


class NarrowResNet(ResNet):
    """A ResNet-50 with a quarter of the channels, and one block a stage in place of several."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Bottleneck, [1, 1, 1, 1], **options)

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 4, *args, **options)
