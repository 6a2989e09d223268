"""Every rule sees its fault, made for real in a small exported network; the files as exported have none."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress import cli
from compress.engines.metadata import Metadata
from compress.engines.onnxruntime import OpenOptions, operator_counts, optimized_graph
from compress.errors import ConfigError, ModelError
from compress.export.lint import Finding, describe, enforce, lint, lint_file
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.export.rules import RULES
from compress.frontend.raising import raised
from compress.progress import Silent
from compress.quantize.calibrate import calibrate
from compress.quantize.fold import fold
from compress.targets import names, profile

Q, DQ = "QuantizeLinear", "DequantizeLinear"


class Net(nn.Module):
    """Stem, max pool, one residual block, average pool, classifier; widths that tensor cores like."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 32, 3, 2, 1), nn.MaxPool2d(2)
        self.a, self.b = nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1)
        self.mean, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        logits: Tensor = self.fc(self.mean(x).flatten(1))
        return logits


def export(net: nn.Module, path: Path, target: str) -> Path:
    images = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    calibrated = calibrate(net.eval(), images, target)
    want = profile(target)
    metadata = Metadata("net", "int8", Preprocess(16), (), 1, 1, target, "0.1.0")
    lowered = lower(calibrated.net, calibrated.quantizers)
    export_onnx(lowered, path, metadata, want.opset, half=want.float_type == "float16")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    net, folder = Net(), tmp_path_factory.mktemp("lint")
    return {target: export(net, folder / f"{target}.onnx", target) for target in names()}


# --- faults, each made in a good file ---------------------------------------------------------------------------------


def tensor(model: ModelProto, name: str) -> TensorProto:
    return next(value for value in model.graph.initializer if value.name == name)


def of(model: ModelProto, kind: str) -> Iterator[NodeProto]:
    return (node for node in model.graph.node if node.op_type == kind)


def producer(model: ModelProto, name: str) -> NodeProto:
    return next((node for node in model.graph.node if name in node.output), NodeProto())


