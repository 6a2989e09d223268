"""The two stages on real digits: a small net that has learned a little is calibrated, trained on, and exported."""

import json
from pathlib import Path

import onnx
import pytest
import torch

from calibration.digits import MEAN, STD
from calibration.preprocess import Preprocess
from compress.config import Config, load_config
from compress.data import open_data
from compress.engines.metadata import Metadata
from compress.engines.stage import build as build_stage
from compress.errors import ConfigError, DataError, PipelineError
from compress.export.stage import export
from compress.models.model import Model, load_model, save_model
from compress.models.registry import build
from compress.quantize.quantizer import Quantizers
from compress.quantize.stage import quantize, sensitivity
from compress.run import Run
from compress.train.loop import fit

SIZE, ARCH = 16, "tiny_net:tiny"


def config_of(*overrides: str) -> Config:
    common = (f"model.arch={ARCH}", f"data.input_size={SIZE}", "quantize.calibration_images=40", "qat.epochs=1")
    return load_config(None, [*common, "qat.flip=false", *overrides])


@pytest.fixture(scope="module")
def trained_model() -> Model:
    torch.manual_seed(0)
    config = config_of("train.flip=false")
    data, preprocess = open_data(config.data, config.run.seed), Preprocess(SIZE, 16, MEAN, STD)
    net = build(config.model.arch, 10)
    fit(net, data.train, data.holdout, preprocess, config.train, epochs=2)
    return Model(net, config.model.arch, preprocess, data.train.classes)


@pytest.fixture
def run(trained_model: Model, tmp_path: Path) -> Run:
    run = Run(tmp_path)
    for stage in ("baseline", "finetune"):
        run.stage(stage, lambda out, _: save_model(trained_model, out), settings={})
    return run


def test_ptq_then_export(run: Run) -> None:
    config = config_of()
    folder = quantize(config, run)
    record = json.loads((folder / "quantize.json").read_text())
    assert (record["mode"], record["source"], record["calibration"]["images"]) == ("ptq", "finetune", 40)
    assert record["held_out_top1"]["ptq"] > record["held_out_top1"]["fp32"] - 0.05
    load_model(folder, ARCH)
    assert Quantizers.load(folder / "quantizers.json").target == "ort-x86"

    out = export(config, run)
    report = json.loads((out / "export.json").read_text())
    assert set(report) == {"tiny_fp32.onnx", "tiny_int8.onnx", "tiny_dense_fp32.onnx"}
    assert report["tiny_int8.onnx"]["parity"]["torch"]["agreement"] > 0.95
    assert report["tiny_int8.onnx"]["parity"]["its own integers"]["agreement"] > 0.95  # test_integer.py asks for all
    assert report["tiny_fp32.onnx"]["parity"]["torch"]["error"] < 1e-5
    props = {p.key: p.value for p in onnx.load(out / "tiny_int8.onnx").metadata_props}
    said = Metadata.from_props(props)
    assert (said.precision, said.target, said.preprocess.size, len(said.classes)) == ("int8", "ort-x86", SIZE, 10)
    assert said.params == sum(p.numel() for p in load_model(run.folder("finetune"), ARCH).net.parameters())


def test_qat_goes_on_from_ptq_and_is_never_worse_on_held_out_images(run: Run) -> None:
    config = config_of("quantize.mode=qat")
    folder = quantize(config, run)
    held_out = json.loads((folder / "quantize.json").read_text())["held_out_top1"]
    assert held_out["qat"] >= held_out["ptq"]
    export(config, run)


def test_the_same_seed_writes_the_same_bytes_and_another_draws_other_images(run: Run) -> None:
    names = ("quantizers.json", "model.safetensors", "quantize.json")
    first = [(quantize(config_of(), run) / name).read_bytes() for name in names]
    again = Run(run.directory, force=True)
    assert [(quantize(config_of(), again) / name).read_bytes() for name in names] == first
    other = json.loads((quantize(config_of("run.seed=1"), run) / "quantize.json").read_text())
    assert other["calibration"]["sha256"] not in first[2].decode()


