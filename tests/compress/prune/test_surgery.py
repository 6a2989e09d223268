"""The cut network computes what the masked network computes, on every family."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from user_nets import NETS, Plain, lively

from calibration.preprocess import Preprocess
from compress.errors import ModelError
from compress.frontend.layers import Removed
from compress.frontend.ops import name_of
from compress.frontend.raising import raised
from compress.graph.groups import couple
from compress.graph.segments import segments
from compress.graph.structure import Structure
from compress.models.cost import count
from compress.models.model import Model, load_model, save_model
from compress.models.registry import build
from compress.prune.allocation.cost import WidthCost
from compress.prune.importance.masks import masked
from compress.prune.surgery import cut, verify
from compress.quantize.fold import fold

SMALL_IMAGENET = ["resnet18", "resnet34", "resnet50", "resnext50_32x4d"]
LARGE_IMAGENET = [
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext101_32x8d",
    "resnext101_64x4d",
]
CIFAR = ["cifar_resnet20", "cifar_resnet20_b", "cifar_resnet56"]


def built_in(arch):
    torch.manual_seed(0)
    return raised(lively(build(arch, 7)), (3, 32, 32)), (3, 32, 32)


def user_net(name, seed=0):
    torch.manual_seed(seed)
    return raised(lively(NETS[name](), seed), (3, 16, 16))


def some_units(coupling, seed, share=0.5):
    """A random choice of units, in a random number of groups, that keeps one of each at least."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in coupling:
        order = torch.randperm(group.units, generator=generator).tolist()
        kept[group.name] = sorted(
            order[: max(1, round(share * group.units * 2 * float(torch.rand(1, generator=generator))))]
        )
    return kept


def some_blocks(found, seed):
    """A random choice of the blocks that can be removed."""
    generator = torch.Generator().manual_seed(seed)
    return [segment for segment in found if segment.removable and torch.rand(1, generator=generator) < 0.5]


def outputs(net, x):
    with torch.no_grad():
        return [leaf for leaf in torch.utils._pytree.tree_leaves(net(x)) if leaf is not None]


def check(net, shape, seed=0):
    """Masked equals cut in float32 too; the cost is what was predicted; the original is untouched."""
    before = copy.deepcopy(net.state_dict())
    coupling = couple(net, shape)
    kept = some_units(coupling, seed)
    removed = some_blocks(segments(net, coupling, shape), seed)
    pruned = cut(net, coupling, kept, removed)
    x = torch.randn(2, *shape)
    assert verify(net, pruned, coupling, kept, x, removed) < 1e-9
    with masked(net, coupling, kept, removed):
        expected = outputs(net, x)
    for want, have in zip(expected, outputs(pruned, x), strict=True):
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(have / scale, want / scale, atol=1e-5, rtol=0)
    units = torch.tensor([float(len(kept[group.name])) for group in coupling]).double().numpy()
    assert WidthCost(net, coupling, shape).of(units, removed) == count(pruned, shape)
    assert count(pruned, shape).params < count(net, shape).params
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
    return pruned


@pytest.mark.parametrize("arch", [*SMALL_IMAGENET, *CIFAR])
def test_cut_equals_masked(arch):
    check(*built_in(arch))


@pytest.mark.slow
@pytest.mark.parametrize("arch", LARGE_IMAGENET)
def test_cut_equals_masked_on_large_nets(arch):
    check(*built_in(arch))


@pytest.mark.parametrize("name", NETS)
def test_cut_equals_masked_on_user_nets(name):
    check(user_net(name), (3, 16, 16))


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(NETS)), seed=st.integers(0, 10_000))
def test_any_choice_of_units_is_cut_right(name, seed):
    check(user_net(name, seed), (3, 16, 16), seed)


def test_masking_readers_is_zeroing_writers_in_a_resnet():
    """The mask's own reference: zero what every BN (and option A table) writes into a removed channel."""
    net, shape = built_in("cifar_resnet20")
    coupling = couple(net, shape)
    kept = some_units(coupling, 3)
    x = torch.randn(2, *shape)
    with torch.no_grad(), masked(net, coupling, kept):
        expected = net(x)
    for group in coupling:
        gone = sorted(set(range(group.units)) - set(kept[group.name]))
        for slot in (*group.norms, *(s for s in group.writers if "shortcut" in s.layer)):
            channels = [position for unit in gone for position in slot.channels[unit]]
            net.get_submodule(slot.layer).register_forward_hook(
                lambda module, inputs, out, channels=channels: out.index_fill(1, torch.tensor(channels), 0.0)
            )
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected)


def test_a_bn_folded_net_is_cut():
    net = fold(built_in("resnet18")[0])
    shape = (3, 32, 32)
    assert not couple(net, shape)["layer1.1.conv2"].norms
    check(net, shape)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "cifar_resnet20", "cifar_resnet20_b"])