def users(model: ModelProto, name: str) -> list[NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def give(model: ModelProto, node: NodeProto, index: int, value: np.ndarray) -> None:
    """Let one input of a node be a new constant, where others keep the old one."""
    name = f"fault_{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[index] = name


def value(model: ModelProto, node: NodeProto, index: int) -> np.ndarray:
    return numpy_helper.to_array(tensor(model, node.input[index]))


def both(model: ModelProto, q: NodeProto, index: int, new: np.ndarray) -> None:
    """Change a scale or zero point of a Q and of its DQs."""
    for node in [q, *users(model, q.output[0])]:
        give(model, node, index, new)


def after_relu(model: ModelProto) -> NodeProto:
    return next(node for node in of(model, Q) if producer(model, node.input[0]).op_type == "Relu")


def weight(model: ModelProto, kind: str = "Conv") -> NodeProto:
    return producer(model, next(of(model, kind)).input[1])


def bypass(model: ModelProto, dq: NodeProto) -> None:
    """Let what reads a DQ read what its Q quantized."""
    before = producer(model, dq.input[0]).input[0]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == dq.output[0]:
                node.input[index] = before


def drop(model: ModelProto, *nodes: NodeProto) -> None:
    for node in nodes:
        model.graph.node.remove(node)


def drop_pair(model: ModelProto, q: NodeProto) -> None:
    for dq in users(model, q.output[0]):
        bypass(model, dq)
        drop(model, dq)
    drop(model, q)


def insert_pair(model: ModelProto, name: str, reader: NodeProto, like: NodeProto) -> None:
    """Put Q/DQ with the parameters of ``like`` between a tensor and one of its readers."""
    q = helper.make_node(Q, [name, *like.input[1:]], ["fault_q"], name="fault_q")
    dq = helper.make_node(DQ, ["fault_q", *like.input[1:]], ["fault_dq"], name="fault_dq")
    at = list(model.graph.node).index(reader)
    reader.input[list(reader.input).index(name)] = "fault_dq"
    model.graph.node.insert(at, q)
    model.graph.node.insert(at + 1, dq)


def wrong_activation_type(model: ModelProto) -> None:
    q = after_relu(model)
    kind = np.int8 if value(model, q, 2).dtype == np.uint8 else np.uint8
    both(model, q, 2, np.array(0, kind))


def wide_activation(kind: type[np.generic]) -> Callable[[ModelProto], None]:
    """16 bits, as a quantizer for another engine makes them; ONNX Runtime runs what reads it in float."""

    def change(model: ModelProto) -> None:
        q = after_relu(model)
        both(model, q, 2, np.array(0, kind))

    return change


def signed_residual(model: ModelProto) -> None:
    """Signed where two layers read it, as ONNX Runtime's quantizer makes files by default."""
    after_pool = next(q for q in of(model, Q) if producer(model, q.input[0]).op_type == "MaxPool")
    for q in (after_relu(model), after_pool):
        both(model, q, 2, np.array(-128, np.int8))


def shifted_zero_point(model: ModelProto) -> None:
    q = after_relu(model)
    zero = value(model, q, 2)
    both(model, q, 2, (zero + 3).astype(zero.dtype))


def zero_scale(model: ModelProto) -> None:
    node = weight(model)
    scale = value(model, node, 1).copy()
    scale[2] = 0
    give(model, node, 1, scale)


def infinite_scale(model: ModelProto) -> None:
    q = after_relu(model)
    both(model, q, 1, np.array(np.inf, value(model, q, 1).dtype))


def computed_scale(model: ModelProto) -> None:
    q = after_relu(model)
    node = helper.make_node("Identity", [q.input[1]], ["at_run_time"], name="at_run_time")
    q.input[1] = "at_run_time"
    model.graph.node.insert(0, node)


def other_scale(model: ModelProto) -> None:
    dq = users(model, after_relu(model).output[0])[0]
    give(model, dq, 1, value(model, dq, 1) * 2)


def quantized_twice(model: ModelProto) -> None:
    dq = users(model, after_relu(model).output[0])[0]
    insert_pair(model, dq.output[0], users(model, dq.output[0])[0], like=dq)


def unsigned_weights(model: ModelProto) -> None:
    node = weight(model)
    give(model, node, 0, (value(model, node, 0).astype(np.int16) + 128).astype(np.uint8))
    give(model, node, 2, np.full(value(model, node, 2).shape, 128, np.uint8))


def shifted_weights(model: ModelProto) -> None:
    node = weight(model)
    zero = value(model, node, 2).copy()
    zero[1] = 4
    give(model, node, 2, zero)


def overflowing_pair(model: ModelProto) -> None:
    node = producer(model, list(of(model, "Conv"))[1].input[1])  # 32 x 32
    weights = value(model, node, 0).copy()
    weights[3, :2, 1, 1] = 127
    give(model, node, 0, weights)


def weights_by_input_channel(model: ModelProto) -> None:
    node = producer(model, list(of(model, "Conv"))[1].input[1])  # 32 x 32
    next(a for a in node.attribute if a.name == "axis").i = 1


def one_weight_scale(model: ModelProto) -> None:
    node = weight(model)
    give(model, node, 1, value(model, node, 1).max())
    give(model, node, 2, np.array(0, np.int8))


def int32_bias(model: ModelProto) -> None:
    conv = next(of(model, "Conv"))
    scale = value(model, weight(model), 1)
    give(model, conv, 2, (value(model, conv, 2) / scale).round().astype(np.int32))
    model.graph.initializer.append(numpy_helper.from_array(scale, "bias_scale"))
    model.graph.node.insert(0, helper.make_node(DQ, [conv.input[2], "bias_scale"], ["b"], name="bias", axis=0))
    conv.input[2] = "b"


def float_bias(model: ModelProto) -> None:
    give(model, next(of(model, "Gemm")), 2, np.zeros(5, np.float32))


def float_weight(model: ModelProto) -> None:
    dq = weight(model)
    scale = value(model, dq, 1)
    give(model, next(of(model, "Conv")), 1, value(model, dq, 0).astype(scale.dtype) * scale[:, None, None, None])
    drop(model, dq)


def float_input(model: ModelProto) -> None:
    drop_pair(model, next(of(model, Q)))


def bare_output(model: ModelProto) -> None:
    drop_pair(model, next(q for q in of(model, Q) if producer(model, q.input[0]).op_type == "Conv"))


def returned_convolution(model: ModelProto) -> None:
    bare_output(model)
    conv = list(of(model, "Conv"))[-1]
    drop(model, *list(model.graph.node)[list(model.graph.node).index(conv) + 1 :])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(conv.output[0], TensorProto.FLOAT, None))


def float_skip(model: ModelProto) -> None:
    add = next(of(model, "Add"))
    for name in add.input:
        source = producer(model, name)
        while source.op_type == "MaxPool":
            source = producer(model, source.input[0])
        if source.op_type == DQ:
            drop_pair(model, producer(model, source.input[0]))


def quantized_main_path(model: ModelProto) -> None:
    add = next(of(model, "Add"))
    main = next(name for name in add.input if producer(model, name).op_type == "Conv")
    insert_pair(model, main, add, like=after_relu(model))


