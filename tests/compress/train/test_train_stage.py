"""The stages baseline and finetune: from a config to a run directory."""

import json

import pytest
import torch
from torch import nn

from compress.config import load_config
from compress.data import open_data, preprocess_of
from compress.errors import CheckpointError, ConfigError, DataError, ModelError, PipelineError
from compress.files import write_json
from compress.graph.plan import PLAN, WidthPlan
from compress.models.cost import Cost
from compress.models.model import load_model, save_model
from compress.models.registry import build
from compress.progress import Terminal
from compress.run import Run
from compress.train.evaluate import evaluate
from compress.train.stage import baseline, finetune

QUICK = [
    *("model.arch=cifar_resnet20", "data.input_size=16", "data.holdout=0.1", "train.flip=false"),
    *("train.device=cpu", "finetune.device=cpu", "finetune.flip=false"),
]


def quick(*overrides):
    return load_config(None, [*QUICK, *overrides])


def weights_file(path, arch="cifar_resnet20", classes=10):
    torch.manual_seed(3)
    net = build(arch, classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    torch.save(net.state_dict(), path)
    return net


def test_baseline_trains_and_asking_again_does_nothing(tmp_path):
    config = quick("train.epochs=1")
    folder = baseline(config, Run(tmp_path / "one"))
    model = load_model(folder)
    assert model.classes == tuple("0123456789")
    assert model.preprocess.size == 16
    history = json.loads((folder / "history.json").read_text())
    assert [row["epoch"] for row in history["epochs"]] == [0, 1]
    assert (
        evaluate(model.net, open_data(config.data, config.run.seed).holdout, model.preprocess).top1
        == history["epochs"][history["best"]]["top1"]
    )
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    baseline(config, Run(tmp_path / "one"))
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    again = baseline(config, Run(tmp_path / "two"))
    for name in ("model.safetensors", "model.json", "history.json"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_given_weights_pass_through_untrained(tmp_path):
    net = weights_file(tmp_path / "net.pth")
    folder = baseline(quick(f"model.weights={tmp_path / 'net.pth'}"), Run(tmp_path / "run"))
    loaded = load_model(folder).net.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in net.state_dict().items())
    assert json.loads((folder / "history.json").read_text()) == {"best": 0, "epochs": []}


def test_other_weights_are_another_baseline(tmp_path):
    config = quick(f"model.weights={tmp_path / 'net.pth'}")
    weights_file(tmp_path / "net.pth")
    first = (baseline(config, Run(tmp_path / "run")) / "stage.json").read_text()
    state = torch.load(tmp_path / "net.pth")
    torch.save({key: value * 2 for key, value in state.items()}, tmp_path / "net.pth")
    assert (
        json.loads((baseline(config, Run(tmp_path / "run")) / "stage.json").read_text())["key"]
        != json.loads(first)["key"]
    )


def test_a_class_count_that_disagrees_names_both_and_a_new_head_mends_it(tmp_path):
    weights_file(tmp_path / "net.pth", classes=7)
    weights = f"model.weights={tmp_path / 'net.pth'}"
    with pytest.raises(DataError, match="the network has 7 outputs, the train images have 10 classes") as error:
        baseline(quick(weights), Run(tmp_path / "run"))
    assert "model.new_head=true" in error.value.remedy
    assert not (tmp_path / "run" / "baseline").exists()
    folder = baseline(quick(weights, "model.new_head=true", "train.epochs=1"), Run(tmp_path / "run"))
    assert load_model(folder).net.linear.out_features == 10


def test_a_new_head_tells_the_classes_apart_before_any_training(tmp_path):
    weights_file(tmp_path / "net.pth", classes=7)
    config = quick(f"model.weights={tmp_path / 'net.pth'}", "model.new_head=true", "train.epochs=0")
    model = load_model(baseline(config, Run(tmp_path / "run")))
    found = evaluate(model.net, open_data(config.data, config.run.seed).eval, model.preprocess)
    assert found.top1 > 0.5  # 0.1 by chance; the network itself has learned nothing


class ByConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, 4), nn.Conv2d(8, 7, 1)

    def forward(self, x):
        return self.head(self.body(x).relu()).mean((2, 3))


