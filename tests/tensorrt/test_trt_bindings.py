"""Every attribute and signature of TensorRT that we use exists in the real bindings, of 10.x and of 11.x."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from trt_bindings import Bindings
from trt_usage import Usage, usage

from compress.engines import tensorrt

pytestmark = pytest.mark.tensorrt
_HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def used() -> Usage:
    return usage(Path(tensorrt.__file__))


@pytest.fixture(scope="module")
def found(bindings: Bindings, used: Usage) -> dict[str, Any]:
    members: dict[str, list[str]] = defaultdict(list)
    for owner, name, _ in used.calls:
        members[owner].append(name)
    asked = json.dumps({"paths": sorted(used.paths), "members": members})
    process = subprocess.run(
        [sys.executable, str(_HERE / "trt_probe.py")],
        input=asked,
        capture_output=True,
        text=True,
        env=bindings.environment,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_the_source_is_read(used: Usage) -> None:
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" in used.paths
    assert ("Builder", "build_serialized_network", 2) in used.calls
    assert ("IExecutionContext", "execute_async_v3", 1) in used.calls
    assert ("Runtime", "__init__", 1) in used.calls


def test_version(bindings: Bindings, found: dict[str, Any]) -> None:
    assert found["version"] == bindings.version


def test_every_name_exists(found: dict[str, Any]) -> None:
    assert [path for path, there in found["paths"].items() if not there] == []
    missing = [
        f"{owner}.{name}" for owner, names in found["members"].items() for name, text in names.items() if text is None
    ]
    assert missing == []


def test_every_call_fits_its_signature(used: Usage, found: dict[str, Any]) -> None:
    for owner, name, arguments in used.calls:
        ranges = _arguments(found["members"][owner][name])
        if arguments is not None:
            assert ranges, f"{owner}.{name} is not callable"
            assert any(least <= arguments <= most for least, most in ranges), f"{owner}.{name} takes {ranges}"


def test_our_logger_keeps_errors_only(found: dict[str, Any]) -> None:
    assert found["errors"] == ["an error"]


def test_float32_is_float32(found: dict[str, Any]) -> None:
    assert "float32" in found["float32"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_with_the_package_but_no_gpu_it_says_just_that(bindings: Bindings, tmp_path: Path) -> None:
    code = "from compress.engines.tensorrt import require; require('cuda')"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=bindings.environment, timeout=120
    )
    assert "BackendAbsent: TensorRT cannot run here: missing an NVIDIA GPU that torch can see" in process.stderr


def _arguments(docstring: str) -> list[tuple[int, int]]:
    """Least and most arguments of each overload in a pybind11 docstring, ``self`` apart."""
    found = []
    for signature in re.findall(r"\w+\((self: .*)\) -> ", docstring):
        parameters = re.findall(r"(\w+): ((?:[^,\[<]|\[[^\]]*\]|<[^>]*>)*)", signature)[1:]
        optional = sum(" = " in kind for _, kind in parameters)
        found.append((len(parameters) - optional, len(parameters)))
    return found
