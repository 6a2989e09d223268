"""The real TensorRT bindings without TensorRT: three stub libraries satisfy the loader; nothing above them is faked.

TensorRT for RTX is there whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from trt_bindings import Bindings, folders, version_of

from compress.engines.tensorrt.rtx import RTX
from compress.errors import BackendAbsent

_SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_REPOSITORY = Path(__file__).parents[4]


_WITHOUT = "the TensorRT bindings are not installed; tests/compress/engines/tensorrt/trt_bindings.py says how"


@pytest.fixture(
    scope="session", params=folders() or [None], ids=lambda folder: version_of(folder) if folder else "none"
)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    """Those of TensorRT, on stub libraries."""
    return _on_stubs(request.param, tmp_path_factory)


@pytest.fixture(scope="session", params=[*folders(), RTX], ids=lambda it: it.name if it is RTX else version_of(it))
def any_bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    """Those of TensorRT, on stub libraries, and those of TensorRT for RTX on its own."""
    if request.param is not RTX:
        return _on_stubs(request.param, tmp_path_factory)
    try:
        return Bindings(RTX.name, RTX.module().__version__, dict(os.environ))
    except BackendAbsent as absent:
        pytest.skip(str(absent))


def _on_stubs(folder: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    if folder is None:
        pytest.skip(_WITHOUT)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the stub libraries with")
    version = version_of(folder)
    stubs = tmp_path_factory.mktemp("stubs")
    source = stubs / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS))
    for library in _LIBRARIES:
        output = stubs / f"lib{library}.so.{version.partition('.')[0]}"
        subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", output, source], check=True, timeout=60)
    # The package `tensorrt` that users import only re-exports the bindings; it also insists on the real libraries.
    (stubs / "tensorrt.py").write_text("from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")
    paths = [str(stubs), str(folder), str(_REPOSITORY)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": os.pathsep.join(paths)}
    return Bindings("tensorrt", version, environment)


collect_ignore = ["trt_probe.py", "trt_drive.py"]  # programs that run with the bindings; doctests are not looked for
