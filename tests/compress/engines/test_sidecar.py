from __future__ import annotations

from pathlib import Path

import pytest

from compress.engines.sidecar import sidecar_path, vouched, write_sidecar
from compress.errors import EngineError, PipelineError


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "net.plan"
    path.write_bytes(b"native code")
    (tmp_path / "net.onnx").write_bytes(b"graph")
    write_sidecar(
        path, tmp_path / "net.onnx", None, engine="tensorrt", version="10.3.0", device="Orin", threads=1, batch=1
    )
    return path


def test_matching_sidecar_vouches(plan: Path) -> None:
    assert vouched(plan, version="10.3.0", device="Orin").parent == "net.onnx"


@pytest.mark.parametrize("facts", [{"version": "11.4.0", "device": "Orin"}, {"version": "10.3.0", "device": "T4"}])
def test_another_version_or_gpu_is_refused(plan: Path, facts: dict[str, str]) -> None:
    with pytest.raises(EngineError, match="was built for"):
        vouched(plan, **facts)


@pytest.mark.parametrize(
    ("options", "facts", "fits"),
    [
        ({"version_compatible": True}, {"version": "10.13.0"}, True),
        ({"version_compatible": True}, {"version": "11.4.0"}, True),
        ({"version_compatible": True}, {"version": "10.0.1"}, False),  # older than what built it
        ({"version_compatible": True}, {"device": "T4"}, False),
        ({"hardware_compatible": True}, {"device": "A100"}, True),
        ({"hardware_compatible": True}, {"version": "10.13.0"}, False),
        ({"hardware_compatible": True}, {"engine": "onnxruntime"}, False),
    ],
)
def test_a_compatible_plan_moves_only_where_it_was_built_to_move(
    tmp_path: Path, options: dict[str, bool], facts: dict[str, str], fits: bool
) -> None:
    path = tmp_path / "net.plan"
    path.write_bytes(b"native code")
    built = {"engine": "tensorrt", "version": "10.3.0", "device": "Orin", "threads": 1, "batch": 1}
    write_sidecar(path, path, None, **built, options=options)
    if fits:
        assert vouched(path, **facts).options == options
    else:
        with pytest.raises(EngineError, match="was built for"):
            vouched(path, **facts)


@pytest.mark.parametrize("code", [b"other code", b"native", b""])
def test_changed_or_truncated_plan_is_refused(plan: Path, code: bytes) -> None:
    plan.write_bytes(code)
    with pytest.raises(EngineError, match="SHA-256 differs"):
        vouched(plan)


def test_missing_sidecar_is_refused_with_the_remedy(plan: Path) -> None:
    sidecar_path(plan).unlink()
    with pytest.raises(EngineError, match="--trust"):
        vouched(plan)


@pytest.mark.parametrize("text", ["{", '{"foo": 1}'])
def test_damaged_sidecar(plan: Path, text: str) -> None:
    sidecar_path(plan).write_text(text)
    with pytest.raises(PipelineError):
        vouched(plan)
