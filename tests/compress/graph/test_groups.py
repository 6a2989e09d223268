"""What goes together, what stays, and what is refused."""

import re
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from user_nets import Backbone, Dense, Heads, OptionA, Plain, Scaled, Shared, SqueezeExcite

from compress.errors import ModelError
from compress.graph.groups import couple
from compress.models.registry import build

SHAPE = (3, 32, 32)


def writers(group):
    return [slot.layer for slot in group.writers]


def readers(group):
    return [slot.layer for slot in group.readers]


def test_resnet18_has_a_stream_a_stage_and_an_inner_width_a_block():
    coupling = couple(build("resnet18"), SHAPE)
    kinds = {group.name: (group.kind, group.width) for group in coupling}
    assert kinds == {
        **{f"layer{s}.{b}.conv1": ("inner", 32 << s) for s in (1, 2, 3, 4) for b in (0, 1)},
        **{f"layer{s}.1.conv2": ("stream", 32 << s) for s in (1, 2, 3, 4)},
    }
    stream = coupling["layer2.1.conv2"]
    assert writers(stream) == ["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"]
    assert readers(stream) == ["layer2.1.conv1", "layer3.0.conv1", "layer3.0.downsample.0"]
    assert [slot.layer for slot in stream.norms] == ["layer2.0.bn2", "layer2.0.downsample.1", "layer2.1.bn2"]
    assert writers(coupling["layer1.1.conv2"])[0] == "conv1"  # the stem is tied to the first stream
    assert coupling.frozen == {"fc": "the network's output"}


def test_a_bottleneck_block_has_two_inner_widths_and_the_stem_is_its_own():
    coupling = couple(build("resnet50"), SHAPE)
    assert len(coupling.groups) == 1 + 2 * 16 + 4
    assert writers(coupling["conv1"]) == ["conv1"]
    assert coupling["layer3.5.conv3"].width == 1024


def test_resnext_units_are_whole_groups():
    group = couple(build("resnext50_32x4d"), SHAPE)["layer1.0.conv2"]
    assert (group.kind, group.units, group.unit, group.width) == ("inner", 32, 4, 128)
    assert writers(group) == ["layer1.0.conv1", "layer1.0.conv2"]
    assert group.writers[1].channels[1] == (4, 5, 6, 7)


def test_option_a_does_not_tie_its_two_sides():
    coupling = couple(build("cifar_resnet20"), SHAPE)
    assert "layer2.0.shortcut.0" in readers(coupling["layer1.2.conv2"])
    assert "layer2.0.shortcut.0" in writers(coupling["layer2.2.conv2"])
    assert coupling["layer3.2.conv2"].width == 64


def test_functional_padding_ties_the_middle_and_fixes_the_rest():
    coupling = couple(OptionA(), SHAPE)
    stream = coupling["conv4"]
    assert writers(stream) == ["conv1", "conv2", "conv4"]
    assert stream.width == 8
    assert stream.writers[2].channels[0] == (4,)
    assert "pad" in coupling.frozen["conv4"]


def test_a_channel_that_is_concatenated_twice_is_one_unit():
    stream = couple(OptionA("cat"), SHAPE)["conv4"]
    assert stream.writers[-1].channels[1] == (1, 9)
    assert (stream.units, stream.unit, stream.width) == (8, 2, 16)


def test_gates_are_tied_to_what_they_multiply_and_a_pixel_gate_stays():
    coupling = couple(SqueezeExcite(), SHAPE)
    tied = next(group for group in coupling if "fc2" in writers(group))
    assert {"body.2.conv2", "excite", "deep"} <= set(writers(tied))
    assert tied.unit == 2  # the depthwise layer makes two channels of each
    assert "spreads it over all channels" in coupling.frozen["pixel"]


def test_concatenation_keeps_its_parts_apart():
    coupling = couple(Dense(), SHAPE)
    (stem,) = [slot for slot in coupling["stem"].readers if slot.layer == "mix"]
    (body,) = [slot for slot in coupling["body.1.skip"].readers if slot.layer == "mix"]
    assert (stem.channels[0], body.channels[0]) == ((0,), (8,))


def test_outputs_stay():
    assert set(couple(Heads(), SHAPE).frozen) == {"fc", "map", "box"}
    assert set(couple(Backbone(), SHAPE).frozen) == {
        "stem",
        "body.0.conv2",
        "body.1.conv2",
        "body.1.skip",
        "body.2.conv2",
    }


def test_a_layer_called_twice_ties_its_two_sides():
    group = couple(Shared(), SHAPE)["twice"]
    assert (writers(group), readers(group)) == (["stem", "twice"], ["twice", "one"])


def test_what_needs_all_channels_keeps_them_and_says_why():
    assert "constant" in couple(Scaled(), SHAPE).frozen["stem"]


def test_the_channels_of_a_normalization_group_go_together():
    group = next(group for group in couple(Scaled(), SHAPE) if "norm" in {slot.layer for slot in group.norms})
    assert group.unit == 4


def test_an_operation_that_is_not_known_keeps_its_channels_and_says_so():
    frozen = couple(Unknown(), SHAPE).frozen["body.2.conv2"]
    assert re.search(r"'cumsum.*test_groups\.py:\d+.*is not known", frozen)


@pytest.mark.parametrize("name", ["FunctionalConv", "Split", "OddLayer", "ClampedByParameter"])
def test_what_is_written_without_layers_is_followed(name):
    assert {"body.0.conv1", "body.1.conv1"} <= {group.name for group in couple(globals()[name](), SHAPE)}


def test_the_network_is_left_alone():
    net = Plain().train()
    couple(net, SHAPE)
    assert net.training
    assert next(net.parameters()).device.type == "cpu"


class ControlFlow(Plain):
    def forward(self, x):
        if x.mean() > 0:
            x = -x
        return super().forward(x)


class Unknown(Plain):
    def forward(self, x):
        return self.features(x).cumsum(1)


class FunctionalConv(Plain):
    def forward(self, x):
        x = self.features(x)
        return F.conv2d(x, self.body[2].conv1.weight)


class ManyInputs(Plain):
    def forward(self, x, y):
        return super().forward(x + y)


class Split(Plain):
    def forward(self, x):
        left, right = self.features(x).chunk(2, 1)
        return left + right


class TwoShapes(Plain):
    def forward(self, x):
        return self.features(x) + self.features(x).mean((2, 3))


class OddLayer(Plain):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(16, 16, 2)

    def forward(self, x):
        return self.up(self.features(x))


class ClampedByParameter(Plain):
    def __init__(self):
        super().__init__()
        self.low = nn.Parameter(torch.zeros(1, 16, 1, 1))

    def forward(self, x):
        return self.fc(torch.clamp(self.features(x), self.low).mean((2, 3)))


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (ControlFlow, r"cannot trace ControlFlow.forward at .*test_groups\.py:\d+ \(if x\.mean\(\) > 0:\)"),
        (ManyInputs, r"takes 2 inputs \(x, y\)"),
        (TwoShapes, r"fails on a batch of images of shape .* at .*test_groups\.py:\d+"),
    ],
)
def test_what_is_not_understood_is_an_error_that_names_it(net, says):
    with pytest.raises(ModelError, match=says) as caught:
        couple(net(), SHAPE)
    assert caught.value.remedy


def test_a_wrong_input_shape_is_an_error():
    with pytest.raises(ModelError, match="fails on a batch of images of shape"):
        couple(Plain(), (1, 32, 32))


def test_a_large_net_takes_seconds():
    net = build("resnet152")
    started = time.process_time()
    couple(net, (3, 224, 224))
    assert time.process_time() - started < 20
