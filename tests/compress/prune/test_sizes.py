"""Input sizes that pruning chooses from."""

import json

import pytest
import torch
from torch import nn
from user_nets import lively

from calibration.preprocess import Preprocess
from compress.config import load_config
from compress.data import RunImages
from compress.errors import BudgetError, ConfigError, DataError, ModelError
from compress.files import tree_sha256
from compress.graph.plan import WidthPlan
from compress.models.cost import count
from compress.models.model import Model, load_model, save_model
from compress.models.registry import build
from compress.progress import SILENT, Terminal
from compress.prune.losses.store import in_batches
from compress.prune.sizes import Above, Judge, with_statistics
from compress.prune.stage import prune
from compress.run import Run
from compress.train.stage import finetune

OWN = Preprocess(size=32, resize=36)
DIGITS = RunImages(load_config(None, []).data, 0).data.calibration


def with_baseline(folder, classes=10):
    torch.manual_seed(0)
    net = lively(build("cifar_resnet20", 10))
    with torch.no_grad():  # logits that differ between images
        logits = net(torch.cat(in_batches(DIGITS.subset(range(64), "digits"), OWN)))
        net.linear.weight *= 3 / logits.std(0, keepdim=True).T
        net.linear.bias.sub_(logits.mean(0)).mul_(3 / logits.std(0))
    run = Run(folder)
    model = Model(net, "cifar_resnet20", OWN, tuple(map(str, range(classes))))
    run.stage("baseline", lambda out, scratch: save_model(model, out), settings={})
    return run


def config(*overrides):
    settings = ["model.arch=cifar_resnet20", "prune.images=40", "prune.multiple=4", "data.input_size=32"]
    return load_config(None, [*settings, *overrides])


def sizes_of(folder):
    return json.loads((folder / "sizes.json").read_text())


def test_the_size_of_least_loss_is_taken(tmp_path):
    run = with_baseline(tmp_path)
    folder = prune(config("prune.macs=50%", "prune.sizes=[32, 24]"), run)
    record, model, plan = sizes_of(folder), load_model(folder), WidthPlan.read(folder / "plan.json")
    tried = {one["size"]: one for one in record["tried"]}
    assert list(tried) == [32, 24]
    judge = Judge(load_model(run.folder("baseline")), RunImages(config().data, 0).sample(40, SILENT))
    network = load_model(tmp_path / "candidates" / "32px" / "prune")
    seen = judge.losses(network.net, network.preprocess).mean()
    assert seen < 0.99 * tried[32]["loss"]  # on images that its weights were solved on it looks better
    assert 0 < tried[32]["unpruned"] < tried[24]["unpruned"]
    assert record["taken"] == min(tried, key=lambda size: tried[size]["loss"])
    best, other = sorted(tried.values(), key=lambda one: one["loss"])
    assert best["above"] is None
    assert other["above"]["value"] == pytest.approx(other["loss"] - best["loss"], abs=1e-6)
    assert model.preprocess.sides == (record["taken"],) * 2
    dense = count(load_model(run.folder("baseline")).net, OWN.shape)
    assert plan.before == dense  # what the user has, not the network at the other size
    assert plan.after == count(model.net, model.preprocess.shape)
    for size in (32, 24):  # both met the budget of the network at its own size
        at = load_model(tmp_path / "candidates" / f"{size}px" / "prune")
        assert count(at.net, at.preprocess.shape).macs <= 0.5 * dense.macs


def test_a_difference_is_clear_where_all_images_agree_on_it():
    taken = torch.tensor([0.1, 0.2, 0.3, 0.4])
    apart = Above.of(taken + torch.tensor([0.10, 0.11, 0.10, 0.09]), taken)
    assert apart.clear
    assert apart.value == pytest.approx(0.1)
    assert apart.hi - apart.value == pytest.approx(1.96 * 0.01 * (2 / 3 / 4) ** 0.5, rel=1e-3)  # paired
    assert not Above.of(taken + torch.tensor([0.9, -0.3, 0.1, -0.2]), taken).clear


