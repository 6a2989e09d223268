"""Every rule sees its fault, made for real in a small exported network; the files as exported have none."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import lint_faults as faults
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import QuantFormat, QuantType
from torch import nn

from compress import cli
from compress.engines.onnxruntime import OpenOptions, operator_counts, optimized_graph
from compress.errors import ConfigError, ModelError
from compress.export.lint import Finding, describe, enforce, lint, lint_file
from compress.export.rules import RULES
from compress.progress import Silent
from compress.targets import names, profile


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    net, folder = faults.Net(), tmp_path_factory.mktemp("lint")
    return {target: faults.export(net, folder / f"{target}.onnx", target) for target in names()}


FAULTS = [
    ("foreign-activation", "ort-x86", faults.signed_residual),
    ("mixed-integers", "ort-x86", faults.signed_residual),
    ("mixed-integers", "ort-arm", faults.wrong_activation_type),
    ("relu-zero-point", "ort-x86", faults.wrong_activation_type),
    ("foreign-activation", "ort-arm", faults.wrong_activation_type),
    ("foreign-activation", "openvino", faults.wrong_activation_type),
    ("activation-type", "tensorrt", faults.wrong_activation_type),
    ("activation-type", "tensorrt", faults.removed_zero_points),
    ("activation-type", "tensorrt", faults.wide_activation(np.int16)),
    ("activation-type", "ort-x86", faults.wide_activation(np.uint16)),
    ("activation-type", "ort-arm", faults.wide_activation(np.int16)),
    ("activation-type", "openvino", faults.wide_activation(np.uint16)),
    ("activation-zero-point", "tensorrt", faults.shifted_zero_point),
    ("relu-zero-point", "ort-x86", faults.shifted_zero_point),
    ("relu-zero-point", "ort-arm", faults.shifted_zero_point),
    ("scale", "ort-x86", faults.zero_scale),
    ("scale", "openvino", faults.infinite_scale),
    ("scale", "tensorrt", faults.scale_at_run_time),
    ("scale-shape", "tensorrt", faults.blocked_weights),
    ("scale-shape", "ort-x86", faults.wrong_scale_count),
    ("scale-shape", "ort-arm", faults.zero_point_of_another_shape),
    ("activation-scale", "openvino", faults.channel_scales),
    ("activation-scale", "tensorrt", faults.scale_of_one_value),
    ("pair", "ort-arm", faults.other_scale),
    ("twice", "tensorrt", faults.quantized_twice),
    ("pair-sums", "ort-x86", faults.overflowing_pair),
    ("pair-sums", "openvino", faults.overflowing_pair),
    ("weight-type", "ort-x86", faults.unsigned_weights),
    ("weight-zero-point", "tensorrt", faults.shifted_weights),
    ("weight-axis", "tensorrt", faults.weights_by_input_channel),
    ("weight-granularity", "openvino", faults.one_weight_scale),
    ("integer-bias", "tensorrt", faults.int32_bias),
    ("float-bias", "ort-x86", faults.float_bias),
    ("float-layer", "tensorrt", faults.float_weight),
    ("float-layer", "openvino", faults.float_weight),
    ("float-layer", "ort-arm", faults.float_input),
    ("convolution-output", "ort-x86", faults.bare_output),
    ("float-output", "ort-x86", faults.returned_convolution),
    ("residual-add", "ort-arm", faults.bare_output),
    ("residual-fusion", "tensorrt", faults.quantized_main_path),
    ("residual-fusion", "openvino", faults.quantized_main_path),
    ("residual-skip", "tensorrt", faults.float_skip),
    ("float-pool", "ort-x86", faults.pool_of_floats),
    ("float-type", "tensorrt", faults.wide_relu(TensorProto.FLOAT)),
    ("interface-type", "tensorrt", faults.half_output),
    ("node-types", "tensorrt", faults.float_bias_type),
    ("node-types", "tensorrt", faults.mixed_sum),
    ("node-types", "tensorrt", faults.together(faults.float_bias_type, faults.nameless)),
    ("operator", "tensorrt", faults.replaced_relu("FusedConv", "com.microsoft")),
    ("branch", "openvino", faults.branch),
    ("opset", "tensorrt", faults.opset(17)),
    ("opset", "ort-arm", faults.opset(21)),
    ("newer-opset", "ort-x86", faults.opset(21)),
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
    faults.overflowing_pair(model)
    (found,) = [finding for finding in lint(model, "ort-x86") if finding.rule == "pair-sums"]
    assert found.severity == "warning"
    assert "1 pair of its weights" in found.message
    assert "VNNI" in found.message
    assert "(a)" in found.node
    assert "pair-sums" not in {finding.rule for finding in lint(model, "ort-arm")}


def test_sums_that_tensorrt_for_rtx_stores_in_float16_are_told_and_its_own_files_have_none(
    files: dict[str, Path],
) -> None:
    (found,) = lint(files["tensorrt"], "tensorrt-rtx")
    assert (found.rule, found.severity) == ("product-sums", "warning")
    assert "(fc)" in found.node


def test_every_rule_is_among_the_faults() -> None:
    elsewhere = {"channel-width", "external-data", "product-sums"}
    assert {rule.name for rule in RULES} == {rule for rule, _, _ in FAULTS} | elsewhere


@pytest.mark.parametrize(
    "fault", [faults.signed_residual, faults.shifted_zero_point, faults.bare_output, faults.float_input]
)
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
    faults.float_weight(model)  # of the stem
    conv = next(faults.of(model, "Conv"))
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
    faults.bare_output(model)
    conv = list(faults.of(model, "Conv"))[-1]
    assert {f.rule for f in lint(model, "ort-x86")} == {"convolution-output", "residual-add"}
    assert lint(model, "ort-x86", [conv.name]) == ()


@pytest.mark.parametrize(
    ("width", "target", "found"), [(32, "tensorrt", 0), (24, "tensorrt", 1), (24, "ort-x86", 0), (30, "ort-x86", 1)]
)
def test_widths_that_waste_a_kernel_are_told(width: int, target: str, found: int, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    findings = lint(faults.export(net, tmp_path / "net.onnx", target), target)
    assert [(f.rule, f.severity) for f in findings] == [("channel-width", "warning")] * found


def test_external_data_is_told_and_missing_data_is_an_error(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "parts.onnx"
    onnx.save(onnx.load(files["ort-x86"]), path, save_as_external_data=True, location="data.bin", size_threshold=1000)
    findings = lint(path, "ort-x86")
    assert {(f.rule, f.severity) for f in findings} == {("external-data", "warning")}
    (tmp_path / "data.bin").unlink()
    with pytest.raises(ModelError, match=r"parts\.onnx is not a whole ONNX file"):
        lint(path, "ort-x86")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A file that ONNX Runtime's own quantizer makes."""
    folder = tmp_path_factory.mktemp("foreign")
    return lambda name, **options: faults.quantize_by_onnxruntime(folder / name, **options)


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
    faults.float_bias(model)
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
