"""Detection: a ResNet with a feature pyramid, the backbone of torchvision's detectors.

    make prune quantize export CONFIG=examples/backbones/detection.toml

The detector's own heads stay in PyTorch, or wherever they run: what they read keeps its names and shapes.
"""

from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from examples.backbones.narrow import CHANNELS, NarrowResNet


def fpn(channels: int = 32) -> nn.Module:
    """In earnest: the ``backbone`` of ``torchvision.models.detection.retinanet_resnet50_fpn(weights=...)``."""
    levels = {"layer2": "0", "layer3": "1", "layer4": "2"}
    return BackboneWithFPN(NarrowResNet(), levels, list(CHANNELS[1:]), channels)
