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


@pytest.mark.parametrize("size", [0.05, 1.0, 5.0])
def test_small_weights_get_the_size_that_training_begins_with(size: float) -> None:
    torch.manual_seed(0)
    net = accept(build("resnet18", 10).eval(), (3, 64, 64)).net
    convs = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    with torch.no_grad():
        for conv in convs.values():
            conv.weight.mul_(size)
        convs["layer1.0.conv1"].weight.zero_()  # a dead layer
    old = {name: conv.weight.detach().clone() for name, conv in convs.items()}
    images = torch.randn(16, 3, 64, 64)
    before = net(images)

    reparameterize(net, [images])

    torch.testing.assert_close(net(images), before, rtol=1e-3, atol=1e-4)
    assert torch.equal(convs.pop("layer1.0.conv1").weight, old["layer1.0.conv1"])
    for name, conv in convs.items():
        usual = float(nn.init.kaiming_normal_(torch.empty_like(conv.weight), mode="fan_out").std())
        was = float(old[name].std())
        assert float(conv.weight.detach().std()) == pytest.approx(max(was, usual), rel=0.05)
        torch.testing.assert_close(conv.weight / conv.weight.std(), old[name] / was)


class Shared(nn.Module):
    """Convolutions in front of a batch norm, whose weights or outputs are used elsewhere too, and one that is alone."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.read, self.biased, self.other, self.summed = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(5))
        self.other.bias = self.biased.bias
        self.alone = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.bn1, self.bn2, self.bn3, self.bn4, self.bn5 = (nn.BatchNorm2d(4) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.twice(self.twice(x)))
        y = self.read(x)
        x = self.bn3(self.biased(self.bn2(y) + y)) + self.other(x)
        x = self.bn4(self.summed(x)) + self.summed.weight.sum((1, 2, 3)).view(1, -1, 1, 1)
        return self.bn5(self.alone(x)).mean((2, 3))  # type: ignore[no-any-return]


def test_weights_that_others_need_as_they_are_stay() -> None:
    torch.manual_seed(0)
    net = accept(Shared().eval(), (4, 16, 16)).net
    convs = ("twice", "read", "biased", "other", "summed", "alone")
    with torch.no_grad():
        for name in convs:
            net.get_submodule(name).weight.mul_(0.1)
    old = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(8, 4, 16, 16)
    before = net(images)
    reparameterize(net, [images])
    new = net.state_dict()
    torch.testing.assert_close(net(images), before, rtol=1e-3, atol=1e-4)
    assert [name for name in convs if not torch.equal(new[f"{name}.weight"], old[f"{name}.weight"])] == ["alone"]
    assert new["alone.bias"].norm() > 2 * old["alone.bias"].norm()


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-20, 1e-25])
def test_layers_that_have_decayed_to_nothing(size: float) -> None:
    torch.manual_seed(0)
    net = accept(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten()).eval(), (3, 16, 16)).net
    with torch.no_grad():
        next(net.parameters()).mul_(size)
    images = torch.randn(8, 3, 16, 16)
    before = net(images)
    reparameterize(net, [images])
    torch.testing.assert_close(net(images), before, rtol=1e-3, atol=1e-4)
