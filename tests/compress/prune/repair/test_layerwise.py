"""Repair in closed form: the parts against first principles, the whole on small networks."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from user_nets import Backbone, Heads, OptionA, Plain

from compress.errors import ModelError
from compress.graph.linear_bn import linear_bns, read, write
from compress.graph.structure import Structure
from compress.graph.tracing import trace
from compress.models.registry import build
from compress.prune.importance.masks import masked
from compress.prune.importance.obs import Reader, remove
from compress.prune.losses.curves import Images, Sensitivity
from compress.prune.repair.layerwise import repair
from compress.prune.repair.statistics import Moments, best_ridge, inputs_at, solve
from compress.prune.surgery import cut

SHAPE = (3, 32, 32)


def natural(net, seed=0):
    """The network with real statistics in its norms, as after training."""
    torch.manual_seed(seed)
    net.train()
    with torch.no_grad():
        for _ in range(10):
            net(images(16, seed))
    return net.eval()


def images(count, seed=0):
    """Smooth random images: neighbouring pixels go together, as they do in photographs."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.randn(count, 3, 8, 8, generator=generator), size=32, mode="bilinear")


def structure_of(net):
    return Structure.of(net, SHAPE)


def error(net, reference, x):
    with torch.no_grad():
        return float((net(x) - reference(x)).square().mean() / reference(x).square().mean())


@pytest.mark.parametrize("net", [lambda: build("cifar_resnet20"), Plain, Heads, Backbone, lambda: OptionA("cat")])
def test_walking_step_by_step_is_the_forward_pass(net):
    net = natural(net())
    structure = structure_of(net)
    executor = structure.executor()
    assert [name for names in executor.segments for name in names] == [s.name for s in structure.segments]
    x = images(2)
    values = executor.start([x])[0]
    with torch.no_grad():
        expected = net(x)
    for step in range(len(executor)):
        torch.testing.assert_close(executor.finish(step, net, values), expected)
        values = executor.run(step, net, values)


@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2))
@settings(max_examples=20, deadline=None)
def test_sampled_inputs_are_those_that_unfolding_gives(kernel, stride, padding, dilation):
    conv = nn.Conv2d(3, 4, kernel, stride, padding, dilation)
    x = torch.randn(2, 3, 9, 8)
    y = conv(x)
    unfolded = F.unfold(x, kernel, dilation, padding, stride).transpose(1, 2)  # (N, positions, C * kernel)
    spots = torch.randint(y[0, 0].numel(), (2, 5))
    rows = torch.stack([unfolded[n, spots[n]] for n in range(2)]).flatten(0, 1)
    torch.testing.assert_close(inputs_at(conv, x, spots, y.shape[-1]), rows)


def test_moments_are_those_of_all_batches_together():
    x, y = torch.randn(4, 50, 4) + 5, torch.randn(4, 50, 2) - 3
    parts = [Moments(), Moments()]
    for batch in range(4):
        parts[batch % 2].add(x[batch], y[batch])
    seen = parts[0].statistics() + parts[1].statistics()
    x, y = x.flatten(0, 1).double(), y.flatten(0, 1).double()
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    close(seen.mean, x.mean(0))
    close(seen.target_mean, y.mean(0))
    close(seen.covariance, torch.cov(x.T, correction=0))
    close(seen.cross, (x - x.mean(0)).T @ (y - y.mean(0)) / len(x))


@pytest.mark.parametrize(("rows", "strong"), [(20, True), (20_000, False)])
def test_few_rows_stay_near_the_old_weights_and_many_may_leave_them(rows, strong):
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(30, 4, generator=generator).double()
    right = old + 0.3 * torch.randn(30, 4, generator=generator)
    halves = []
    for _ in range(2):
        moments = Moments()
        x = torch.randn(rows, 30, generator=generator)
        moments.add(x, x @ right.float() + torch.randn(rows, 4, generator=generator))
        halves.append(moments.statistics())
    ridge = best_ridge(*halves, old)
    assert ridge >= 0.1 if strong else ridge <= 0.01
    distance = (solve(halves[0] + halves[1], old, ridge) - right).norm()
    assert distance < (old - right).norm()