def test_sizes_that_the_images_do_not_tell_apart_are_named(tmp_path, capsys):
    run = Run(with_baseline(tmp_path).directory, progress=Terminal())
    asked = config("prune.macs=50%", "prune.sizes=[31, 30]", "prune.images=8")
    tried = sizes_of(prune(asked, run))["tried"]
    unclear = [one["size"] for one in tried if one["above"] and one["above"]["lo"] <= 0]
    said = capsys.readouterr().err
    assert unclear
    assert f"the images do not tell {' and '.join(map(str, unclear))} pixels from" in said


def test_a_smaller_input_keeps_the_share_of_the_crop_and_all_channels_where_it_is_small_enough(tmp_path):
    run = with_baseline(tmp_path)
    folder = prune(config("prune.macs=50%", "prune.sizes=16"), run)
    model = load_model(folder)
    assert (model.preprocess.size, model.preprocess.resize) == (16, 18)
    assert WidthPlan.read(folder / "plan.json").removed == ()
    assert model.net.linear.in_features == 64
    again = finetune(config("finetune.recipe=mimic", "finetune.epochs=1", "finetune.steps_per_epoch=2"), run)
    assert load_model(again).preprocess == model.preprocess
    parents = json.loads((again / "stage.json").read_text())["parents"]
    assert str(tmp_path / "sizes" / "16px" / "baseline") in parents  # the teacher has the same input


def test_asked_twice_it_does_nothing_and_elsewhere_it_makes_the_same_bytes(tmp_path):
    asked = config("prune.macs=50%", "prune.sizes=[24, 16]")
    first = prune(asked, with_baseline(tmp_path / "a"))
    written = (first / "sizes.json").stat().st_mtime_ns
    prune(asked, Run(tmp_path / "a"))
    assert (first / "sizes.json").stat().st_mtime_ns == written
    assert tree_sha256(first) == tree_sha256(prune(asked, with_baseline(tmp_path / "b")))


def test_a_size_at_which_no_plan_meets_the_budget_is_passed_over(tmp_path):
    run = with_baseline(tmp_path)
    folder = prune(config("prune.macs=10%", "prune.sizes=[32, 8]", "prune.min_width=16", "prune.depth=false"), run)
    record = sizes_of(folder)
    assert (record["taken"], record["tried"][0]["loss"]) == (8, None)
    with pytest.raises(BudgetError, match=r"no input size of prune\.sizes meets the budget"):
        prune(config("prune.macs=0.01%", "prune.sizes=[32, 16]"), run)


