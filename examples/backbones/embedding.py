"""Embedding: a ResNet without its classifier, for search and recognition.

make prune quantize export CONFIG=examples/backbones/embedding.toml
"""

from torch import nn

from examples.backbones.narrow import NarrowResNet


def embedding() -> nn.Module:
    """In earnest: any trained ResNet whose last layer is taken away like here."""
    net = NarrowResNet()
    net.fc = nn.Identity()
    return net
