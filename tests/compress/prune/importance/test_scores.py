import numpy as np
import pytest
import torch
import torch.nn.functional as F
from user_nets import Heads, Plain, lively

from compress.errors import ModelError
from compress.graph.groups import couple
from compress.models.registry import build
from compress.prune.importance.norm import weight_norm
from compress.prune.importance.random import random_scores
from compress.prune.importance.taylor import taylor

SHAPE = (3, 16, 16)


def batches(sizes=(3, 2), classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, *SHAPE, generator=generator), torch.randint(classes, (n,), generator=generator)) for n in sizes
    ]


def test_taylor_is_the_papers_formula_on_batch_norms():
    """(sum over writers of gamma dL/dgamma + beta dL/dbeta)^2, image by image, by plain backpropagation."""
    torch.manual_seed(0)
    net = lively(build("cifar_resnet20_b", 5))
    coupling = couple(net, SHAPE)
    data = batches()
    found = taylor(net, coupling, data)
    expected = {group.name: torch.zeros(group.units) for group in coupling}
    for x, labels in data:
        for image, label in zip(x.split(1), labels.split(1), strict=True):
            net.zero_grad()
            F.cross_entropy(net(image), label).backward()
            for group in coupling:
                total = torch.zeros(group.units)
                for slot in group.norms:
                    bn = net.get_submodule(slot.layer)
                    total += (bn.weight * bn.weight.grad + bn.bias * bn.bias.grad).detach()
                expected[group.name] += total.square() / 5
    for name, score in found.items():
        np.testing.assert_allclose(score, expected[name].numpy(), rtol=2e-3, atol=1e-7)


def test_taylor_leaves_the_net_alone_and_does_not_depend_on_the_batching():
    net = lively(Plain()).train()
    coupling = couple(net, SHAPE)
    x, y = batches((6,))[0]
    whole = taylor(net, coupling, [(x, y)])
    parts = taylor(net, coupling, zip(x.split(2), y.split(2), strict=True))
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-4)
    assert net.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_a_dead_channel_scores_nothing():
    net = lively(Plain())
    with torch.no_grad():
        net.body[0].conv2.weight[:, 3] = 0
    coupling = couple(net, SHAPE)
    scores = taylor(net, coupling, batches())["body.0.conv1"]
    assert scores[3] == 0
    assert np.count_nonzero(scores) > 4


def test_norm_orders_by_rows_and_columns():
    net = lively(Plain())
    scores = weight_norm(net, couple(net, SHAPE))["body.0.conv1"]
    block = net.body[0]
    lengths = (block.conv1.weight.square().sum((1, 2, 3)) + block.conv2.weight.square().sum((0, 2, 3))).sqrt()
    order = lengths.argsort().tolist()
    assert np.argsort(scores).tolist() == order
    kept = lengths[order[3:]].sum() / lengths.sum()
    assert scores[order[:3]].sum() == pytest.approx(-np.log(kept.item()), rel=1e-5)


def test_norm_does_not_depend_on_a_layers_scale():
    net = lively(Plain())
    coupling = couple(net, SHAPE)
    before = weight_norm(net, coupling)["body.0.conv1"]
    with torch.no_grad():
        for parameter in net.body[0].parameters():
            parameter *= 1e-4
    np.testing.assert_allclose(weight_norm(net, coupling)["body.0.conv1"], before, rtol=1e-5)


@pytest.mark.parametrize("arch", ["resnext50_32x4d", "cifar_resnet20"])
def test_norm_covers_whole_groups_and_option_a(arch):
    net = build(arch, 5)
    coupling = couple(net, SHAPE)
    scores = weight_norm(net, coupling)
    for group in coupling:
        assert scores[group.name].shape == (group.units,)
        assert (scores[group.name] > 0).all()


def test_random_follows_its_seed():
    coupling = couple(Plain(), SHAPE)
    first, again, other = (random_scores(coupling, seed)["body.0.conv1"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).all()


def test_taylor_needs_logits_images_and_finite_weights():
    heads = Heads()
    with pytest.raises(ModelError, match="classifier"):
        taylor(heads, couple(heads, SHAPE), batches())
    net = Plain()
    coupling = couple(net, SHAPE)
    with pytest.raises(ModelError, match="at least one image"):
        taylor(net, coupling, [])
    torch.nn.init.constant_(net.fc.weight, float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        taylor(net, coupling, batches())
    with pytest.raises(ModelError, match="not finite"):
        weight_norm(net, coupling)
