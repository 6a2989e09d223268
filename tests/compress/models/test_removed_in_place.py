"""A removed block whose addition went into an in-place ReLU, and whose source is read elsewhere."""

import torch
from torch import nn

from compress.frontend.raising import raised
from compress.graph.structure import Structure
from compress.prune.surgery import cut, verify


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.first, self.second = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        y = self.relu(x + self.branch(x))
        return self.first(y), self.second(x)


def test_the_graph_without_the_block_leaves_the_source_alone() -> None:
    net = raised(TwoReaders().eval(), (3, 8, 8))
    structure = Structure.of(net, (3, 8, 8))
    removable = [segment for segment in structure.segments if segment.removable]
    assert removable
    pruned = cut(net, structure.coupling, {}, removable)
    verify(net, pruned, structure.coupling, {}, torch.randn(2, 3, 8, 8), removable)