def test_the_unpruned_net_can_be_quantized_when_asked_for(run: Run) -> None:
    quantize(config_of(), run, source="baseline")
    with pytest.raises(ConfigError, match="quantized from 'baseline'"):
        export(config_of(), run)
    export(config_of(), run, source="baseline")


def test_a_stage_that_has_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="'finetune' has not run"):
        quantize(config_of(), Run(tmp_path))


def test_fewer_calibration_images_than_asked_for_are_all_used(run: Run) -> None:
    folder = quantize(config_of("quantize.calibration_images=99999"), run)
    images = json.loads((folder / "quantize.json").read_text())["calibration"]["images"]
    train = open_data(config_of().data, config_of().run.seed).train
    assert train is not None
    assert images == len(train)


def test_a_calibration_is_made_once_for_the_same_images_and_method(run: Run) -> None:
    def made() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in run.folder("calibrations").glob("*/model.json")}

    quantize(config_of(), run)
    first = made()
    quantize(config_of("quantize.method=percentile"), run)
    assert len(made()) == 2
    quantize(config_of("quantize.mode=qat"), run)
    quantize(config_of("target.name=openvino"), run)
    assert len(made()) == 3
    quantize(config_of(), run)
    assert first.items() <= made().items()


def test_layers_are_left_in_float_until_the_accuracy_is_kept(run: Run) -> None:
    config = config_of("quantize.max_drop=1", "quantize.method=minmax", "quantize.correction=none")
    model = load_model(run.folder("finetune"), ARCH)
    with torch.no_grad():  # huge weights on a channel that is always 0: float does not mind, their scale ruins the rest
        model.net.get_parameter("bn1.weight")[0] = 0
        model.net.get_parameter("bn1.bias")[0] = -1
        model.net.get_parameter("conv2.weight")[:, 0] = 1000
    run = Run(run.directory, force=True)
    for stage in ("baseline", "finetune"):
        run.stage(stage, lambda out, _: save_model(model, out), settings={})
    record = json.loads((quantize(config, run) / "quantize.json").read_text())
    assert record["float_layers"][0] == "conv2"
    top1 = record["held_out_top1"]
    assert top1["mixed"] >= top1["fp32"] - 0.01 > top1["ptq"]  # what is left is rounded between the layers
    assert export(config, run).joinpath("tiny_int8_all.onnx").exists()
    engine = build_stage(config, run) / "tiny_int8.onnx"
    counts = json.loads(engine.with_name("tiny_int8.onnx.json").read_text())["operators"]
    floats = [layer for layer in record["float_layers"] if layer.startswith("conv")]
    assert sum(counts.get(name, 0) for name in ("Conv", "FusedConv", "NhwcFusedConv")) == len(floats)


def test_max_drop_needs_held_out_images(run: Run) -> None:
    with pytest.raises(DataError, match="held out"):
        quantize(config_of("quantize.max_drop=1", "data.holdout=0"), run)
    with pytest.raises(ConfigError, match="max_drop needs mode"):
        config_of("quantize.max_drop=1", "quantize.mode=qat")


def test_sensitivity_tells_every_layer(run: Run) -> None:
    config = config_of("quantize.sensitivity_images=8")
    with pytest.raises(PipelineError, match="'quantize' has not run"):
        sensitivity(config, run)
    quantizers = Quantizers.load(quantize(config, run) / "quantizers.json")
    folder = sensitivity(config, run)
    found = json.loads((folder / "sensitivity.json").read_text())
    assert [layer["layer"] for layer in found["layers"]] == [w.layer for w in quantizers.weights]
    assert all(layer["alone"] > found["whole"] for layer in found["layers"])
    assert all(f"| {w.layer} |" in (folder / "sensitivity.md").read_text() for w in quantizers.weights)
