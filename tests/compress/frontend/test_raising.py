"""A network is followed by what it computes, however it is written; what is cut computes what is masked."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from compress.errors import ModelError
from compress.frontend.layers import FrozenBatchNorm
from compress.frontend.network import RaisedNetwork
from compress.frontend.raising import accept, raised
from compress.graph.structure import Structure
from compress.models.registry import build
from compress.prune.surgery import cut, verify

SHAPE = (3, 16, 16)
Make = Callable[..., nn.Module]


def plain_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


class Block(nn.Module):
    def __init__(self, norm: Make, conv: Make = nn.Conv2d) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(8, 8, 3, padding=1), conv(8, 8, 3, padding=1)
        self.bn1, self.bn2 = norm(8), norm(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class Net(nn.Module):
    def __init__(self, norm: Make = plain_norm, conv: Make = nn.Conv2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Block(norm, conv)
        self.fc = nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        x = self.block(F.relu(self.stem(x)))
        assert isinstance(x, Tensor)
        return x

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.features(x).mean((2, 3)))


class Defaults(Net):
    def forward(self, x: Tensor, flag: bool = False, temperature: float = 2.0, **rest: Any) -> Any:
        return self.features(x) if flag else super().forward(x) / temperature


class Asserts(Net):
    def forward(self, x: Tensor) -> Any:
        assert x.shape[1] == 3, "RGB wanted"
        return super().forward(x if x.shape[-1] > 8 else F.interpolate(x, scale_factor=2))


class Loops(Net):
    def forward(self, x: Tensor) -> Any:
        x = self.features(x)
        while x.shape[-1] > 2:
            x = F.max_pool2d(x, 2)
        return self.fc(sum(x[:, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])))


class MadeInForward(Net):
    def forward(self, x: Tensor) -> Any:
        return self.fc(nn.Flatten()(nn.AdaptiveAvgPool2d(1)(nn.ReLU(inplace=True)(self.features(x)))))


class OwnConv(nn.Module):
    """Weights under names of its own, and 'same' padding computed from the shape."""

    def __init__(self, inputs: int, outputs: int, size: int, padding: int = 0) -> None:
        super().__init__()
        self.kernel, self.shift = (
            nn.Parameter(torch.randn(outputs, inputs, size, size) / 8),
            nn.Parameter(torch.zeros(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = (max((math.ceil(n) - 1) + self.kernel.shape[-1] - n, 0) for n in x.shape[-2:])
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.kernel, self.shift)


class SubConv(nn.Conv2d):
    """A subclass that only sets defaults."""


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, self.stride, self.padding)


class SubNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )


class AlwaysEval(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> "AlwaysEval":
        super().train(False)
        return self


class InPlace(Net):
    def forward(self, x: Tensor) -> Any:
        x = self.features(x) - 0.1
        y = x.relu_()
        return self.fc((y * 2 + x).mean((2, 3)))


class Twice(Net):
    def features(self, x: Tensor) -> Tensor:
        x = self.block(self.block(F.relu(self.stem(x))))
        assert isinstance(x, Tensor)
        return x


class Blurred(Net):
    """A filter that is a buffer, for as many channels as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.tensor([[1.0, 2.0, 1.0]]).T @ torch.tensor([[1.0, 2.0, 1.0]]) / 16)

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        kernel = self.kernel[None, None].repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])


class Shapes(Net):
    """Every usual way to write a flattened average, and a channel shuffle."""

    def forward(self, x: Tensor) -> Any:
        x = self.features(x)
        count, channels, height, width = x.shape
        x = x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(count, channels, height, width)
        x = F.avg_pool2d(x, x.size()[2:])
        return self.fc(x.view(x.size(0), -1)) + self.fc(x[:, :, 0, 0]) + self.fc(x.squeeze(-1).squeeze(-1))


class Named(Net):
    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        return {"logits": self.fc(features.mean((2, 3))), "features": features}


def frozen_norm(channels: int) -> nn.Module:
    return torchvision.ops.FrozenBatchNorm2d(channels)


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "default arguments": Defaults,
    "asserts and branches on shapes": Asserts,
    "loops over sizes": Loops,
    "modules made in the forward": MadeInForward,
    "functional convolution": lambda: Net(conv=OwnConv),
    "subclass of a convolution": lambda: Net(conv=SubConv),
    "standardized weights": lambda: Net(conv=Standardized),
    "subclass of a norm": lambda: Net(norm=SubNorm),
    "synchronized norm": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(Net()),
    "frozen norm": lambda: Net(norm=frozen_norm),
    "norm that stays in eval mode": lambda: Net(norm=AlwaysEval),
    "norm without parameters": lambda: Net(norm=lambda c: nn.BatchNorm2d(c, affine=False)),
    "group norm": lambda: Net(norm=lambda c: nn.GroupNorm(4, c)),
    "instance norm": lambda: Net(norm=lambda c: nn.InstanceNorm2d(c, affine=True)),
    "reflect padding": lambda: Net(conv=lambda *a, **k: nn.Conv2d(*a, padding_mode="reflect", **k)),
    "in place": InPlace,
    "a block called twice": Twice,
    "a buffer for a filter": Blurred,
    "changes of shape": Shapes,
    "named outputs": Named,
}


