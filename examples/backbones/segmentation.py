"""Segmentation: a fully convolutional network on a dilated ResNet, as torchvision has it.

    make prune quantize export CONFIG=examples/backbones/segmentation.toml

The file keeps the names of the outputs: here ``out``, the logits of each pixel.
"""

from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCN, FCNHead

from examples.backbones.narrow import CHANNELS, NarrowResNet


def fcn(labels: int = 5) -> nn.Module:
    """In earnest: ``torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)``."""
    body = NarrowResNet(replace_stride_with_dilation=[False, True, True])
    return FCN(IntermediateLayerGetter(body, {"layer4": "out"}), FCNHead(CHANNELS[3], labels))
