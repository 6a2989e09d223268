import pytest
import torch
from user_nets import lively

from calibration.preprocess import Preprocess
from compress.config import load_config
from compress.errors import BudgetError, CheckpointError, ConfigError, DataError, PipelineError
from compress.files import tree_sha256
from compress.graph.plan import WidthPlan
from compress.models.cost import count
from compress.models.model import Model, load_model, save_model
from compress.models.registry import build
from compress.prune.stage import prune
from compress.run import Run

SIZE = Preprocess(size=32, resize=32)


def with_baseline(folder, classes=10):
    torch.manual_seed(0)
    model = Model(lively(build("cifar_resnet20", classes)), "cifar_resnet20", SIZE, tuple(map(str, range(classes))))
    run = Run(folder)
    run.stage("baseline", lambda out, scratch: save_model(model, out), settings={})
    return run


def config(*overrides):
    return load_config(None, ["model.arch=cifar_resnet20", "prune.images=40", "prune.multiple=4", *overrides])


@pytest.mark.parametrize(
    "how",
    [
        ["prune.importance=obs"],
        ["prune.importance=taylor"],
        ["prune.importance=norm", "prune.repair=false"],
        ["prune.importance=random", "prune.repair=false"],
    ],
)
def test_the_stage_writes_a_network_within_the_budget_and_its_plan(tmp_path, how):
    run = with_baseline(tmp_path)
    folder = prune(config(*how, "prune.macs=55%"), run)
    before, after = load_model(run.folder("baseline")), load_model(folder)
    plan = WidthPlan.read(folder / "plan.json")
    assert (count(before.net, SIZE.shape), count(after.net, SIZE.shape)) == (plan.before, plan.after)
    assert plan.after.macs <= 0.55 * plan.before.macs
    assert (after.classes, after.preprocess, after.arch) == (before.classes, before.preprocess, before.arch)


def test_asked_twice_it_does_nothing_and_elsewhere_it_makes_the_same_bytes(tmp_path):
    first = prune(config(), with_baseline(tmp_path / "a"))
    written = (first / "plan.json").stat().st_mtime_ns
    prune(config(), Run(tmp_path / "a"))
    assert (first / "plan.json").stat().st_mtime_ns == written
    assert tree_sha256(first) == tree_sha256(prune(config(), with_baseline(tmp_path / "b")))


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["prune.macs=0.1%"], BudgetError),
        (["prune.latency=50%"], ConfigError),
        (["prune.keep=['layer9.*']"], ConfigError),
        (["data.kind=imagefolder"], DataError),
    ],
)
def test_a_mistake_leaves_no_output(tmp_path, overrides, error):
    run = with_baseline(tmp_path)
    with pytest.raises(error):
        prune(config(*overrides), run)
    assert not run.folder("prune").exists()


def test_labels_that_the_network_does_not_have_are_refused(tmp_path):
    with pytest.raises(DataError):
        prune(config("prune.importance=taylor"), with_baseline(tmp_path, classes=7))


def test_it_needs_a_baseline_with_finite_weights(tmp_path):
    with pytest.raises(PipelineError, match="baseline"):
        prune(config(), Run(tmp_path / "none"))
    model = load_model(with_baseline(tmp_path / "good").folder("baseline"))
    torch.nn.init.constant_(model.net.conv1.weight, float("nan"))
    run = Run(tmp_path / "nan")
    run.stage("baseline", lambda out, scratch: save_model(model, out), settings={})
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in 1 tensors \(conv1\.weight\)"):
        prune(config(), run)


def test_repaired_weights_have_the_size_that_learning_rates_are_made_for(tmp_path):
    net = load_model(prune(config("prune.macs=50%"), with_baseline(tmp_path))).net
    convs = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
    for conv in convs:
        assert conv.weight.square().mean().sqrt() >= 0.999 * (2 / conv.weight[:, 0].numel()) ** 0.5


def test_a_ratio_is_kept_in_every_group(tmp_path):
    folder = prune(config("prune.ratio=50%"), with_baseline(tmp_path))
    plan = WidthPlan.read(folder / "plan.json")
    assert {group.after / group.before for group in plan.groups} == {0.5}


@pytest.mark.parametrize("images", [2, 20, 50])
def test_few_images_are_enough_to_run(tmp_path, images):
    folder = prune(config("prune.macs=70%", f"prune.images={images}"), with_baseline(tmp_path))
    plan = WidthPlan.read(folder / "plan.json")
    assert plan.after.macs <= 0.7 * plan.before.macs
    assert all(value.isfinite().all() for value in load_model(folder).net.state_dict().values())
