"""Five additions to the pipeline from outside of it; docs/extending.md explains each.

cd examples/extending
python -m compress all --config extending.toml
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from compress import targets
from compress.frontend.ops import OPERATIONS, Operation
from compress.prune.importance.scores import Scored, Scores
from compress.quantize.grid import Grid
from compress.quantize.histogram import Histogram
from compress.registries import BACKENDS, CRITERIA, RANGES, STEPS, Backend


# 1. An importance criterion: the size of the batch norms' gains (Liu et al. 2017, "network slimming").
@CRITERIA.add("slimming")
def slimming(scored: Scored) -> Scores:
    """The sum of |gamma| over the norms behind a unit; 1 where there is none."""
    scores = {}
    for group in scored.coupling:
        total = torch.zeros(group.units)
        for slot in group.norms:
            gain = scored.net.get_submodule(slot.layer).weight.detach().abs()
            total += gain[torch.tensor(slot.channels)].sum(1)
        scores[group.name] = (total if group.norms else torch.ones(group.units)).double().numpy()
    return scores


# 2. A kind of block: squeeze-and-excite. Channels are followed through it as through any other. Only torch.erf, which
# its gate is made of, is not in the table of operations: output channel c depends on input channel c alone, f(0) = 0.
OPERATIONS["erf"] = Operation("channelwise", keeps_zero=True)


class SqueezeExciteBlock(nn.Module):
    """A residual block whose branch is multiplied by a gate, one value a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.squeeze, self.excite = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        gate = torch.erf(self.excite(self.relu(self.squeeze(y.mean((2, 3), keepdim=True))))) * 0.5 + 0.5
        return self.relu(x + y * gate)


def se_resnet(num_classes: int) -> nn.Sequential:
    """Three blocks at 16 channels, for images of 32 pixels."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = nn.Sequential(*(SqueezeExciteBlock(16) for _ in range(3)))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


# 3. An engine: ONNX's own reference evaluator. Slow, but right. Its module is reference_engine.py, its target
# reference.toml.
BACKENDS.add("reference")(Backend(".reference", "reference_engine"))
targets.add(Path(__file__).with_name("reference.toml"))


# 4. A range method: clip one value in a thousand at either end.
@RANGES.add("per_mille")
def per_mille(seen: Histogram, grid: Grid) -> tuple[float, float]:
    """The range that leaves out 0.1% of the values at each end."""
    share = seen.counts.cumsum(0).double() / seen.counts.sum()
    values = seen.centers()
    return float(values[(share > 0.001).nonzero()[0]]), float(values[(share < 0.999).nonzero()[-1]])


# 5. A step of the training recipe: noise on the images of each batch.
@STEPS.add("noise")
def noise(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Add normal noise of a standard deviation of 0.05."""
    return images + 0.05 * torch.randn_like(images), targets
