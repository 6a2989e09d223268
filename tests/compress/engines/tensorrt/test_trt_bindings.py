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
from trt_usage import Usage, sources, untold, usage

pytestmark = pytest.mark.tensorrt
_HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def used(any_bindings: Bindings) -> Usage:
    return usage(any_bindings.edition)


@pytest.fixture(scope="module")
def found(any_bindings: Bindings, used: Usage) -> dict[str, Any]:
    members: dict[str, set[str]] = defaultdict(set)
    for owner, name, *_ in (*used.calls, *used.stores, *used.overrides):
        members[owner].add(name)
    asked = {"paths": sorted(used.paths), "members": {owner: sorted(names) for owner, names in members.items()}}
    return json.loads(_run(any_bindings, "trt_probe.py", json.dumps(asked)))


@pytest.fixture(scope="module")
def driven(bindings: Bindings) -> dict[str, Any]:
    return json.loads(_run(bindings, "trt_drive.py", ""))


def test_the_sources_are_read(used: Usage) -> None:
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" in used.paths
    assert ("Builder", "build_serialized_network", 2) in used.calls
    assert ("IExecutionContext", "execute_async_v3", 1) in used.calls
    assert ("Runtime", "__init__", 1) in used.calls
    assert ("IBuilderConfig", "progress_monitor") in used.stores
    assert ("ILogger", "log", ("severity", "msg")) in used.overrides


@pytest.mark.parametrize("edition", ["tensorrt", "tensorrt-rtx"])
def test_nothing_that_comes_from_tensorrt_has_a_name_that_the_reading_does_not_know(edition: str) -> None:
    assert [line for source in sources(edition) for line in untold(source)] == []


def test_version(any_bindings: Bindings, found: dict[str, Any]) -> None:
    assert found["version"] == any_bindings.version


def test_every_name_exists(found: dict[str, Any]) -> None:
    assert [path for path, there in found["paths"].items() if not there] == []
    missing = [
        f"{owner}.{name}" for owner, names in found["members"].items() for name, told in names.items() if told is None
    ]
    assert missing == []


def test_every_call_fits_its_signature(used: Usage, found: dict[str, Any]) -> None:
    for owner, name, arguments in used.calls:
        signatures = _signatures(found["members"][owner][name]["doc"])
        if arguments is not None:
            assert signatures, f"{owner}.{name} is not callable"
            assert any(least <= arguments <= len(names) for least, names in signatures), f"{owner}.{name}: {signatures}"


def test_every_attribute_that_is_set_can_be(used: Usage, found: dict[str, Any]) -> None:
    assert [pair for pair in used.stores if not found["members"][pair[0]][pair[1]]["settable"]] == []


def test_every_method_of_ours_takes_what_tensorrt_hands_it(used: Usage, found: dict[str, Any]) -> None:
    for owner, name, arguments in used.overrides:
        assert arguments in [names for _, names in _signatures(found["members"][owner][name]["doc"])], f"{owner}.{name}"


def test_float32_is_float32(found: dict[str, Any]) -> None:
    assert "float32" in found["float32"]


def test_our_logger_keeps_errors_only(driven: dict[str, Any]) -> None:
    assert driven["logged"] == ["an error"]


def test_the_progress_monitor_shows_the_outermost_phase(driven: dict[str, Any]) -> None:
    assert driven["monitored"] == [["build", 0, 2], ["build", 1, 2], "closed"]


def test_ctrl_c_ends_the_build_and_does_not_pass_through_tensorrt(driven: dict[str, Any]) -> None:
    assert driven["interrupted"] == [False, True]


def test_a_tensorrt_that_does_not_start_is_told_in_words(driven: dict[str, Any]) -> None:
    assert driven["built"].startswith("TensorRT cannot start: it gave no reason")
    assert "nvidia-smi" in driven["built"]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("no sidecar", "has no sidecar"),
        ("other engine", "was built for engine onnxruntime"),
        ("other version", "was built for version 9.3.0"),
        ("other gpu", "was built for device Orin"),
        ("truncated", "SHA-256 differs"),
    ],
)
def test_a_plan_that_is_not_vouched_for_is_not_deserialized(driven: dict[str, Any], plan: str, message: str) -> None:
    assert message in driven["opened"][plan]
    assert "--trust" in driven["opened"][plan]
    assert driven["opened"][f"{plan}, trusted"].startswith("TensorRT cannot start")


@pytest.mark.parametrize("plan", ["vouched", "other version, compatible", "other gpu, compatible"])
def test_a_plan_that_is_vouched_for_reaches_the_runtime(driven: dict[str, Any], plan: str) -> None:
    assert driven["opened"][plan].startswith("TensorRT cannot start")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_with_the_package_but_no_gpu_it_says_just_that(bindings: Bindings) -> None:
    code = "from compress.engines.tensorrt.standard import TENSORRT; TENSORRT.require('cuda')"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=bindings.environment, timeout=120
    )
    assert (
        "BackendAbsent: TensorRT cannot run on this machine: missing an NVIDIA GPU that torch can see" in process.stderr
    )


def _run(bindings: Bindings, script: str, given: str) -> str:
    process = subprocess.run(
        [sys.executable, str(_HERE / script), bindings.edition],
        input=given,
        capture_output=True,
        text=True,
        env=bindings.environment,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def _signatures(docstring: str) -> list[tuple[int, tuple[str, ...]]]:
    """Of each overload in a pybind11 docstring: how many arguments it needs, and the names of all; ``self`` apart."""
    found = []
    for signature in re.findall(r"\w+\((self: .*)\) -> ", docstring):
        parameters = re.findall(r"(\w+): ((?:[^,\[<]|\[[^\]]*\]|<[^>]*>)*)", signature)[1:]
        optional = sum(" = " in kind for _, kind in parameters)
        found.append((len(parameters) - optional, tuple(name for name, _ in parameters)))
    return found
