"""The real TensorRT bindings without TensorRT: three stub libraries satisfy the loader; nothing above them is faked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from trt_bindings import Bindings, folders, version_of

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


@pytest.fixture(
    scope="session", params=folders() or [None], ids=lambda folder: version_of(folder) if folder else "none"
)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    if request.param is None:
        pytest.skip("the TensorRT bindings are not installed; tests/compress/engines/tensorrt/trt_bindings.py says how")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the stub libraries with")
    version = version_of(request.param)
    stubs = tmp_path_factory.mktemp("stubs")
    source = stubs / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS))
    for library in _LIBRARIES:
        output = stubs / f"lib{library}.so.{version.partition('.')[0]}"
        subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", output, source], check=True, timeout=60)
    # The package `tensorrt` that users import only re-exports the bindings; it also insists on the real libraries.
    (stubs / "tensorrt.py").write_text("from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")
    paths = [str(stubs), str(request.param), str(_REPOSITORY)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": os.pathsep.join(paths)}
    return Bindings(version, environment)


collect_ignore = ["trt_probe.py", "trt_drive.py"]  # programs that run with the bindings; doctests are not looked for