def test_a_graph_without_its_removed_blocks(arch):
    """Whatever traces the cut network sees neither the branch nor its addition, and computes the same."""
    net, shape = built_in(arch)
    coupling = couple(net, shape)
    found = segments(net, coupling, shape)
    removed = [segment for segment in found if segment.removable][::2]
    pruned = cut(net, coupling, {}, removed)
    traced = fx.GraphModule(pruned, pruned.live_graph())
    assert [s.name for s in segments(pruned, couple(pruned, shape), shape)] == [
        s.name for s in found if s not in removed
    ]
    assert not any(isinstance(module, Removed | nn.Identity) for module in traced.modules())
    kinds = [name_of(node, dict(traced.named_modules())) for node in traced.graph.nodes]
    assert kinds.count("add") == sum(len(s.layers) > 2 for s in found) - len(removed)
    assert not any(pair == ("relu", "relu") for pair in itertools.pairwise(kinds))
    x = torch.randn(2, *shape)
    torch.testing.assert_close(outputs(traced, x), outputs(pruned, x))


def test_rounds_remove_one_block_after_another():
    net, shape = built_in("cifar_resnet20")
    for left in (1, 0):
        coupling = couple(net, shape)
        removed = [s for s in segments(net, coupling, shape) if s.removable and s.name.startswith("layer2")][:1]
        kept = some_units(coupling, left)
        pruned = cut(net, coupling, kept, removed)
        verify(net, pruned, coupling, kept, torch.randn(2, *shape), removed)
        net = pruned
    assert [s.name for s in segments(net, couple(net, shape), shape) if s.name.startswith("layer2")] == ["layer2.0"]


def test_only_a_block_with_an_identity_shortcut_can_be_removed():
    net, shape = built_in("cifar_resnet20")
    coupling = couple(net, shape)
    (block,) = [segment for segment in segments(net, coupling, shape) if segment.name == "layer2.0"]
    with pytest.raises(ModelError, match=r"'layer2\.0', which is not a residual block with an identity"):
        cut(net, coupling, {}, [block])


@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d", "cifar_resnet20", "cifar_resnet20_b"])
def test_a_pruned_model_is_saved_and_loaded(tmp_path, arch):
    net, shape = built_in(arch)
    model = Model(check(net, shape).eval(), arch, Preprocess(32), tuple("abcdefg"))
    save_model(model, tmp_path)
    x = model.example(2)
    assert torch.equal(load_model(tmp_path).net(x), model.net(x))


def test_a_layer_keeps_its_dtype_and_frozen_weights():
    net = raised(Plain(), (3, 16, 16))
    coupling = couple(net, (3, 16, 16))
    net.double()
    net.stem.weight.requires_grad_(False)
    pruned = cut(net, coupling, {"body.0.conv2": [1, 2]})
    assert pruned.stem.weight.shape == (2, 3, 3, 3)
    assert pruned.stem.weight.dtype == torch.float64
    assert not pruned.stem.weight.requires_grad
    assert pruned.stem.bias.requires_grad


def test_a_cut_net_trains():
    net, shape = built_in("cifar_resnet20")
    pruned = check(net, shape).train()
    pruned(torch.randn(4, *shape)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


@pytest.mark.parametrize("kept", [{"nowhere": [0]}, {"stem": []}, {"body.0.conv1": [99]}, {"body.0.conv1": []}])
def test_a_plan_of_another_net_is_refused(kept):
    net = raised(Plain(), (3, 16, 16))
    with pytest.raises(ModelError, match="the plan"):
        cut(net, couple(net, (3, 16, 16)), kept)


def test_verification_finds_a_wrong_cut():
    net = user_net("plain")
    coupling = couple(net, (3, 16, 16))
    kept = {"body.0.conv1": [0, 1, 2, 3]}
    pruned = cut(net, coupling, kept)
    x = torch.randn(2, 3, 16, 16)
    verify(net, pruned, coupling, kept, x)
    with torch.no_grad():
        pruned.get_submodule("body.0.conv2").weight[0, 0] += 1.0
    with pytest.raises(ModelError, match="differs from the masked"):
        verify(net, pruned, coupling, kept, x)


def test_a_number_of_channels_that_is_written_in_the_forward_does_not_fix_it():
    assert "body.2.conv2" in {
        slot.layer for group in couple(user_net("fixed view"), (3, 16, 16)) for slot in group.writers
    }


def test_a_network_without_some_blocks_can_be_trained():
    net = raised(build("resnet18", 10), (3, 32, 32))
    structure = Structure.of(net, (3, 32, 32))
    pruned = cut(net, structure.coupling, {}, structure.named(["layer1.0", "layer2.1"])).train()
    pruned(torch.randn(2, 3, 32, 32)).sum().backward()
    assert pruned.get_submodule("layer1.1.conv1").weight.grad.abs().sum() > 0