@given(st.integers(0, 1000), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_the_surgeon_removes_what_costs_least_when_the_rest_is_solved_anew(seed, size):
    generator = torch.Generator().manual_seed(seed)
    units, outputs = 4, 3
    inputs = units * size
    x = torch.randn(200, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    covariance = torch.cov(x.double().T, correction=0)
    assume(torch.linalg.cond(covariance) < 1e4)  # without a ridge, float32 tells no more
    weights = torch.randn(inputs, outputs, generator=generator).double()
    importance = torch.rand(outputs, generator=generator).double() + 0.1
    rows = torch.arange(inputs).view(units, size)

    def left(unit):
        """What is lost when one unit goes and the others are solved anew by least squares."""
        stay = torch.tensor([row for other in range(units) if other != unit for row in rows[other].tolist()])
        new = torch.linalg.solve(covariance[stay][:, stay], covariance[stay] @ weights)
        full = torch.zeros_like(weights)
        full[stay] = new
        change = full - weights
        return float((change * (covariance @ change)).sum(0) @ importance), full

    path = remove([Reader(weights, covariance, importance, rows)], units, [units - 1], ridge=0.0)
    costs = [left(unit)[0] for unit in range(units)]
    assert costs[path.order[-1]] <= min(costs) * 1.01
    torch.testing.assert_close(path.weights[units - 1][0].double(), left(path.order[-1])[1], rtol=1e-2, atol=1e-2)


def test_several_readers_weigh_a_unit_together_and_inputs_of_no_unit_make_up_for_it_too():
    covariance = torch.eye(3, dtype=torch.float64)
    covariance[0, 2] = covariance[2, 0] = 0.999  # input 2, of no unit, says what input 0 says
    weights = torch.tensor([[1.0], [0.5], [0.0]], dtype=torch.float64)
    reader = Reader(weights, covariance, torch.ones(1), torch.tensor([[0], [1]]))
    assert remove([reader], 2, [1]).order == (1, 0)
    other = Reader(torch.tensor([[3.0], [0.1]]), torch.eye(2), torch.ones(1), torch.tensor([[0], [1]]))
    assert remove([reader, other], 2, [1]).order == (0, 1)


@pytest.mark.parametrize("norm", [True, False])
def test_an_affine_map_is_read_and_written(norm):
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=not norm), nn.BatchNorm2d(5) if norm else nn.Identity(), nn.ReLU()
    ).eval()
    if norm:
        nn.init.uniform_(net[1].weight, 0.5, 2.0)
        net[1].running_mean.uniform_()
    (place,) = linear_bns(trace(net, SHAPE))
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        before = net(x)
        a, b = read(net, place)
        write(net, place, a, b, mean=torch.randn(5), variance=torch.rand(5) + 0.5)
        torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)
        linear = net[:2](x)
        write(net, place, a, b + 1, mean=torch.zeros(5), variance=torch.ones(5))
        torch.testing.assert_close(net[:2](x), linear + 1, rtol=1e-4, atol=1e-4)


def test_a_repaired_norm_has_the_statistics_of_what_it_reads():
    net = natural(build("cifar_resnet20"))
    structure = structure_of(net)
    coupling = structure.coupling
    x = images(32)
    kept = {"layer1.0.conv1": range(8)}
    new = cut(repair(net, structure, kept, [], x.split(4)), coupling, kept)
    seen = {}
    new.layer1[0].conv2.register_forward_hook(lambda module, args, output: seen.update(y=output))
    with torch.no_grad():
        new(x)
    torch.testing.assert_close(new.layer1[0].bn2.running_mean, seen["y"].mean((0, 2, 3)), rtol=0.1, atol=0.05)
    torch.testing.assert_close(new.layer1[0].bn2.running_var, seen["y"].var((0, 2, 3)), rtol=0.2, atol=0.05)


def test_nothing_removed_is_nothing_changed():
    net = natural(build("cifar_resnet20"))
    x = images(8)
    assert error(repair(net, structure_of(net), {}, [], x.split(4)), net, x) < 1e-9


