from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from compress.errors import ModelError
from compress.export.parity import Reference, check, run_onnx


def save(path: Path, batch: int = 1, op: str = "Relu") -> Path:
    text = f"""<ir_version: 10, opset_import: ["": 20]>
    net (float[{batch}, 3] input) => (float[{batch}, 3] output) {{ output = {op} (input) }}"""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_the_same_network_is_the_same(tmp_path: Path) -> None:
    parity = check(save(tmp_path / "relu.onnx"), Reference("torch", torch.relu, 1e-6), torch.randn(4, 3))
    assert (parity.images, parity.max_abs, parity.agreement) == (4, 0.0, 1.0)


@pytest.mark.parametrize(
    ("network", "reason"),
    [({"op": "NoSuchOperation"}, "NoSuchOperation"), ({"batch": 2}, "invalid dimensions")],
    ids=["load", "run"],
)
def test_what_onnx_runtime_does_not_take_is_an_error_in_words(
    tmp_path: Path, network: dict[str, object], reason: str
) -> None:
    path = save(tmp_path / "net.onnx", **network)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=rf"cannot run net\.onnx: .*{reason}[\s\S]*please report it"):
        run_onnx(path, torch.randn(1, 3))
