"""Small networks, one of each kind that quantization meets, with weights and statistics as training leaves them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from compress.frontend.raising import raised
from compress.models.registry import build


class Functional(nn.Module):
    """Biased convolutions, functional ReLU, a shortcut without BN, one ReLU called twice, odd widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1)
        self.a, self.b = nn.Conv2d(7, 11, 3, 2, 1), nn.Conv2d(11, 13, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(13)
        self.short = nn.Conv2d(7, 13, 1, 2)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(13, 5)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.norm(self.b(F.relu(self.a(x))))
        y += self.short(x)
        x = F.adaptive_avg_pool2d(self.relu(y), 1)
        logits: Tensor = self.head(x.view(x.size(0), -1))
        return logits


class Maps(Functional):
    """A backbone: several outputs, no classifier."""

    def forward(self, x: Tensor, scale: float | None = None) -> list[Tensor]:  # type: ignore[override]
        x = F.relu(self.stem(x))
        return [x, F.relu(self.norm(self.b(F.relu(self.a(x)))) + self.short(x))]


class PreActivation(nn.Module):
    """A BN that follows no convolution, and a norm with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.group = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(F.relu(self.norm(x)))
        logits: Tensor = self.head(self.group(x).mean((2, 3)))
        return logits


NETS: dict[str, Callable[[], nn.Module]] = {
    "functional": Functional,
    "maps": Maps,
    "pre-activation": PreActivation,
    "option A": lambda: build("cifar_resnet20", 5),
    "option B": lambda: build("cifar_resnet20_b", 5),
    "resnet18": lambda: build("resnet18", 5),
    "resnext": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=32, width_per_group=4),
}


def alive(net: nn.Module) -> nn.Module:
    """Give every BN statistics and an affine map other than its initial ones."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                assert isinstance(tensor, Tensor)
                tensor.data.uniform_(low, high, generator=generator)
    return net.eval()


@pytest.fixture
def make() -> Callable[[str], nn.Module]:
    def build_one(name: str) -> nn.Module:
        torch.manual_seed(0)
        return raised(alive(NETS[name]()), (3, 32, 32))

    return build_one


@pytest.fixture
def images() -> list[Tensor]:
    """Two batches of four 32x32 images."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(2)]
