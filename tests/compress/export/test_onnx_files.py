from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress.engines.base import open_engine
from compress.engines.metadata import Metadata
from compress.engines.onnxruntime import OpenOptions, operator_counts, optimized_graph
from compress.errors import ModelError
from compress.export.lower import lower, quantize_weight
from compress.export.onnx import export_onnx
from compress.export.parity import FP32_ERROR, INT8_ERROR, Reference, check, compare, runner_for
from compress.export.qdq import module_of
from compress.frontend.raising import raised
from compress.quantize.calibrate import calibrate
from compress.quantize.fakequant import fake_quantized
from compress.quantize.fold import fold
from compress.quantize.quantizer import Weight
from compress.targets import profile

Make = Callable[[str], nn.Module]


def metadata(precision: str, size: int = 32) -> Metadata:
    target = "ort-x86" if precision == "int8" else ""
    return Metadata("net", precision, Preprocess(size), ("a", "b"), 10, 20, target, "0.1.0")


@pytest.fixture(scope="module")
def resnet18(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sample = [torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))]
    calibrated = calibrate(make("resnet18"), sample, "ort-x86")
    path = tmp_path_factory.mktemp("export") / "resnet18_int8.onnx"
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, metadata("int8", 64), opset=20)
    return path


def test_resnet18_runs_in_integers(resnet18: Path) -> None:
    counts = operator_counts(optimized_graph(resnet18, OpenOptions()))
    assert (counts["QLinearConv"], counts["QLinearAdd"]) == (20, 8)
    assert counts["QLinearGlobalAveragePool"] == 1
    assert "ReduceMean" not in counts
    assert counts["QGemm"] == 1
    assert not {"Conv", "FusedConv", "NhwcFusedConv", "Gemm"} & counts.keys()


def test_the_int8_file_holds_int8_weights_and_no_others(resnet18: Path) -> None:
    weights = [t for t in onnx.load(resnet18).graph.initializer if len(t.dims) > 1]
    assert Counter(t.data_type for t in weights) == {onnx.TensorProto.INT8: 21}


def test_the_file_says_what_it_is_and_takes_any_batch(resnet18: Path) -> None:
    model = onnx.load(resnet18)
    props = {prop.key: prop.value for prop in model.metadata_props}
    assert Metadata.from_props(props) == metadata("int8", 64)
    session = ort.InferenceSession(str(resnet18), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    for batch in (1, 3):
        assert session.run(None, {"input": np.zeros((batch, 3, 64, 64), np.float32)})[0].shape == (batch, 5)


@pytest.mark.parametrize("target", ["ort-x86", "tensorrt"])
@pytest.mark.parametrize("name", ["maps", "cifar_resnet20"])
def test_int8_files_compute_what_fake_quantization_does(
    make: Make, images: list[Tensor], name: str, target: str, tmp_path: Path
) -> None:
    calibrated = calibrate(make(name), images, target)
    path = tmp_path / "net.onnx"
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, metadata("int8"), opset=20)
    reference, runner = Reference("torch", calibrated.fake(), INT8_ERROR), runner_for(profile(target))
    assert check(path, reference, torch.cat(images), runner).cosine > 0.99
    if (name, target) == ("cifar_resnet20", "ort-x86"):  # option A shortcuts keep no add in float
        counts = operator_counts(optimized_graph(path, OpenOptions()))
        assert (counts["QLinearConv"], counts["QLinearAdd"]) == (19, 9)


def test_tensorrt_files_have_int8_with_zero_point_0_only(make: Make, images: list[Tensor], tmp_path: Path) -> None:
    calibrated = calibrate(make("maps"), images, "tensorrt")
    path = tmp_path / "net.onnx"
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, metadata("int8"), opset=20)
    graph = onnx.load(path).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
            assert (values[node.input[1]] > 0).all()


def test_float_files_of_backbones_have_numbered_outputs(make: Make, images: list[Tensor], tmp_path: Path) -> None:
    net, path = make("maps"), tmp_path / "net.onnx"
    export_onnx(fold(net), path, metadata("fp32"), opset=20)
    assert [o.name for o in onnx.load(path).graph.output] == ["output0", "output1"]
    parity = check(path, Reference("torch", net, FP32_ERROR), images[0])
    assert parity.error < 1e-5
    assert parity.agreement is None