def pool_of_floats(model: ModelProto) -> None:
    pool = next(of(model, "MaxPool"))
    dq = producer(model, pool.input[0])
    q = producer(model, dq.input[0])
    relu, pooled, parameters = q.input[0], pool.output[0], list(q.input[1:])
    drop_pair(model, q)
    assert pool.input[0] == relu
    at = list(model.graph.node).index(pool) + 1
    for node in users(model, pooled):
        node.input[list(node.input).index(pooled)] = "fault_dq"
    model.graph.node.insert(at, helper.make_node(Q, [pooled, *parameters], ["fault_q"], name="fault_q"))
    model.graph.node.insert(at + 1, helper.make_node(DQ, ["fault_q", *parameters], ["fault_dq"], name="fault_dq"))


def float32_relu(model: ModelProto) -> None:
    relu = next(of(model, "Relu"))
    at = list(model.graph.node).index(relu)
    cast = helper.make_node("Cast", [relu.input[0]], ["wide"], name="to_wide", to=TensorProto.FLOAT)
    back = helper.make_node("Cast", ["wide_relu"], [relu.output[0]], name="from_wide", to=TensorProto.FLOAT16)
    relu.input[0], relu.output[0] = "wide", "wide_relu"
    model.graph.node.insert(at, cast)
    model.graph.node.insert(at + 2, back)
    del model.graph.value_info[:]


def half_output(model: ModelProto) -> None:
    out = model.graph.output[0]
    cast = helper.make_node("Cast", [out.name], ["half"], name="cast", to=TensorProto.FLOAT16)
    model.graph.node.append(cast)
    out.CopyFrom(helper.make_tensor_value_info("half", TensorProto.FLOAT16, ["batch", 5]))