def test_without_a_table_for_a_size_nothing_is_pruned(tmp_path):
    with pytest.raises(ConfigError, match="latency_table"):
        prune(config("prune.latency=50%", "prune.sizes=[32, 16]"), with_baseline(tmp_path))
    assert not (tmp_path / "candidates").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune.ratio=50%", "prune.sizes=[32]"], "a ratio is met at every size"),
        (["prune.sizes=[32, 32]"], "names a size twice"),
        (["prune.sizes=[32]", "prune.table=t.json"], "leave prune.table unset"),
        (["prune.sizes=[4]"], "greater than or equal to 8"),
    ],
)
def test_settings_that_contradict_one_another(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config(*overrides)


def test_a_backbone_has_no_logits_to_compare(tmp_path):
    with pytest.raises(ConfigError, match=r"prune\.sizes needs a classifier"):
        prune(config("prune.sizes=[24]"), with_baseline(tmp_path, classes=0))


def test_networks_trained_between_rounds_are_judged_on_held_out_images(tmp_path):
    trained = "prune.sizes=[32, 24]", "prune.rounds=2", "data.holdout=0"
    with pytest.raises(DataError, match="fine-tuned between rounds on held-out images, and there are none"):
        prune(config(*trained), with_baseline(tmp_path))
    assert not (tmp_path / "sizes").exists()
    run = Run(tmp_path)
    quick = "prune.macs=50%", "finetune.steps_per_epoch=2"
    asked = config("prune.sizes=[24, 16]", "prune.rounds=2", "data.holdout=0.02", *quick)
    record = sizes_of(prune(asked, run))
    held_out = RunImages(asked.data, 0).data.holdout
    assert len(held_out) < 40  # so that all of them judge
    judge = Judge(load_model(run.folder("baseline")), held_out)
    for tried in record["tried"]:
        network = load_model(tmp_path / "candidates" / f"{tried['size']}px" / "prune")
        assert judge.losses(network.net, network.preprocess).mean() == pytest.approx(tried["loss"], rel=1e-3)


class OneSize(nn.Module):
    """A classifier that reads every pixel of its maps."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16 * 16 * 16, classes)

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))


def test_a_network_of_one_size_is_told_apart(tmp_path):
    run = Run(tmp_path)
    model = Model(OneSize().eval(), "test_sizes:OneSize", OWN, tuple("0123456789"))
    run.stage("baseline", lambda out, scratch: save_model(model, out), settings={})
    with pytest.raises(ModelError, match=r"does not run on an input of \(3, 24, 24\)"):
        prune(config("model.arch=test_sizes:OneSize", "prune.sizes=[32, 24]"), run)


def test_images_that_weights_were_solved_on_do_not_judge(tmp_path):
    """A network that knows by heart what it was made from answers for no image that judges it."""
    images = DIGITS.subset(range(40), "digits")
    model = load_model(with_baseline(tmp_path).folder("baseline"))
    judge = Judge(model, images)
    seen = []

    def by_heart(batches):
        seen.append({image.sum().item() for batch in batches for image in batch})
        return Known(model.net, batches)

    losses = judge.cross_validated(by_heart, model.preprocess)
    everything = set().union(*seen)
    assert (len(losses), len(seen), len(everything)) == (40, 3, 40)
    assert sum(len(everything - one) for one in seen) == 40  # each image is left out once
    assert torch.allclose(losses, torch.full((40,), torch.tensor(10.0).log().item(), dtype=torch.float64))


class Known(nn.Module):
    """Answers as a network does for images that it was made from, and knows nothing of others."""

    def __init__(self, net, batches):
        super().__init__()
        self.net, self.known = net, {image.sum().item() for batch in batches for image in batch}

    def forward(self, x):
        known = torch.tensor([image.sum().item() in self.known for image in x])
        return torch.where(known[:, None], self.net(x), 0.0)


def test_the_loss_is_the_cross_entropy_with_the_classes_that_the_unpruned_network_finds(tmp_path):
    model = load_model(with_baseline(tmp_path).folder("baseline"))
    images = DIGITS.subset(range(20), "digits")
    batch = torch.cat(in_batches(images, model.preprocess))
    with torch.no_grad():
        logits = model.net(batch)
    expected = nn.functional.cross_entropy(logits.double(), logits.argmax(1), reduction="none")
    assert torch.allclose(Judge(model, images).losses(model.net, model.preprocess), expected, atol=1e-5)


def test_a_network_that_learned_nothing_from_the_images_need_not_be_cross_validated(tmp_path):
    model = load_model(with_baseline(tmp_path).folder("baseline"))
    judge = Judge(model, DIGITS.subset(range(20), "digits"))
    alike = judge.cross_validated(lambda _: model.net, model.preprocess)
    assert torch.equal(judge.losses(model.net, model.preprocess), alike)


def test_outputs_that_are_not_finite_judge_nothing(tmp_path):
    model = load_model(with_baseline(tmp_path).folder("baseline"))
    judge = Judge(model, DIGITS.subset(range(8), "digits"))
    with torch.no_grad():
        model.net.linear.bias[0] = float("nan")
    with pytest.raises(ModelError, match="outputs are not finite at 32 pixels"):
        judge.losses(model.net, model.preprocess)


def test_a_single_image_has_no_variance():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    assert with_statistics(net, [torch.randn(1, 3, 3, 3)])[1].running_mean.eq(0).all()
    few = [torch.randn(1, 3, 3, 3) for _ in range(5)]
    maps = torch.stack([net[0](batch).mean((0, 2, 3)) for batch in torch.cat(few).tensor_split(2)])
    assert torch.allclose(with_statistics(net, few)[1].running_mean, maps.mean(0), atol=1e-6)


def test_statistics_are_the_average_over_the_batches():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    images = [torch.randn(8, 3, 6, 6) + 1 for _ in range(3)]
    norm = with_statistics(net, images)[1]
    maps = torch.stack([net[0](batch).mean((0, 2, 3)) for batch in images])
    assert torch.allclose(norm.running_mean, maps.mean(0), atol=1e-6)
    assert net[1].running_mean.eq(0).all()
    assert norm.momentum == 0.1
    assert not norm.training
