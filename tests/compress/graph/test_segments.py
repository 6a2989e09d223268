"""The pieces of a network: residual blocks, and the chains between them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from user_nets import NETS, Plain

from compress.graph.groups import couple
from compress.graph.segments import segments
from compress.graph.tracing import trace
from compress.models.registry import build

SHAPE = (3, 16, 16)
WEIGHTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
BUILT_IN = ["resnet18", "resnet50", "resnext50_32x4d", "cifar_resnet20", "cifar_resnet20_b"]


def found(net):
    return segments(net, couple(net, SHAPE), SHAPE)


def network(name):
    return build(name, 7) if name in BUILT_IN else NETS[name]()


@pytest.mark.parametrize("name", [*BUILT_IN, *NETS])
def test_every_layer_is_in_one_segment_with_its_groups(name):
    net = network(name)
    coupling = couple(net, SHAPE)
    pieces = segments(net, coupling, SHAPE)
    layers = [layer for piece in pieces for layer in piece.layers]
    assert len(layers) == len(set(layers))
    graph = trace(net, SHAPE).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    assert {n for n, m in net.named_modules() if isinstance(m, WEIGHTED) and n in called} <= set(layers)
    assert len({piece.name for piece in pieces}) == len(pieces)
    nodes = {node.name for node in graph.nodes}
    for piece in pieces:
        assert {piece.source, piece.result} <= nodes
        groups = {g.name for g in coupling for s in (*g.writers, *g.readers, *g.norms) if s.layer in piece.layers}
        assert set(piece.groups) == groups


def test_a_resnet18():
    pieces = found(build("resnet18", 7))
    assert [(p.name, p.removable) for p in pieces] == [
        ("conv1", False),
        *((f"layer{stage}.{block}", stage == 1 or block == 1) for stage in range(1, 5) for block in range(2)),
        ("fc", False),
    ]
    stem, first, *_, last = pieces
    assert (stem.layers, stem.groups, stem.source, stem.result) == (
        ("conv1", "bn1"),
        ("layer1.1.conv2",),
        "x",
        "maxpool",
    )
    assert (first.source, first.result) == ("maxpool", "layer1_0_relu_1")
    assert first.layers == ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2")
    assert pieces[3].groups == ("layer1.1.conv2", "layer2.0.conv1", "layer2.1.conv2")
    assert (last.name, last.layers, last.result) == ("fc", ("fc",), "fc")


@pytest.mark.parametrize(
    ("name", "removable", "others"),
    [
        ("resnet50", 12, ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc"]),
        ("resnext50_32x4d", 12, ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc"]),
        ("cifar_resnet20", 7, ["conv1", "layer2.0", "layer3.0", "linear"]),
        ("cifar_resnet20_b", 7, ["conv1", "layer2.0", "layer3.0", "linear"]),
        ("plain", 2, ["stem", "body.1", "fc"]),
        ("heads", 2, ["stem", "body.1", "fc", "map", "hidden"]),
        ("backbone", 2, ["stem", "body.1"]),
        ("pad", 1, ["conv1", "add_1", "head"]),
        ("pre-activation", 2, ["stem", "last"]),
        ("squeeze-excite", 2, ["stem", "body.1", "fc1", "squeeze", "pixel", "deep"]),
        ("dense", 0, ["stem", "body.1", "norm"]),
        ("shared", 0, ["stem", "add", "fc"]),
    ],
)
def test_which_blocks_can_go(name, removable, others):
    pieces = found(network(name))
    assert sum(piece.removable for piece in pieces) == removable
    assert [piece.name for piece in pieces if not piece.removable] == others


class Sum(Plain):
    """A block of one's own between the stem and the classifier."""

    def __init__(self, between, width=8, **layers):
        super().__init__()
        self.between, self.fc, self.body = between, nn.Linear(width, 5), nn.Identity()
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.fc(self.between(self, self.stem(x)).mean((2, 3)))


def conv(stride=1):
    return nn.Conv2d(8, 8, 3, stride, 1)


def tapped(net, x):
    y = net.a(x)
    return (x + net.b(y)) * y.mean((2, 3), keepdim=True)


BLOCKS = {
    "relu last": (lambda net, x: x + F.relu(net.a(x)), {"a": conv()}, True),
    "two in one module": (
        lambda net, x: net.m[1](h := net.m[0](x) + x) + h,
        {"m": nn.ModuleList([conv(), conv()])},
        True,
    ),
    "identity module": (lambda net, x: net.b(x) + net.a(x), {"a": conv(), "b": nn.Identity()}, True),
    "sigmoid last": (lambda net, x: x + net.a(x).sigmoid(), {"a": conv()}, False),
    "scaled": (lambda net, x: torch.add(x, net.a(x), alpha=2), {"a": conv()}, False),
    "difference": (lambda net, x: net.a(x) - x, {"a": conv()}, False),
    "gate": (lambda net, x: x + net.a(x) * net.b(x), {"a": conv(), "b": conv()}, True),
    "gate alone": (lambda net, x: x + net.a(x).sigmoid() * net.b(x).sigmoid(), {"a": conv(), "b": conv()}, False),
    "branch read elsewhere": (tapped, {"a": conv(), "b": conv()}, False),
    "called elsewhere": (lambda net, x: (x + net.a(x)).relu() * net.a(x).sigmoid(), {"a": conv()}, False),
    "pooled": (lambda net, x: x + F.interpolate(net.a(x), scale_factor=2), {"a": conv(2)}, False),
    "in place on the source": (lambda net, x: x + net.a(F.relu_(x)), {"a": conv()}, True),
    "nested": (lambda net, x: x + net.b(F.relu(net.a(x))) + net.c(x), {"a": conv(), "b": conv(), "c": conv()}, None),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_what_makes_a_block_removable(case):
    between, layers, removable = BLOCKS[case]
    pieces = found(Sum(between, **layers))
    blocks = [piece for piece in pieces if piece.name not in ("stem", "fc")]
    if removable is not None:
        assert {block.removable for block in blocks} == {removable}


def test_blocks_that_share_a_prefix_are_named_after_their_additions():
    between, layers, _ = BLOCKS["two in one module"]
    assert [piece.name for piece in found(Sum(between, **layers))] == ["stem", "add", "add_1", "fc"]


def test_a_network_without_residuals_is_one_chain():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 144, 4))
    (chain,) = found(net)
    assert (chain.name, chain.layers, chain.groups) == ("0", ("0", "2", "4"), ("0", "2"))
