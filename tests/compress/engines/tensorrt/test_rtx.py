"""TensorRT for RTX, the real one, on a machine with or without a GPU: what it builds, refuses and records."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress.config import TargetConfig, load_config
from compress.engines.auto import build_fastest, candidates
from compress.engines.base import OpenOptions, build_engine, engine_of, open_engine
from compress.engines.metadata import Metadata
from compress.engines.sidecar import engine_sha256, read_sidecar
from compress.engines.tensorrt.plan import build_plan
from compress.engines.tensorrt.rtx import RTX
from compress.engines.tensorrt.runner import TensorRTEngine
from compress.engines.tensorrt.worker import read_apart
from compress.errors import BackendAbsent, ConfigError, EngineError
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.files import file_sha256
from compress.frontend.raising import raised
from compress.progress import SILENT
from compress.quantize.calibrate import calibrate

pytestmark = pytest.mark.tensorrt
T = TypeVar("T")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    try:
        RTX.module()
    except BackendAbsent as absent:
        pytest.skip(str(absent))


class Net(nn.Module):
    """A stem with pooling, a residual block of an odd width, and two outputs."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(channels, 10, 3, 2, 1), nn.MaxPool2d(2)
        self.a, self.b = nn.Conv2d(10, 7, 3, 1, 1), nn.Conv2d(7, 10, 3, 1, 1)
        self.mean, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        return {"map": x, "scores": self.fc(self.mean(x).flatten(1))}


def export(path: Path, target: str = "tensorrt-rtx", channels: int = 3) -> Path:
    torch.manual_seed(0)
    image = torch.randn(4, channels, 32, 32)
    calibrated = calibrate(raised(Net(channels).eval(), (channels, 32, 32)), [image], target)
    preprocess = Preprocess(32, mean=(0.5,) * channels, std=(0.5,) * channels, channels=channels)
    about = Metadata("net", "int8", preprocess, (), 1, 1, target, "0.1.0")
    export_onnx(lower(calibrated.net, calibrated.quantizers), path, about, 20, half=target.startswith("tensorrt"))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("rtx") / "net_int8.onnx")


@pytest.fixture(scope="module")
def plan(exported: Path) -> Path:
    return build_engine("tensorrt-rtx", exported, exported.parent / "build", rtx())


def rtx(*settings: str) -> TargetConfig:
    return load_config(None, ["target.engine=tensorrt-rtx", *settings]).target


def changed(exported: Path, path: Path, change: str) -> Path:
    """The file with one fault."""
    model: ModelProto = onnx.load(exported)
    if change == "unknown operator":
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        relu.op_type, relu.domain = "Unheard", "my.domain"
        model.opset_import.append(helper.make_opsetid("my.domain", 1))
    elif change == "open height":
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
        del model.graph.value_info[:]
    elif change == "fixed batch":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, path)
    return path


def test_the_plan_and_its_sidecar(exported: Path, plan: Path) -> None:
    assert plan.name == "net_int8.plan"
    assert engine_of(plan) == "tensorrt-rtx"
    record = read_sidecar(plan)
    assert record is not None
    assert (record.engine, record.version) == ("tensorrt-rtx", RTX.version())
    assert record.options == {"capabilities": ["8.6", "8.9", "12.0"]}
    assert (record.sha256, record.parent_sha256) == (engine_sha256(plan), file_sha256(exported))
    assert (record.layers["convolutions"], record.layers["int8_convolutions"]) == (3, 3)
    assert record.shapes == {"input": [[1, 3, 32, 32], [1, 3, 32, 32], [32, 3, 32, 32]]}
    assert record.metadata["compress.target"] == "tensorrt-rtx"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("['8.0']", ["8.0"]), ("['sm_86', 'SM89', '12.1', '8.6']", ["8.6", "8.9", "12.1"]), ("['75']", ["7.5"])],
)
def test_capabilities_are_chosen_by_any_usual_name(
    exported: Path, tmp_path: Path, given: str, meant: list[str]
) -> None:
    target = rtx(f"target.tensorrt_rtx.capabilities={given}")
    record = read_sidecar(build_engine("tensorrt-rtx", exported, tmp_path, target))
    assert record is not None
    assert record.options["capabilities"] == meant


