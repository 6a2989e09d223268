"""Networks to export, with BN statistics as training leaves them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from compress.frontend.raising import raised
from compress.models.registry import build


class Maps(nn.Module):
    """A backbone with odd widths: several outputs, no classifier, a grouped convolution, functional ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7)
        self.a, self.b = nn.Conv2d(7, 10, 3, 2, 1), nn.Conv2d(10, 14, 3, 1, 1, groups=2)
        self.short = nn.Conv2d(7, 14, 1, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        return [x, F.relu(self.b(F.relu(self.a(x))) + self.short(x))]


NETS: dict[str, Callable[[], nn.Module]] = {
    "maps": Maps,
    "resnext": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=32, width_per_group=4),
}


@pytest.fixture(scope="session")
def make() -> Callable[[str], nn.Module]:
    def build_one(name: str) -> nn.Module:
        torch.manual_seed(0)
        net = NETS[name]() if name in NETS else build(name, 5)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
        return raised(net.eval(), (3, 32, 32))

    return build_one


@pytest.fixture
def images() -> list[Tensor]:
    """Two batches of four 32x32 images."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(2)]