def opset(version: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.opset_import[0].version = version

    return change


FAULTS = [
    ("foreign-activation", "ort-x86", signed_residual),
    ("mixed-integers", "ort-x86", signed_residual),
    ("mixed-integers", "ort-arm", wrong_activation_type),
    ("relu-zero-point", "ort-x86", wrong_activation_type),
    ("foreign-activation", "ort-arm", wrong_activation_type),
    ("foreign-activation", "openvino", wrong_activation_type),
    ("activation-type", "tensorrt", wrong_activation_type),
    ("activation-type", "ort-x86", wide_activation(np.uint16)),
    ("activation-type", "ort-arm", wide_activation(np.int16)),
    ("activation-type", "openvino", wide_activation(np.uint16)),
    ("activation-zero-point", "tensorrt", shifted_zero_point),
    ("relu-zero-point", "ort-x86", shifted_zero_point),
    ("relu-zero-point", "ort-arm", shifted_zero_point),
    ("scale", "ort-x86", zero_scale),
    ("scale", "openvino", infinite_scale),
    ("scale", "tensorrt", computed_scale),
    ("pair", "ort-arm", other_scale),
    ("twice", "tensorrt", quantized_twice),
    ("pair-sums", "ort-x86", overflowing_pair),
    ("pair-sums", "openvino", overflowing_pair),
    ("weight-type", "ort-x86", unsigned_weights),
    ("weight-zero-point", "tensorrt", shifted_weights),
    ("weight-axis", "tensorrt", weights_by_input_channel),
    ("weight-granularity", "openvino", one_weight_scale),
    ("integer-bias", "tensorrt", int32_bias),
    ("float-bias", "ort-x86", float_bias),
    ("float-layer", "tensorrt", float_weight),
    ("float-layer", "openvino", float_weight),
    ("float-layer", "ort-arm", float_input),
    ("convolution-output", "ort-x86", bare_output),
    ("float-output", "ort-x86", returned_convolution),
    ("residual-add", "ort-arm", bare_output),
    ("residual-fusion", "tensorrt", quantized_main_path),
    ("residual-fusion", "openvino", quantized_main_path),
    ("residual-skip", "tensorrt", float_skip),
    ("float-pool", "ort-x86", pool_of_floats),
    ("float-type", "tensorrt", float32_relu),
    ("interface-type", "tensorrt", half_output),
    ("opset", "tensorrt", opset(17)),
    ("opset", "ort-arm", opset(21)),
    ("newer-opset", "ort-x86", opset(21)),
]


@pytest.mark.parametrize("target", names())
def test_files_as_exported_have_no_findings(files: dict[str, Path], target: str) -> None:
    assert lint(files[target], target) == ()
    assert lint_file(files[target]).target == target


@pytest.mark.parametrize(("rule", "target", "fault"), FAULTS)
def test_each_fault_is_found_and_explained(
    files: dict[str, Path], rule: str, target: str, fault: Callable[[ModelProto], None]
) -> None:
    model = onnx.load(files[target])
    fault(model)
    found = [finding for finding in lint(model, target) if finding.rule == rule]
    assert found, lint(model, target)
    assert all(finding.node and finding.message and finding.remedy for finding in found)


def test_pairs_that_overflow_are_counted_by_layer_and_only_where_they_matter(files: dict[str, Path]) -> None:
    model = onnx.load(files["ort-x86"])
    overflowing_pair(model)
    (found,) = [finding for finding in lint(model, "ort-x86") if finding.rule == "pair-sums"]
    assert found.severity == "warning"
    assert "1 pair of its weights" in found.message
    assert "VNNI" in found.message
    assert "(a)" in found.node
    assert "pair-sums" not in {finding.rule for finding in lint(model, "ort-arm")}


def test_every_rule_is_among_the_faults() -> None:
    elsewhere = {"channel-width", "external-data"}
    assert {rule.name for rule in RULES} == {rule for rule, _, _ in FAULTS} | elsewhere


@pytest.mark.parametrize("fault", [signed_residual, shifted_zero_point, bare_output, float_input])
def test_what_it_calls_float_onnx_runtime_runs_in_float(
    files: dict[str, Path], fault: Callable[[ModelProto], None], tmp_path: Path
) -> None:
    good, bad = files["ort-x86"], tmp_path / "bad.onnx"
    model = onnx.load(good)
    fault(model)
    del model.graph.value_info[:]  # types as they were
    onnx.save(model, bad)
    floats = {"Conv", "FusedConv", "NhwcFusedConv"}
    assert not floats & operator_counts(optimized_graph(good, OpenOptions())).keys()
    assert floats & operator_counts(optimized_graph(bad, OpenOptions())).keys()
    assert any(finding.severity == "error" for finding in lint(bad, "ort-x86"))


@pytest.mark.parametrize("target", names())
def test_every_target_refuses_the_files_of_a_target_with_other_rules(files: dict[str, Path], target: str) -> None:
    for other in names():
        rules, others = (profile(name).model_dump(include={"add", "float_type"}) for name in (target, other))
        assert bool([f for f in lint(files[other], target) if f.severity == "error"]) >= (rules != others)


def test_layers_meant_to_stay_float_are_exempt_and_no_others(files: dict[str, Path]) -> None:
    model = onnx.load(files["ort-x86"])
    float_weight(model)  # of the stem
    conv = next(of(model, "Conv"))
    conv.input[1] = "stem.weight"
    model.graph.initializer[-1].name = "stem.weight"
    assert {f.node for f in lint(model, "ort-x86")} == {f"{conv.name} (stem)"}
    assert lint(model, "ort-x86", ["stem"]) == ()
    next(entry for entry in model.metadata_props if entry.key == "compress.float_layers").value = '["stem"]'
    path = files["ort-x86"].with_name("float_stem.onnx")
    onnx.save(model, path)
    assert lint_file(path).findings == ()
    assert lint(model, "ort-x86", ["ste", "stem.weight.x", "fc"]) != ()


def test_a_skip_that_a_float_layer_feeds_may_be_float(files: dict[str, Path]) -> None:
    model = onnx.load(files["ort-x86"])
    bare_output(model)
    conv = list(of(model, "Conv"))[-1]
    assert {f.rule for f in lint(model, "ort-x86")} == {"convolution-output", "residual-add"}
    assert lint(model, "ort-x86", [conv.name]) == ()


@pytest.mark.parametrize(
    ("width", "target", "found"), [(32, "tensorrt", 0), (24, "tensorrt", 1), (24, "ort-x86", 0), (30, "ort-x86", 1)]
)
def test_widths_that_waste_a_kernel_are_told(width: int, target: str, found: int, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    findings = lint(export(net, tmp_path / "net.onnx", target), target)
    assert [(f.rule, f.severity) for f in findings] == [("channel-width", "warning")] * found


def test_external_data_is_told_and_missing_data_is_an_error(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "parts.onnx"
    onnx.save(onnx.load(files["ort-x86"]), path, save_as_external_data=True, location="data.bin", size_threshold=1000)
    findings = lint(path, "ort-x86")
    assert {(f.rule, f.severity) for f in findings} == {("external-data", "warning")}
    (tmp_path / "data.bin").unlink()
    with pytest.raises(ModelError, match=r"parts\.onnx is not a whole ONNX file"):
        lint(path, "ort-x86")


class _Noise(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._feeds = iter([{"input": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A file that ONNX Runtime's own quantizer makes."""
    folder = tmp_path_factory.mktemp("foreign")
    export_onnx(
        fold(raised(Net().eval(), (3, 16, 16))),
        folder / "float.onnx",
        Metadata("n", "fp32", Preprocess(16), (), 1, 1, "", "1"),
        20,
    )

    def make(name: str, **options: object) -> Path:
        quantize_static(folder / "float.onnx", folder / name, _Noise(), per_channel=True, **options)
        return folder / name

    return make


def test_onnx_runtimes_own_files(foreign: Callable[..., Path]) -> None:
    unsigned = foreign("u8.onnx", activation_type=QuantType.QUInt8)
    assert {f.rule for f in lint(unsigned, "ort-x86")} <= {"pair-sums"}  # its weights know of no limit
    with pytest.raises(ConfigError, match="does not say which target"):
        lint_file(unsigned)
    signed = foreign("s8.onnx", activation_type=QuantType.QInt8)
    assert "mixed-integers" in {f.rule for f in lint(signed, "ort-x86") if f.severity == "error"}
    assert lint(signed, "ort-arm") == ()
    assert {"float-type", "residual-fusion", "integer-bias"} <= {f.rule for f in lint(signed, "tensorrt")}


@pytest.mark.parametrize("kind", [QuantType.QUInt16, QuantType.QInt16])
def test_a_file_of_16_bits_runs_in_float_and_is_an_error(foreign: Callable[..., Path], kind: QuantType) -> None:
    path = foreign(f"{kind.name}.onnx", activation_type=kind, weight_type=QuantType.QInt8)
    counts = operator_counts(optimized_graph(path, OpenOptions()))
    assert "QLinearConv" not in counts
    for target in ("ort-x86", "ort-arm", "openvino"):
        errors = [f for f in lint(path, target) if f.severity == "error"]
        assert any(f.rule == "activation-type" and "no integer kernels" in f.message for f in errors)


def test_files_that_are_not_quantized_with_qdq_are_refused(foreign: Callable[..., Path]) -> None:
    operators = foreign("operators.onnx", quant_format=QuantFormat.QOperator)
    with pytest.raises(ModelError, match="integer operators"):
        lint(operators, "ort-x86")
    with pytest.raises(ModelError, match="not quantized"):
        lint(operators.with_name("float.onnx"), "ort-x86")


@settings(max_examples=25, deadline=None)
@given(cut=st.floats(0, 0.999), noise=st.binary(max_size=64))
def test_damaged_files_are_refused_in_words(files: dict[str, Path], cut: float, noise: bytes) -> None:
    whole = files["ort-x86"].read_bytes()
    path = files["ort-x86"].with_name("damaged.onnx")
    path.write_bytes(whole[: int(len(whole) * cut)] + noise)
    with suppress(ModelError):  # and nothing else; what was cut may still be a whole message
        lint(path, "ort-x86")


def test_enforcing_tells_warnings_and_raises_on_errors(files: dict[str, Path], tmp_path: Path) -> None:
    class Notes(Silent):
        def __init__(self) -> None:
            self.said: list[str] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    notes, model = Notes(), onnx.load(files["ort-x86"])
    float_bias(model)
    onnx.save(model, tmp_path / "bias.onnx")
    enforce(tmp_path / "bias.onnx", "ort-x86", progress=notes)
    assert "float-bias" in notes.said[0]
    with pytest.raises(ModelError, match=r"tensorrt\.onnx does not suit target ort-x86(.|\n)*float-type"):
        enforce(files["tensorrt"], "ort-x86")


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lint", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(files["tensorrt"]) == 0
    assert "for tensorrt: 0 error(s), 0 warning(s)" in capsys.readouterr().out
    assert command(files["ort-x86"], "--target", "tensorrt") == 1
    text = capsys.readouterr().out
    assert "error: residual-fusion" in text
    assert "fix: quantize and export again with `--set target.name=tensorrt`" in text
    assert command(files["ort-x86"], "--target", "tensorrt", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == sum(f["severity"] == "error" for f in report["findings"]) > 0
    assert command(tmp_path / "none.onnx", "--target", "tensorrt") == 1
    assert "no such file" in capsys.readouterr().err
    assert command(files["ort-x86"], "--target", "toaster") == 2
    assert "known: " in capsys.readouterr().err


def test_long_lists_are_cut_short() -> None:
    text = describe([Finding("scale", "error", f"q{i}", "has a scale of 0", "calibrate again") for i in range(9)])
    assert "q4 has" in text
    assert "q5" not in text
    assert "... and 4 more" in text