def test_auto_builds_the_only_engine_of_the_target_though_it_does_not_run_here(exported: Path, tmp_path: Path) -> None:
    engines = candidates(rtx())
    assert engines == ("tensorrt-rtx",)
    assert build_fastest(engines, exported, tmp_path, rtx()).name == "net_int8.plan"


def test_a_file_that_is_cut_is_told_in_words(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(exported.read_bytes()[:1000])
    with pytest.raises(EngineError, match="is not a whole ONNX file"):
        build_engine("tensorrt-rtx", path, tmp_path / "build", rtx())


@pytest.mark.parametrize("given", ["['9.0']", "['8.6', 'ampere']", "[]"])
def test_an_unknown_capability_is_refused_when_the_configuration_is_read(given: str) -> None:
    with pytest.raises(ConfigError, match=r"target\.tensorrt_rtx\.capabilities"):
        rtx(f"target.tensorrt_rtx.capabilities={given}")


def test_progress_is_shown(exported: Path, tmp_path: Path) -> None:
    class Counting:
        notes: list[str] = []  # noqa: RUF012
        phases: list[str] = []  # noqa: RUF012

        def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
            self.phases.append(what)
            yield from items

        def note(self, text: str) -> None:
            self.notes.append(text)

    build_engine("tensorrt-rtx", exported, tmp_path, rtx(), progress=Counting())
    assert "3 of 3 convolutions in INT8" in "\n".join(Counting.notes)
    build_plan(RTX, RTX.module(), exported, rtx(), tmp_path, Counting())
    assert Counting.phases


def test_ctrl_c_during_a_build_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    class Stopping:
        def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
            yield from list(items)[:1]
            raise KeyboardInterrupt

        def note(self, text: str) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        build_plan(RTX, RTX.module(), exported, rtx(), tmp_path, Stopping())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unknown operator", r"TensorRT for RTX cannot build .*changed\.onnx: node '.*\(Unheard\)"),
        ("open height", "only the batch may be dynamic"),
        ("fixed batch", "the file is made for batches of 4, not 1"),
    ],
)
def test_a_file_that_cannot_be_built_is_told_in_words(
    exported: Path, tmp_path: Path, change: str, message: str
) -> None:
    path = changed(exported, tmp_path / "changed.onnx", change)
    with pytest.raises(EngineError, match=message) as caught:
        build_engine("tensorrt-rtx", path, tmp_path / "build", rtx())
    assert "\n" not in caught.value.message
    assert caught.value.message.count("cannot build") < 2  # said once, not by each process
    assert ("use batch 4" in caught.value.remedy) == (change == "fixed batch")
    assert list((tmp_path / "build").iterdir()) == []


@pytest.mark.parametrize("target", ["ort-x86", "openvino", "tensorrt"])
def test_the_file_of_another_target_is_refused(tmp_path: Path, target: str) -> None:
    path = export(tmp_path / "net_int8.onnx", target)
    with pytest.raises(EngineError, match=f"was quantized for target {target}"):
        build_engine("tensorrt-rtx", path, tmp_path / "build", rtx())


def test_one_channel_and_a_batch_of_64(tmp_path: Path) -> None:
    exported = export(tmp_path / "grey_int8.onnx", channels=1)
    record = read_sidecar(build_engine("tensorrt-rtx", exported, tmp_path, rtx("target.batch=64")))
    assert record is not None
    assert record.shapes == {"input": [[1, 1, 32, 32], [64, 1, 32, 32], [64, 1, 32, 32]]}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_does_not_harm_the_process_that_asks(
    exported: Path, tmp_path: Path, data: st.DataObject
) -> None:
    whole = exported.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damage = data.draw(st.binary(min_size=1, max_size=8))
    cut = data.draw(st.booleans())
    path = tmp_path / "damaged.onnx"
    path.write_bytes(whole[:at] if cut else whole[:at] + damage + whole[at + len(damage) :])
    with suppress(EngineError):  # which says that the parser crashed
        parsed = read_apart(RTX, path)[0]
        assert parsed.refused or parsed.layers