def test_a_new_head_that_cannot_be_fitted_is_not_left_random_in_silence(tmp_path, capsys):
    config = quick(f"model.arch={__name__}:ByConvolution", "model.new_head=true", "train.epochs=0")
    baseline(config, Run(tmp_path / "run", progress=Terminal()))
    assert "the new classifier has random weights" in "".join(capsys.readouterr())


def test_folded_bn_statistics_are_made_real_without_changing_the_function(tmp_path):
    torch.manual_seed(0)
    net = build("cifar_resnet20", 10)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    folder = baseline(quick(f"model.weights={tmp_path / 'net.pth'}"), Run(tmp_path / "run"))
    model = load_model(folder)
    assert model.net.bn1.running_var.ne(1).any()
    x = model.example(4)
    with torch.no_grad():
        assert torch.allclose(model.net(x), net.eval()(x), rtol=1e-3, atol=1e-3)


def test_baseline_errors_leave_no_output(tmp_path):
    for overrides, kind, message in [
        (["model.weights=gone.pth"], CheckpointError, "no checkpoint"),
        (["model.arch=resnet19"], ModelError, "unknown architecture"),
        (["data.kind=imagefolder", "data.train=gone"], DataError, "no folder gone"),
        (["train.distill=0.5"], ConfigError, "needs a teacher"),
        (["data.mean=[0.5, 0.5]"], ConfigError, "data.mean has 2 values, the input has 3 channels"),
    ]:
        with pytest.raises(kind, match=message):
            baseline(quick(*overrides), Run(tmp_path / "run"))
        assert not (tmp_path / "run" / "baseline").exists()


def test_finetune_starts_from_the_pruned_net_with_the_baseline_as_teacher(tmp_path):
    config = quick("train.epochs=2", "finetune.epochs=1", "finetune.lr=0.01")
    run = Run(tmp_path)
    with pytest.raises(PipelineError, match="stage 'prune' has not run"):
        finetune(config, run)
    trained = baseline(config, run)

    def damage(out, _):
        model = load_model(trained)
        with torch.no_grad():
            model.net.get_submodule("layer3.2.conv1").weight[::2] = 0
        save_model(model, out)
        write_json(out / PLAN, WidthPlan((), Cost(1, 1), Cost(1, 1)).to_json())

    pruned = run.stage("prune", damage, settings={})
    folder = finetune(config, run)
    holdout, preprocess = open_data(config.data, config.run.seed).holdout, preprocess_of(config.data)
    before, after = (evaluate(load_model(f).net, holdout, preprocess).top1 for f in (pruned, folder))
    assert after >= before
    assert json.loads((folder / "history.json").read_text())["epochs"][0]["top1"] == before


def test_preprocess_follows_kind_and_overrides():
    assert preprocess_of(load_config(None).data).shape == (3, 64, 64)
    folder = preprocess_of(load_config(None, ["data.kind=imagefolder"]).data)
    assert (folder.size, folder.resize) == (224, 256)
    small = preprocess_of(load_config(None, ["data.kind=imagefolder", "data.input_size=160"]).data)
    assert (small.size, small.resize) == (160, 183)
    kept = preprocess_of(load_config(None, ["data.kind=imagefolder", "data.resize=224"]).data)
    assert (kept.size, kept.resize) == (224, 224)
    assert preprocess_of(load_config(None, ["data.input_size=32"]).data).resize == 32
    grey = preprocess_of(load_config(None, ["data.kind=imagefolder", "data.channels=1"]).data)
    assert (grey.mean, grey.std) == ((0.449,), (0.226,))
    with pytest.raises(ConfigError, match="smaller than the network's input"):
        preprocess_of(load_config(None, ["data.resize=32"]).data)
    with pytest.raises(ConfigError, match="must be above"):
        preprocess_of(load_config(None, ["data.std=[0.1, 0.0, 0.1]"]).data)
