"""The linter against TensorRT itself, which builds for a GPU that is not here: what one says, the other does."""

from collections.abc import Callable
from pathlib import Path

import lint_faults as faults
import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import QuantFormat, QuantType
from tensorrt_answers import Answer, ask, unknown
from torch import Tensor, nn

from compress.engines.tensorrt.rtx import RTX
from compress.errors import BackendAbsent, ModelError
from compress.export.lint import lint
from compress.export.rules.storage import UNKNOWN_TO_TENSORRT
from compress.frontend.raising import raised
from compress.targets import names

pytestmark = pytest.mark.tensorrt


class Block(nn.Module):
    """A residual block of some width."""

    def __init__(self, width: int, groups: int = 1, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 2, 1)
        self.a: nn.Module = nn.Conv2d(width, width, 3, 1, 1, groups=groups)
        self.b, self.fc = nn.Conv2d(width, width, 3, 1, 1), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        logits: Tensor = self.fc(torch.relu(self.b(torch.relu(self.a(x))) + x).mean((2, 3)))
        return logits


class Maps(nn.Module):
    """Several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = torch.relu(self.a(x))
        return [x, torch.relu(self.b(x))]


def upscaling() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(16, 4, 1))


def removed_block() -> nn.Module:
    net = Block(32)
    net.a = nn.Identity()
    return net


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1), nn.SiLU(), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(3), nn.Conv2d(32, 32, 1)
    )


# What TensorRT does with each file, and a rule of the linter that says so (none: no error).
INT8, FLOAT, REFUSES, CRASHES = "int8", "float", "refuses", "crashes"
MADE: dict[str, tuple[Callable[[ModelProto], None], str, str]] = {
    "scale of 0": (faults.zero_scale, REFUSES, "scale"),
    "negative scale": (faults.negative_scale, REFUSES, "scale"),
    "infinite scale": (faults.infinite_scale, INT8, "scale"),
    "scale at run time": (faults.scale_at_run_time, CRASHES, "scale"),
    "scale behind Identity": (faults.scale_behind_identity, INT8, ""),
    "other scale in DQ": (faults.other_scale, INT8, "pair"),
    "one scale for all activations": (faults.one_scale, INT8, ""),
    "scale by channel": (faults.channel_scales, FLOAT, "activation-scale"),
    "scale of shape (1,)": (faults.scale_of_one_value, FLOAT, "activation-scale"),
    "too few scales": (faults.wrong_scale_count, REFUSES, "scale-shape"),
    "too few zero points": (faults.zero_point_of_another_shape, REFUSES, "scale-shape"),
    "blocked weights": (faults.blocked_weights, REFUSES, "scale-shape"),
    "weights by input channel": (faults.weights_by_input_channel, FLOAT, "weight-axis"),
    "one weight scale": (faults.one_weight_scale, INT8, ""),
    "float32 scales of opset 23": (faults.float_scales, INT8, ""),
    "float32 scales of opset 20": (faults.float_scales_of_old, REFUSES, "node-types"),
    "zero point": (faults.shifted_zero_point, REFUSES, "activation-zero-point"),
    "no zero points": (faults.removed_zero_points, INT8, "activation-type"),
    "types in attributes": (faults.output_types, INT8, ""),
    "uint8": (faults.wrong_activation_type, INT8, "activation-type"),
    "int16": (faults.wide_activation(np.int16), REFUSES, "activation-type"),
    "uint16": (faults.wide_activation(np.uint16), REFUSES, "activation-type"),
    "int4": (faults.low_bits(TensorProto.INT4), REFUSES, "activation-type"),
    "uint4": (faults.low_bits(TensorProto.UINT4), REFUSES, "activation-type"),
    "float8": (faults.low_bits(TensorProto.FLOAT8E4M3FN), REFUSES, "activation-type"),
    "int4 weights": (faults.low_bit_weights(TensorProto.INT4), REFUSES, "weight-type"),
    "uint8 weights": (faults.unsigned_weights, REFUSES, "weight-type"),
    "weights with zero point": (faults.shifted_weights, REFUSES, "weight-zero-point"),
    "weights behind Q": (faults.quantized_float_weights, INT8, ""),
    "weights with pairs": (faults.overflowing_pair, INT8, ""),
    "float weight": (faults.float_weight, FLOAT, "float-layer"),
    "float input": (faults.float_input, FLOAT, "float-layer"),
    "float skip": (faults.float_skip, FLOAT, "float-layer"),
    "Q/DQ before an addition": (faults.quantized_main_path, INT8, "residual-fusion"),
    "quantized twice": (faults.quantized_twice, INT8, ""),
    "Q after pooling": (faults.pool_of_floats, INT8, ""),
    "int32 bias": (faults.int32_bias, REFUSES, "integer-bias"),
    "float32 bias": (faults.float_bias_type, REFUSES, "node-types"),
    "no bias": (faults.without_bias, INT8, ""),
    "sum of two types": (faults.mixed_sum, REFUSES, "node-types"),
    "float32 inside": (faults.wide_relu(TensorProto.FLOAT), INT8, "float-type"),
    "float64 inside": (faults.wide_relu(TensorProto.DOUBLE), INT8, "float-type"),
    "float16 output": (faults.half_output, INT8, "interface-type"),
    "int8 output": (faults.integer_output, INT8, "interface-type"),
    "int8 input": (faults.integer_input, INT8, "interface-type"),
    "uint8 input": (faults.unsigned_input, INT8, "interface-type"),
    "Gemm not transposed": (faults.other_layout, INT8, ""),
    "Gemm with alpha": (faults.scaled_gemm, INT8, ""),
    "float32 classifier": (faults.float_classifier, INT8, ""),
    "MatMul and Add": (faults.product_and_sum, INT8, ""),
    "constants as nodes": (faults.constants_as_nodes, INT8, ""),
    "nodes without names": (faults.nameless, INT8, ""),
    "If": (faults.branch, INT8, "float-type"),
    "any size": (faults.image_size("batch", 3, "h", "w"), INT8, ""),
    "batch of 4": (faults.image_size(4, 3, 16, 16), INT8, ""),
    "opset 17": (faults.opset(17), INT8, "opset"),
    **{f"opset {version}": (faults.opset(version), INT8, "") for version in (19, 21, 22, 23, 24)},
    **{f"{kind}": (faults.replaced_relu(kind), INT8, "") for kind in ("HardSwish", "Gelu", "Sigmoid", "Mish")},
    "Celu": (faults.replaced_relu("Celu"), REFUSES, "node-types"),  # ONNX has none of float16
    "Gelu of com.microsoft": (faults.replaced_relu("Gelu", "com.microsoft"), INT8, ""),
    "Q/DQ of com.microsoft": (faults.contrib_pairs, INT8, ""),
    "FusedConv of com.microsoft": (faults.replaced_relu("FusedConv", "com.microsoft"), REFUSES, "operator"),
    "custom operator": (faults.replaced_relu("Mine", "my.domain"), REFUSES, "operator"),
}
EXPORTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{f"width {width}": (lambda width=width: Block(width), INT8) for width in (7, 10, 33)},
    "groups": (lambda: Block(32, groups=4), INT8),
    "depthwise": (lambda: Block(32, groups=32), INT8),
    "grey": (lambda: Block(32, channels=1), INT8),
    "removed block": (removed_block, INT8),
    "several outputs": (Maps, INT8),
    "pooled": (pooled, INT8),
    "transposed": (upscaling, FLOAT),
}
SYMMETRIC = {"ActivationSymmetric": True, "QuantizeBias": False}
PEERS: dict[str, tuple[dict[str, object], str, str]] = {
    "ort int8": ({"activation_type": QuantType.QInt8}, REFUSES, "integer-bias"),
    "ort uint8": ({"activation_type": QuantType.QUInt8}, REFUSES, "activation-zero-point"),
    "ort symmetric": ({"activation_type": QuantType.QInt8, "extra_options": SYMMETRIC}, INT8, "float-type"),
    "ort weights behind Q": (
        {"activation_type": QuantType.QInt8, "extra_options": {**SYMMETRIC, "AddQDQPairToWeight": True}},
        INT8,
        "float-type",
    ),
}
OURS = {
    "tensorrt": (INT8, ""),
    "tensorrt-rtx": (FLOAT, "float-layer"),
    "openvino": (REFUSES, "activation-zero-point"),
    "ort-x86": (REFUSES, "integer-bias"),
}
EXPECTED = {
    **{name: (does, rule) for name, (_, does, rule) in MADE.items()},
    **{name: (does, "") for name, (_, does) in EXPORTED.items()},
    **{name: (does, rule) for name, (_, does, rule) in PEERS.items()},
    **OURS,
    "external data": (INT8, ""),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Answer]]:
    """Of every file: where it is, and what TensorRT does with it."""
    try:
        RTX.module()
    except BackendAbsent as absent:
        pytest.skip(str(absent))
    folder = tmp_path_factory.mktemp("lint_tensorrt")
    torch.manual_seed(0)
    net = faults.Net()
    paths = {name: faults.export(net, folder / f"ours_{name}.onnx", name) for name in OURS}
    for index, (name, (fault, _, _)) in enumerate(MADE.items()):
        model = onnx.load(paths["tensorrt"])
        fault(model)
        paths[name] = folder / f"made_{index}.onnx"
        onnx.save(model, paths[name])
    for index, (name, (build, _)) in enumerate(EXPORTED.items()):
        channels = 1 if name == "grey" else 3
        exported = raised(build().eval(), (channels, 16, 16))
        paths[name] = faults.export(exported, folder / f"exported_{index}.onnx", "tensorrt", channels)
    for index, (name, (options, _, _)) in enumerate(PEERS.items()):
        paths[name] = faults.quantize_by_onnxruntime(folder / f"peer_{index}.onnx", **options)
    paths["integer operators"] = faults.quantize_by_onnxruntime(
        folder / "operators.onnx", quant_format=QuantFormat.QOperator
    )
    paths["external data"] = folder / "external.onnx"
    model = onnx.load(paths["tensorrt"])
    onnx.save(model, paths["external data"], save_as_external_data=True, location="data", size_threshold=100)
    found = ask(list(paths.values()))
    return {name: (path, found[path]) for name, path in paths.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_linter_says_tensorrt_does(name: str, answers: dict[str, tuple[Path, Answer]]) -> None:
    path, answer = answers[name]
    does, rule = EXPECTED[name]
    assert answer.does == does, answer.why
    findings = lint(path, "tensorrt")
    errors = {finding.rule: finding.message for finding in findings if finding.severity == "error"}
    assert rule in errors if rule else not errors
    told = " ".join(finding.message for finding in findings)
    if does != REFUSES:
        assert "not load" not in told
        assert "refuses" not in told
    if does == INT8:
        assert "runs in float" not in told


def test_integer_operators_are_refused_by_both(answers: dict[str, tuple[Path, Answer]]) -> None:
    path, answer = answers["integer operators"]
    assert answer.does == REFUSES
    with pytest.raises(ModelError, match="integer operators"):
        lint(path, "tensorrt")


def test_operators_that_the_linter_calls_unknown_are(answers: dict[str, tuple[Path, Answer]]) -> None:
    assert unknown({*UNKNOWN_TO_TENSORRT, "Conv"}) == UNKNOWN_TO_TENSORRT


def test_both_editions_have_the_same_rules(answers: dict[str, tuple[Path, Answer]]) -> None:
    assert "tensorrt-rtx" in names()
    for path in (answers["ort-x86"][0], answers["int32 bias"][0], answers["FusedConv of com.microsoft"][0]):
        own = {"product-sums"}  # what only one of them does
        assert {f.rule for f in lint(path, "tensorrt")} == {f.rule for f in lint(path, "tensorrt-rtx")} - own