# --- opening ----------------------------------------------------------------------------------------------------------


@no_gpu
def test_without_a_gpu_opening_a_plan_says_just_that(plan: Path) -> None:
    with pytest.raises(
        BackendAbsent, match=r"TensorRT for RTX cannot run .*: missing an NVIDIA GPU that torch can see"
    ):
        open_engine(plan)


def open_as_if(plan: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *, trust: bool = False) -> str:
    """How a plan is refused on a machine whose GPU torch sees, but that has no driver."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    with pytest.raises(EngineError) as caught:
        TensorRTEngine(RTX, plan, OpenOptions(device="cuda", trust=trust))
    return str(caught.value)


@no_gpu
def test_a_plan_that_fits_reaches_the_runtime_which_misses_the_driver(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = open_as_if(plan, monkeypatch, (8, 6))
    assert "rejects the plan" in message
    assert "CUDA driver version is insufficient" in message


def test_a_plan_for_other_gpus_is_refused_with_the_setting_that_helps(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = open_as_if(plan, monkeypatch, (7, 5))
    assert "was built for GPUs of compute capability 8.6, 8.9, 12.0; this GPU, a GPU, has 7.5" in message
    assert "target.tensorrt_rtx.capabilities=['7.5']" in message


@pytest.mark.parametrize("fault", ["truncated", "no sidecar", "other version", "other engine"])
def test_a_plan_that_is_not_vouched_for_is_not_deserialized(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    copy, record = tmp_path / plan.name, json.loads(Path(f"{plan}.json").read_text())
    copy.write_bytes(plan.read_bytes()[: -100 if fault == "truncated" else None])
    record |= {"other version": {"version": "1.6.1.120"}, "other engine": {"engine": "tensorrt"}}.get(fault, {})
    if fault != "no sidecar":
        Path(f"{copy}.json").write_text(json.dumps(record))
    message = open_as_if(copy, monkeypatch, (8, 6))
    wanted = {
        "truncated": "the SHA-256 differs",
        "no sidecar": "has no sidecar",
        "other version": f"was built for version 1.6.1.120, not {RTX.version()}",
        "other engine": "was built for engine tensorrt, not tensorrt-rtx",
    }
    assert wanted[fault] in message
    assert "--trust" in message


@no_gpu
def test_a_truncated_plan_that_is_trusted_is_rejected_by_tensorrt_itself(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / plan.name
    copy.write_bytes(plan.read_bytes()[:-100])
    assert "Serialization assertion" in open_as_if(copy, monkeypatch, (8, 6), trust=True)


# --- the packages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if package != "tensorrt_rtx_bindings":
        monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", None)
    with pytest.raises(BackendAbsent, match=f"missing the Python package '{package}'") as caught:
        RTX.require_builder("cuda")
    pins = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(pin in str(caught.value) for pin in pins["tensorrt-rtx"])


def test_bindings_of_another_version_are_refused_because_they_would_crash(exported: Path, tmp_path: Path) -> None:
    package = tmp_path / "tensorrt_rtx_bindings"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "1.4.0.76"\nclass Builder: ...\n')
    code = "from compress.engines.tensorrt.rtx import RTX; RTX.require_builder('cuda')"
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[4])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    version = ".".join(RTX.version().split(".")[:3])
    assert f"missing its libraries (they have version {version}, but tensorrt_rtx_bindings has 1.4.0.76)" in done.stderr


# --- what its parser says of a file -----------------------------------------------------------------------------------


def test_a_float_file_is_read_and_its_layers_are_counted(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 1, 1], [0.0] * 12)
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], "conv")], "g", [x], [y], [weight])
    path = tmp_path / "float.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    parsed = read_apart(RTX, path)[0]
    assert (parsed.convolutions, parsed.int8) == (1, 0)
    assert [fault.node for fault in parsed.faults] == ["conv"]
    assert build_engine("tensorrt-rtx", path, tmp_path, rtx(), progress=SILENT).is_file()  # a float plan is no fault