def lively(net: nn.Module) -> nn.Module:
    """Norms with values that are nothing like the identity."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if name.endswith(("running_mean", "running_var")) or ("bn" in name and tensor.dim() == 1):
            tensor.uniform_(0.5, 1.5, generator=generator)
    return net.eval()


def leaves(output: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", NETS)
def test_a_network_is_raised_cut_and_trained_however_it_is_written(name: str) -> None:
    torch.manual_seed(0)
    net = lively(NETS[name]())
    images = torch.randn(3, *SHAPE)
    accepted = accept(net, SHAPE)
    with torch.no_grad():
        for wanted, found in zip(leaves(net(images)), leaves(accepted.net(images)), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not accepted.changes
    structure = Structure.of(accepted.net, SHAPE)
    kept = {group.name: range(0, group.units, 2) for group in structure.coupling}
    removed = [segment for segment in structure.segments if segment.removable]
    assert (
        "block.conv1" in kept
        or any("block.conv1" in group.name for group in structure.coupling)
        or name == "a block called twice"
    )
    for blocks in ([], removed):
        pruned = cut(accepted.net, structure.coupling, kept, blocks)
        verify(accepted.net, pruned, structure.coupling, kept, images, blocks)
    output = accepted.net.train()(images)
    sum(leaf.square().sum() for leaf in leaves(output)).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in accepted.net.parameters() if p.requires_grad)


def test_the_raised_network_has_the_users_names_and_tensors() -> None:
    net = build("resnet18", 5)
    found = raised(net, (3, 32, 32))
    assert {k: v.data_ptr() for k, v in found.state_dict().items()} == {
        k: v.data_ptr() for k, v in net.state_dict().items()
    }
    assert raised(found, (3, 32, 32)) is found
    assert isinstance(copy.deepcopy(found), RaisedNetwork)


def test_a_norm_that_its_network_never_trains_keeps_its_statistics() -> None:
    net = accept(Net(norm=AlwaysEval), SHAPE).net
    assert isinstance(net.get_submodule("block.bn1"), FrozenBatchNorm)
    before = net.get_submodule("block.bn1").running_mean.clone()  # type: ignore[union-attr, operator]
    net.train()(torch.randn(4, *SHAPE))
    assert torch.equal(before, net.get_submodule("block.bn1").running_mean)  # type: ignore[arg-type]


def test_dictionaries_keep_their_names() -> None:
    assert set(raised(Named(), SHAPE)(torch.randn(1, *SHAPE))) == {"logits", "features"}


class DropPath(Net):
    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return x * (torch.rand(x.shape[0], 1, 1, 1) > 0.2) if self.training else x


class Auxiliary(Net):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.features(x).mean((2, 3))
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


@pytest.mark.parametrize(("net", "says"), [(DropPath, "rand"), (Auxiliary, "linear")])
def test_what_training_mode_computes_besides_is_said(net: type[Net], says: str) -> None:
    accepted = accept(net(), SHAPE)
    assert any(says in change for change in accepted.changes)
    assert "aux.weight" not in accepted.net.state_dict()


class OnValues(Net):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y if y.sum() > 0 else -y


class OnBatch(Net):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y.squeeze(0) if x.shape[0] == 1 else y


class Random(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(F.dropout(x, 0.5))


class IntoView(Net):
    def features(self, x: Tensor) -> Tensor:
        x = super().features(x) - 0.5
        x[:, :4].relu_()
        return x


class Two(Net):
    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x + y)


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (OnValues, r"test_raising\.py:\d+ \(return y if y\.sum\(\) > 0"),
        (OnBatch, "batch"),
        (Random, "random in eval mode"),
        (IntoView, "another view"),
        (Two, r"takes 2 inputs \(x, y\)"),
    ],
)
def test_what_cannot_be_followed_is_an_error_with_a_remedy(net: type[Net], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        accept(net().eval(), SHAPE)
    assert caught.value.remedy


def test_torchscript_is_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match="TorchScript") as caught:
        accept(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1))), SHAPE)
    assert "state_dict" in (caught.value.remedy or "")


def test_images_of_the_wrong_shape_are_said() -> None:
    with pytest.raises(ModelError, match=r"fails on a batch of images of shape \(1, 16, 16\)"):
        accept(Net(), (1, 16, 16))