@pytest.mark.parametrize("arch", ["cifar_resnet20", "cifar_resnet20_b"])
def test_repair_makes_up_for_most_of_a_cut(arch):
    net = natural(build(arch))
    structure = structure_of(net)
    coupling = structure.coupling
    kept = {
        group.name: range(0, group.units, 2) if group.kind == "inner" else range(group.units * 3 // 4)
        for group in coupling
    }
    fitted, fresh = [images(32, seed) for seed in range(4)], images(32, 99)
    repaired = cut(repair(net, structure, kept, [], fitted), coupling, kept)
    assert error(repaired, net, fresh) < 0.5 * error(cut(net, coupling, kept), net, fresh)


def test_the_block_before_makes_up_for_a_removed_one():
    net = natural(build("cifar_resnet20"))
    structure = structure_of(net)
    coupling = structure.coupling
    removed = [segment for segment in structure.segments if segment.name == "layer1.1"]
    fitted, fresh = [images(32, seed) for seed in range(4)], images(32, 99)
    new = repair(net, structure, {}, ["layer1.1"], fitted)
    plain, repaired = (cut(each, coupling, {}, removed) for each in (net, new))
    assert error(repaired, net, fresh) < 0.7 * error(plain, net, fresh)


def test_grouped_and_shared_layers_are_left_alone():
    net = natural(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    )
    assert [place.layer for place in linear_bns(trace(net, SHAPE))] == ["0", "4"]


def sensitivity_of(net, **options):
    sample = [images(25, seed) for seed in range(5)]
    return Sensitivity(net, structure_of(net), Images(sample[:4], sample[4:]), **options)


def test_a_narrower_group_loses_more_and_a_whole_one_nothing():
    net = natural(build("cifar_resnet20"))
    widths = {"layer1.2.conv2": [4, 8, 12], "layer2.0.conv1": [8, 16, 24]}
    curves = dict(sensitivity_of(net).curves(widths))
    assert curves.keys() == widths.keys()
    for name, curve in curves.items():
        assert curve.units[:-1] == tuple(widths[name])
        assert list(curve.loss) == sorted(curve.loss, reverse=True)
        assert curve.loss[0] > curve.loss[-1] == 0.0
        assert sorted(curve.order) == list(range(curve.units[-1]))
        assert curve.kept(3) == tuple(sorted(curve.order[:3]))


def test_the_surgeons_order_loses_less_than_the_opposite_one():
    net = natural(build("cifar_resnet20"))
    widths = {"layer2.1.conv1": [16]}
    ((name, chosen),) = sensitivity_of(net).curves(widths)
    opposite = {name: torch.tensor(chosen.order).argsort().numpy().astype(float)}
    ((_, worst),) = sensitivity_of(net, scores=opposite).curves(widths)
    assert worst.order == chosen.order[::-1]
    assert chosen.loss[0] < worst.loss[0]


def test_every_removable_block_has_a_loss_of_removal():
    net = natural(build("cifar_resnet20"))
    found = sensitivity_of(net).removals()
    assert set(found) == {s.name for s in structure_of(net).segments if s.removable}
    assert all(loss > 0 for loss in found.values())


def test_outputs_that_are_no_logits_are_held_against_one_another_by_their_squares():
    net = natural(Heads())
    ((_, curve),) = sensitivity_of(net).curves({"body.1.conv1": [8]})
    assert 0 < curve.loss[0] < float("inf")


def test_a_layer_without_bias_or_norm_is_solved_without_a_constant():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ).eval()
    structure = structure_of(net)
    fitted, fresh = [images(16, seed) for seed in range(4)], images(16, 99)
    kept = {"0": range(4)}
    repaired = cut(repair(net, structure, kept, [], fitted), structure.coupling, kept)
    assert repaired[2].bias is None
    assert error(repaired, net, fresh) < error(cut(net, structure.coupling, kept), net, fresh)
    curves = dict(Sensitivity(net, structure, Images(fitted[:3], fitted[3:])).curves({"0": [4], "2": [4]}))
    assert curves["0"].loss[0] > 0


def test_a_width_costs_what_it_costs_at_shortcuts_without_weights_too():
    net = natural(build("cifar_resnet20"))
    structure = structure_of(net)
    sample = [images(25, seed) for seed in range(5)]
    ((name, curve),) = Sensitivity(net, structure, Images(sample[:4], sample[4:])).curves({"layer1.2.conv2": [8]})
    new = repair(net, structure, {name: curve.kept(8)}, [], sample[:4])
    with torch.no_grad(), masked(new, structure.coupling, {name: curve.kept(8)}):
        p, q = net(sample[4]).log_softmax(1), new(sample[4]).log_softmax(1)
    true = float(F.kl_div(q, p, reduction="batchmean", log_target=True))
    assert 0.3 * true < curve.loss[0] < 3 * true


@pytest.mark.parametrize("outputs", [1, 3])
def test_an_output_that_is_no_row_of_logits_is_not_taken_for_one(outputs):
    net = natural(nn.Sequential(nn.Conv2d(3, 8, 3, 3), nn.ReLU(), nn.Conv2d(8, outputs, 10), nn.Flatten()))
    sample = [images(8, seed) for seed in range(4)]
    sensitivity = Sensitivity(net, structure_of(net), Images(sample[:3], sample[3:]), classifier=False)
    ((_, curve),) = sensitivity.curves({"0": [2]})
    assert curve.loss[0] > 1e-3


def test_inputs_too_large_to_solve_for_are_an_error_that_names_the_layer():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        net[0].weight.mul_(1e22)
    with pytest.raises(ModelError, match="inputs of '2' are too large"):
        list(sensitivity_of(net).curves({"0": [2, 4]}))
    with pytest.raises(ModelError, match="inputs of '2' are too large"):
        repair(net, structure_of(net), {"0": range(4)}, [], [images(25)])


class Pyramid(nn.Module):
    """Maps of three sizes into an FPN, whose levels overlap in the order of execution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.fpn = FeaturePyramidNetwork([8, 16, 24], 8)

    def forward(self, x):
        low = self.stem(x)
        middle = self.second(low)
        return self.fpn({"0": low, "1": middle, "2": self.third(middle)})


def test_a_layer_far_from_the_addition_behind_it_is_solved():
    net = natural(Pyramid())
    structure = structure_of(net)
    kept = {group.name: range(0, group.units, 2) for group in structure.coupling}
    repair(net, structure, kept, (), [images(16, seed) for seed in range(4)])
