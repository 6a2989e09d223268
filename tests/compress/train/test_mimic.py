"""Without labels: a pruned or quantized network learns the features of the network before."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from user_nets import lively

from compress.config import load_config
from compress.data import open_data
from compress.errors import DataError
from compress.files import tree_sha256
from compress.frontend.raising import raised
from compress.graph.groups import couple
from compress.graph.head import features_of
from compress.models.model import load_model
from compress.models.registry import build
from compress.prune.importance.masks import masked
from compress.prune.stage import prune
from compress.prune.surgery import cut
from compress.quantize.fold import fold
from compress.quantize.graph import trace
from compress.quantize.stage import quantize
from compress.run import Run
from compress.train.distill import relative_error
from compress.train.mimic import Teacher, among, survivors, tapped
from compress.train.stage import baseline, finetune

QUICK = [
    *("model.arch=cifar_resnet20", "data.input_size=16", "train.epochs=3", "train.flip=false", "prune.images=64"),
    *("prune.macs=35%", "prune.multiple=2", "prune.min_width=2", "finetune.recipe=mimic", "finetune.flip=false"),
    *("finetune.epochs=3", "finetune.warmup=1", "quantize.calibration_images=64"),
]


def quick(*overrides):
    return load_config(None, [*QUICK, *overrides])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A run up to stage prune."""
    run = Run(tmp_path_factory.mktemp("run"))
    baseline(quick(), run)
    prune(quick(), run)
    return run.directory


@pytest.fixture
def run(pruned, tmp_path):
    shutil.copytree(pruned, tmp_path / "run", symlinks=True)
    return Run(tmp_path / "run")


def errors(folder):
    history = json.loads((folder / "history.json").read_text())
    return history["epochs"][0]["error"], history["epochs"][history["best"]]["error"]


def unlabelled(folder, split, count=120):
    """A flat folder of images."""
    folder.mkdir()
    for i in range(count):
        split.image(i).save(folder / f"{i}.png")
    return folder


def test_a_pruned_network_comes_nearer_to_the_unpruned_one_and_keeps_its_classifier(run):
    before = load_model(run.folder("prune"))
    folder = finetune(quick(), run)
    first, best = errors(folder)
    assert best < 0.95 * first
    after = load_model(folder)
    assert torch.equal(before.net.linear.weight, after.net.linear.weight)
    assert torch.equal(before.net.bn1.running_mean, after.net.bn1.running_mean)
    assert not torch.equal(before.net.conv1.weight, after.net.conv1.weight)
    assert all(parameter.requires_grad for parameter in after.net.parameters())


def test_images_need_no_labels(run, tmp_path):
    images = unlabelled(tmp_path / "images", open_data(quick().data, 0).train)
    flat = [f"data.train={images}", "data.kind=imagefolder", "data.resize=16", "data.crop=16"]
    folder = finetune(quick(*flat), run)
    first, best = errors(folder)
    assert best < first
    defaults = load_config(None, ["model.arch=cifar_resnet20", *flat, "finetune.epochs=1", "finetune.flip=false"])
    history = json.loads((finetune(defaults, Run(run.directory, force=True)) / "history.json").read_text())
    assert history["epochs"][1]["lr"] < 0.003  # the recipe, without being asked for it


def test_calibration_images_are_enough(run, tmp_path):
    images = unlabelled(tmp_path / "images", open_data(quick().data, 0).train)
    only = [f"data.calibration={images}", "data.kind=imagefolder", "data.resize=16", "data.crop=16"]
    folder = finetune(quick(*only), run)
    history = json.loads((folder / "history.json").read_text())
    assert history["best"] == 3  # nothing is held out of images that pruning has seen
    losses = [row["loss"] for row in history["epochs"][1:]]
    assert losses[-1] < losses[0]
    with pytest.raises(DataError, match="training needs images") as caught:
        finetune(quick(*only, "finetune.labels=true"), Run(run.directory, force=True))
    assert "labels=false" in caught.value.remedy


def test_the_same_seed_gives_the_same_bytes(run, tmp_path):
    shutil.copytree(run.directory, tmp_path / "other", symlinks=True)
    folders = [
        finetune(quick("finetune.epochs=1", "finetune.warmup=0"), Run(r)) for r in (run.directory, tmp_path / "other")
    ]
    assert tree_sha256(folders[0]) == tree_sha256(folders[1])


def test_rounds_recover_without_labels(tmp_path, pruned):
    run = Run(tmp_path)
    shutil.copytree(pruned / "baseline", tmp_path / "baseline")
    rounds = ["prune.rounds=2", "prune.round_epochs=3", "finetune.resized_crop=0", "finetune.crop=0"]
    prune(quick(*rounds), run)
    learned = load_model(tmp_path / "rounds" / "round1").net.state_dict()
    prune(quick("prune.rounds=2", "prune.round_epochs=0"), run)
    repaired = load_model(tmp_path / "rounds" / "round1").net.state_dict()
    assert torch.equal(learned["linear.weight"], repaired["linear.weight"])
    assert not torch.equal(learned["conv1.weight"], repaired["conv1.weight"])


def test_the_quantized_network_is_what_learns(run):
    finetune(quick("finetune.epochs=0"), run)
    qat = [
        "quantize.mode=qat",
        "qat.recipe=mimic",
        "qat.flip=false",
        "qat.epochs=3",
        "qat.resized_crop=0",
        "qat.crop=0",
    ]
    qat += ["quantize.method=percentile", "quantize.correction=none"]  # rounded badly, so that there is much to learn
    found = json.loads((quantize(quick(*qat), run) / "quantize.json").read_text())
    assert found["held_out_top1"]["qat_epoch"] > 0  # nearer to the float network on held-out images than calibration
    assert found["mode"] == "qat"


class EndsInNorm(nn.Module):
    """A classifier whose features are those of a batch norm, with no activation behind it."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


def test_features_of_a_norm_are_those_of_the_layer_that_it_is_folded_into():
    torch.manual_seed(0)
    net = raised(EndsInNorm().eval(), (3, 16, 16))
    at, folded = features_of(net, (3, 16, 16)), trace(fold(net))
    mine = among(net, {node.name for node in folded.graph.nodes}, at)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert relative_error(tapped(folded, mine)(x), tapped(net, at)(x)) < 1e-6


@pytest.fixture(scope="module", params=["cifar_resnet20", "resnet50"])
def whole(request):
    torch.manual_seed(0)
    return raised(lively(build(request.param, 10)), (3, 32, 32))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_the_features_that_survive_are_those_of_the_pruned_network(whole, seed):
    net, shape, generator = whole, (3, 32, 32), torch.Generator().manual_seed(seed)
    coupling = couple(net, shape)
    kept = {}
    for group in coupling:
        count = int(torch.randint(1, group.units + 1, (), generator=generator))
        kept[group.name] = sorted(torch.randperm(group.units, generator=generator)[:count].tolist())
    smaller = cut(net, coupling, kept)
    mine, theirs = features_of(smaller, shape), features_of(net, shape)
    x = torch.randn(2, *shape, generator=generator)
    with torch.no_grad(), masked(net, coupling, kept):
        wanted = Teacher(tapped(net, theirs), survivors(net, shape, theirs, kept))(x)
        found = tapped(smaller, mine)(x)
    assert found[0].shape == wanted[0].shape
    assert relative_error(found, wanted) < 1e-6
