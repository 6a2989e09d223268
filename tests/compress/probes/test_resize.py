"""The template at other widths, held against cutting, calibrating, lowering and exporting the network itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from calibration.preprocess import Preprocess
from compress.engines.onnxruntime import operator_counts, optimized_graph
from compress.errors import ModelError
from compress.frontend.raising import raised
from compress.graph.groups import Coupling, couple
from compress.graph.segments import Segment, segments
from compress.models.cifar import CifarResNet
from compress.probes.fragments import THIN, ends, fragment, signature
from compress.probes.resize import resized, without
from compress.probes.template import Template, make_template
from compress.prune.surgery import cut

PREPROCESS = Preprocess(size=16)
SHAPE = PREPROCESS.shape


class Taken:
    """A network with its template."""

    def __init__(self, name: str, target: str) -> None:
        torch.manual_seed(0)
        self.net: nn.Module = NETS[name]()
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.bias, -0.3, 0.3)
        self.net = raised(self.net.eval(), SHAPE)
        self.target = target
        self.coupling: Coupling = couple(self.net, SHAPE)
        self.segments: dict[str, Segment] = {s.name: s for s in segments(self.net, self.coupling, SHAPE)}
        marks = [mark for s in self.segments.values() for mark in (s.source, s.result)]
        self.template: Template = make_template(self.net, PREPROCESS, target, 1, marks)

    def random_widths(self) -> dict[str, list[int]]:
        rng = np.random.default_rng(1)
        return {
            g.name: sorted(rng.permutation(g.units)[: rng.integers(1, g.units + 1)].tolist()) for g in self.coupling
        }


class GroupedNet(nn.Module):
    """A ResNeXt block with a bias and no BN, a 1x1 shortcut, a functional ReLU, an identity block, a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.a = nn.ModuleList([nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, 1, 1, groups=3), nn.Conv2d(12, 16, 1)])
        self.short = nn.Conv2d(8, 16, 1)
        self.b = nn.ModuleList([nn.Conv2d(16, 6, 3, 1, 1), nn.Conv2d(6, 16, 3, 1, 1)])
        self.fc = nn.Linear(16 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        y = self.a[2](self.a[1](self.a[0](x).relu()).relu())
        x = torch.relu(y + self.short(x))
        x = torch.relu(self.b[1](self.b[0](x).relu()) + x)
        logits: torch.Tensor = self.fc(nn.functional.max_pool2d(x, 2).flatten(1))
        return logits


NETS: dict[str, Callable[[], nn.Module]] = {
    "grouped": GroupedNet,
    "option A": lambda: CifarResNet(8, 5, "A"),
    "option B": lambda: CifarResNet(14, 5, "B"),
}


@pytest.fixture(scope="module")
def basic() -> Taken:
    return Taken("option B", "ort-x86")


@pytest.fixture(scope="module")
def grouped() -> Taken:
    return Taken("grouped", "ort-x86")


def shapes(template: Template) -> Counter[tuple[str, tuple[int, ...]]]:
    """Operators with the shape that each gives."""
    return Counter((node.op_type, template.shapes[node.output[0]]) for node in template.nodes)


def fused(template: Template, folder: Path) -> dict[str, int]:
    """What ONNX Runtime makes of it."""
    path = folder / "model.onnx"
    path.write_bytes(template.to_onnx().SerializeToString())
    return operator_counts(optimized_graph(path))


@pytest.mark.parametrize(
    ("name", "target"),
    [("option A", "ort-x86"), ("grouped", "ort-x86"), ("grouped", "tensorrt")],
)
def test_a_resized_graph_is_the_exported_pruned_network(name: str, target: str, tmp_path: Path) -> None:
    taken = Taken(name, target)
    kept = taken.random_widths()
    removed = [segment for segment in taken.segments.values() if segment.removable][::2]
    assert removed
    mine = without(resized(taken.template, taken.coupling, kept), removed)
    real = make_template(cut(taken.net, taken.coupling, kept, removed), PREPROCESS, target, 1, ())
    assert shapes(mine) == shapes(real)
    weights = [Counter((v.shape, v.dtype) for v in each.constants.values()) for each in (mine, real)]
    assert weights[0] == weights[1]
    if target == "ort-x86":
        assert fused(mine, tmp_path) == fused(real, tmp_path)


def test_cutting_takes_the_units_that_it_is_told_to(grouped: Taken) -> None:
    """Units whose weights are zero, everywhere they are written, can go without changing the outputs."""
    group = grouped.coupling["stem"]
    constants = dict(grouped.template.constants)
    for node in grouped.template.nodes:
        if grouped.template.layers.get(node.output[0]) == "stem" and node.op_type == "Conv":
            for name in (node.input[2], grouped.template.producers[node.input[1]].input[0]):
                constants[name] = constants[name].copy()
                constants[name][[1, 4]] = 0
    for name, value in constants.items():  # other neighbours than before: small weights fit beside any
        if value.dtype == np.int8 and value.ndim == 4:
            constants[name] = value // 2
    template = replace(grouped.template, constants=constants)
    x = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    kept = {group.name: [unit for unit in range(group.units) if unit not in (1, 4)]}
    outputs = [
        ort.InferenceSession(each.to_onnx().SerializeToString()).run(None, {"input": x})[0]
        for each in (template, resized(template, grouped.coupling, kept))
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_a_fragment_is_fused_as_the_network_is(basic: Taken, tmp_path: Path) -> None:
    block = basic.segments["layer1.1"]
    around = {"QuantizeLinear": 1, "DequantizeLinear": 1, "Transpose": 2}
    assert fused(fragment(basic.template, block), tmp_path) == {"QLinearConv": 2 + 2, "QLinearAdd": 1, **around}
    assert fused(fragment(basic.template, block, 3), tmp_path) == {"QLinearConv": 6 + 2, "QLinearAdd": 3, **around}
    assert fused(ends(basic.template, block.result), tmp_path) == {"QLinearConv": 2, **around}


def test_all_fragments_together_hold_each_layer_once(basic: Taken) -> None:
    pieces = [fragment(basic.template, segment) for segment in basic.segments.values()]
    convs = sum(node.op_type == "Conv" for piece in pieces for node in piece.nodes)
    thin = 2 * len(pieces) - 2  # the network's own input and output have none
    assert convs - thin == sum(node.op_type == "Conv" for node in basic.template.nodes)


def test_copies_have_weights_of_their_own(basic: Taken) -> None:
    one, three = (fragment(basic.template, basic.segments["layer2.1"], copies) for copies in (1, 3))
    weights = [sum(v.nbytes for v in piece.constants.values() if v.ndim == 4) for piece in (one, three)]
    around = ends(basic.template, basic.segments["layer2.1"].source)
    thin = sum(v.nbytes for v in around.constants.values() if v.ndim == 4)
    assert weights[1] - thin == 3 * (weights[0] - thin)
    assert THIN in next(iter(three.inputs.values()))


def test_blocks_alike_have_one_signature(basic: Taken) -> None:
    marks = {name: signature(fragment(basic.template, segment)) for name, segment in basic.segments.items()}
    assert marks["layer1.0"] == marks["layer1.1"]
    assert len(set(marks.values())) == 7


def test_what_cannot_follow_itself_or_go_is_refused(basic: Taken) -> None:
    with pytest.raises(ModelError, match="cannot follow itself"):
        fragment(basic.template, basic.segments["layer2.0"], 2)
    with pytest.raises(ModelError, match="cannot be removed"):
        without(basic.template, [basic.segments["layer2.0"]])
    with pytest.raises(ModelError, match="names a group"):
        resized(basic.template, basic.coupling, {"nonsense": [0]})
