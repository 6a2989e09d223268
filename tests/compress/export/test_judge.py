"""TensorRT's parser reads what is exported for it, and what `lint` is given."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress import cli
from compress.engines.metadata import Metadata
from compress.engines.tensorrt.rtx import RTX
from compress.errors import BackendAbsent, ModelError
from compress.export.judge import ask_parser
from compress.export.lint import enforce, lint, lint_file
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.export.qdq import Graph
from compress.frontend.raising import raised
from compress.progress import Silent
from compress.quantize.calibrate import calibrate
from compress.quantize.placement import leave_float
from compress.quantize.quantizable import in_float

pytestmark = pytest.mark.tensorrt


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    try:
        RTX.module()
    except BackendAbsent as absent:
        pytest.skip(str(absent))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 32, 3, padding=1) for i in (3, 32, 32))
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(self.c(torch.relu(self.b(x))) + x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def export(path: Path, float_layers: tuple[str, ...] = ()) -> Path:
    torch.manual_seed(0)
    calibrated = calibrate(raised(Net().eval(), (3, 16, 16)), [torch.randn(4, 3, 16, 16)], "tensorrt")
    quantizers = leave_float(calibrated.net, calibrated.quantizers, float_layers)
    floats = in_float(calibrated.net, quantizers)
    about = Metadata("net", "int8", Preprocess(16), (), 1, 1, "tensorrt", "0.1.0", floats)
    export_onnx(lower(calibrated.net, quantizers), path, about, 20, half=True)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("judge") / "net_int8.onnx")


class Notes(Silent):
    def __init__(self) -> None:
        self.text = ""

    def note(self, text: str) -> None:
        self.text += f"{text}\n"


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_the_parser_reads_a_good_file_without_a_finding(exported: Path, target: str) -> None:
    report = lint_file(exported, target)
    assert report.parser == f"TensorRT for RTX {RTX.version()}"
    assert report.errors == 0


def test_the_parser_is_not_asked_for_another_engine(exported: Path) -> None:
    assert lint_file(exported, "openvino").parser == ""


def test_layers_that_are_meant_to_stay_in_float_are_no_fault(tmp_path: Path) -> None:
    path = export(tmp_path / "mixed_int8.onnx", ("b",))
    assert lint_file(path).errors == 0
    model = onnx.load(path)
    next(entry for entry in model.metadata_props if entry.key == "compress.float_layers").value = "[]"
    onnx.save(model, path)
    assert lint_file(path).errors == 1


def test_what_only_the_parser_knows_is_told_with_the_node(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "MaxPool"
    relu.attribute.extend([helper.make_attribute("kernel_shape", [1, 1]), helper.make_attribute("dilations", [2, 2])])
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    assert [finding for finding in lint(model, "tensorrt") if finding.severity == "error"] == []
    found = [finding for finding in lint_file(path, "tensorrt").findings if finding.severity == "error"]
    assert [finding.rule for finding in found] == ["tensorrt-parser"]
    assert relu.name in found[0].node
    with pytest.raises(ModelError, match=r"changed\.onnx does not suit target tensorrt"):
        enforce(path, "tensorrt")


def classifier(*nodes: NodeProto, out: str) -> ModelProto:
    """A graph around some float nodes, from ``x`` (1, 4, 8, 8) to ``out``, with a Q/DQ pair at its input."""
    pair = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"], name="dq"),
    ]
    values = {"s": np.float32(0.1), "w": np.zeros((4, 4, 2, 2), np.float32), "yes": np.array(True)}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    y = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph([*pair, *nodes], "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def branches(name: str) -> dict[str, GraphProto]:
    """The two branches of an If."""
    made = {}
    for branch, kind in (("then_branch", "Relu"), ("else_branch", "Neg")):
        end = helper.make_tensor_value_info(f"{name}_{branch}", TensorProto.FLOAT, [1, 4, 8, 8])
        made[branch] = helper.make_graph([helper.make_node(kind, ["d"], [end.name])], branch, [], [end])
    return made


def parser_findings(model: ModelProto, path: Path) -> dict[str, str]:
    onnx.save(model, path)
    found = ask_parser(path, Graph(model), "tensorrt-rtx", (), ())[1]
    return {finding.node: finding.message for finding in found}


def test_a_network_with_a_branch_is_read(tmp_path: Path) -> None:
    model = classifier(helper.make_node("If", ["yes"], ["y"], name="if", **branches("if")), out="y")
    assert not any("cannot be built" in message for message in parser_findings(model, tmp_path / "if.onnx").values())


def test_a_transposed_convolution_may_be_float(tmp_path: Path) -> None:
    up = helper.make_node("ConvTranspose", ["d", "w"], ["y"], name="up", strides=[2, 2])
    assert "not dequantized" not in str(parser_findings(classifier(up, out="y"), tmp_path / "up.onnx"))


def test_a_refused_node_without_a_name_is_found_by_its_place(tmp_path: Path) -> None:
    model = classifier(helper.make_node("Det", ["d"], ["u"]), helper.make_node("Relu", ["u"], ["y"]), out="y")
    (found,) = parser_findings(model, tmp_path / "det.onnx").items()
    assert found == ("u", "is refused: (Det) unsupported node")


def test_without_the_library_the_rules_decide_and_that_is_said(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    notes = Notes()
    enforce(exported, "tensorrt", progress=notes)
    assert "was checked by rules, not by TensorRT's own parser" in notes.text
    assert "pip install tensorrt_rtx_cu13_bindings" in notes.text


def test_the_command_says_who_has_read_the_file(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lint", str(exported), "--target", "tensorrt"])
    assert not ended.value.code
    assert f"0 error(s), 0 warning(s); read by TensorRT for RTX {RTX.version()}" in capsys.readouterr().out
