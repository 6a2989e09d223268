import pytest
import torch
from torch import nn

from compress.frontend.raising import accept
from compress.models.batchnorm import has_stale_statistics, reparameterize
from compress.models.registry import build


def test_statistics_become_real_and_the_function_stays() -> None:
    torch.manual_seed(0)
    net = build("cifar_resnet20", 10).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    images = torch.randn(32, 3, 32, 32)
    before = net(images)
    assert has_stale_statistics(net)

    reparameterize(net, [images[:16], images[16:]])

    assert not has_stale_statistics(net)
    torch.testing.assert_close(net(images), before, rtol=1e-3, atol=1e-4)
    net.train()  # batch statistics are now the running ones, so training starts from the same function
    torch.testing.assert_close(net(images), before, rtol=2e-2, atol=2e-2)


def test_a_backbone_without_bn_has_nothing_stale() -> None:
    assert not has_stale_statistics(nn.Conv2d(3, 8, 3))


class Twice(nn.Module):
    """A convolution that is called twice, one that something else reads too, and one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.read, self.alone = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.shared(self.shared(x)))
        y = self.read(x)
        return self.bn3(self.alone(self.bn2(y) + y))  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [0.05, 1.0, 5.0])
def test_small_weights_get_the_size_that_training_begins_with(size: float) -> None:
    torch.manual_seed(0)
    net = accept(build("resnet18", 10).eval(), (3, 64, 64)).net
    convs = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    with torch.no_grad():
        for conv in convs.values():
            conv.weight.mul_(size)
        convs["layer1.0.conv1"].weight.zero_()  # a dead layer
    old = {name: conv.weight.clone() for name, conv in convs.items()}
    images = torch.randn(16, 3, 64, 64)
    before = net(images)

    reparameterize(net, [images])

    torch.testing.assert_close(net(images), before, rtol=1e-3, atol=1e-4)
    for name, conv in convs.items():
        usual = (2 / conv.weight[:, 0].numel()) ** 0.5
        rms = old[name].square().mean().sqrt()
        factor = max(1.0, usual / rms) if rms else 1.0
        torch.testing.assert_close(conv.weight, old[name] * factor)
        assert size > 1 or not rms or conv.weight.square().mean().sqrt() > 0.99 * usual


def test_weights_that_others_need_as_they_are_stay() -> None:
    torch.manual_seed(0)
    net = accept(Twice().eval(), (3, 16, 16)).net
    with torch.no_grad():
        for module in (net.shared, net.read, net.alone):
            module.weight.mul_(0.1)
    old = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(8, 3, 16, 16)
    before = net(images)
    reparameterize(net, [images])
    new = net.state_dict()
    torch.testing.assert_close(net(images), before, rtol=1e-3, atol=1e-4)
    assert torch.equal(new["shared.weight"], old["shared.weight"])
    assert torch.equal(new["read.weight"], old["read.weight"])
    assert new["alone.weight"].norm() > 2 * old["alone.weight"].norm()
    assert new["alone.bias"].norm() > 2 * old["alone.bias"].norm()