class Named(nn.Module):
    """Outputs in a dictionary, one of them named like an operation, one a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, object]:
        x = torch.relu(self.conv(x))
        pooled = x.mean((2, 3))
        ends: dict[str, object] = {"logits": self.fc(pooled), "relu": x, "embedding": pooled}
        return OrderedDict({**ends, "box": (pooled + 1, None)})


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_outputs_have_the_names_that_the_network_gives_them(
    images: list[Tensor], tmp_path: Path, precision: str
) -> None:
    torch.manual_seed(0)
    net, path = raised(Named().eval(), (3, 32, 32)), tmp_path / "net.onnx"
    reference: Callable[[Tensor], object] = net
    lowered: nn.Module = fold(net)
    if precision == "int8":
        calibrated = calibrate(net, images, "ort-x86")
        reference, lowered = calibrated.fake(), lower(calibrated.net, calibrated.quantizers)
    export_onnx(lowered, path, metadata(precision), opset=20)
    with open_engine(path) as engine:
        assert [spec.name for spec in engine.outputs] == ["logits", "relu", "embedding", "box_0"]
        found = engine.run({"input": images[0].numpy()})
    with torch.no_grad():
        wanted = reference(images[0])
    assert isinstance(wanted, dict)
    np.testing.assert_allclose(found["embedding"], wanted["embedding"], atol=0.05)
    np.testing.assert_allclose(found["box_0"], wanted["box"][0], atol=0.05)
    assert found["relu"].shape == (4, 4, 30, 30)


def test_a_file_says_nothing_of_the_source_code_that_it_was_made_from(resnet18: Path, tmp_path: Path) -> None:
    export_onnx(fold(raised(Named().eval(), (3, 32, 32))), tmp_path / "net.onnx", metadata("fp32"), opset=20)
    for path in (resnet18, tmp_path / "net.onnx"):
        written = path.read_bytes()
        for leak in (b'File "', b".py", str(Path(__file__).parent).encode(), str(Path.home()).encode() + b"/"):
            assert leak not in written
        model = onnx.load(path)
        weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        assert len(written) - weights < 400 * (len(model.graph.node) + 12)
    modules = {module_of(node) for node in onnx.load(resnet18).graph.node}
    assert {"conv1", "layer4.1.conv2", "fc"} <= modules


def test_exporting_says_nothing_and_gives_the_same_bytes_twice(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.onnx", "b.onnx"):
        export_onnx(fold(make("maps")), tmp_path / name, metadata("fp32"), opset=20)
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_dead_channel_with_a_bias_survives_integer_arithmetic(images: list[Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6272, 4))
    with torch.no_grad():
        for conv in (net[0], net[2]):
            conv.weight[3] = 0  # type: ignore[operator]
            conv.bias[3] = 0.7  # type: ignore[operator]
    calibrated = calibrate(net, images, "ort-x86")
    path = tmp_path / "net.onnx"
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, metadata("int8"), opset=20)
    assert check(path, Reference("torch", calibrated.fake(), INT8_ERROR), images[0]).error < 0.02


def test_a_file_of_another_net_fails_parity(make: Make, images: list[Tensor], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(fold(make("cifar_resnet20")), path, metadata("fp32"), opset=20)
    with pytest.raises(ModelError, match="does not compute the same as torch"):
        check(path, Reference("torch", make("cifar_resnet20_b"), FP32_ERROR), images[0])


def test_what_onnx_lacks_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).real

    with pytest.raises(ModelError, match="cannot export"):
        export_onnx(Odd(), tmp_path / "odd.onnx", metadata("fp32"), opset=20)
    assert not list(tmp_path.iterdir())


def test_weights_round_as_fake_quantization_rounds_them() -> None:
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = tuple((weight.abs().amax((1, 2, 3)) / 127).tolist())
    integers = quantize_weight(Weight("conv", scale), weight)
    step = torch.tensor(scale)[:, None, None, None]
    fake = torch.fake_quantize_per_channel_affine(
        weight, step.flatten(), torch.zeros(16, dtype=torch.int32), 0, -127, 127
    )
    assert torch.equal(integers * step, fake)
    assert int(integers.abs().max()) == 127


def test_compare_tells_how_far_and_how_often() -> None:
    a, b = np.float32([[3, 0], [0, 4]]), np.float32([[3, 0], [4, 0]])
    parity = compare([a], [b])
    assert (parity.max_abs, parity.agreement, parity.images) == (4.0, 0.5, 2)
    assert parity.cosine == pytest.approx(9 / 25)


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_fake_quantization_equals_the_lowered_graph_bit_for_bit(make: Make, images: list[Tensor], target: str) -> None:
    calibrated = calibrate(make("cifar_resnet20"), images, target)
    with torch.no_grad():
        fake = fake_quantized(calibrated.net, calibrated.quantizers).eval()(images[0])
        assert torch.equal(lower(calibrated.net, calibrated.quantizers)(images[0]), fake)


def test_an_int32_bias_moves_the_output_by_less_than_a_step(make: Make, images: list[Tensor]) -> None:
    calibrated = calibrate(make("cifar_resnet20"), images, "ort-x86")
    with torch.no_grad():
        fake = fake_quantized(calibrated.net, calibrated.quantizers).eval()(images[0])
        torch.testing.assert_close(lower(calibrated.net, calibrated.quantizers)(images[0]), fake, rtol=0, atol=2e-3)
