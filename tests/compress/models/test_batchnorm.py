import torch
from torch import nn

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
