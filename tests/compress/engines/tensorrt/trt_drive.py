"""Runs in a process of its own with the real bindings: drives our code as far as it goes without a GPU.

Writes a JSON object: what each part did. The stub libraries give no builder and no runtime, as a TensorRT whose CUDA
does not start does; everything that needs neither is the real thing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import tensorrt as trt
import torch

from compress.config import TargetConfig
from compress.engines.base import OpenOptions
from compress.engines.sidecar import write_sidecar
from compress.engines.tensorrt.native import logger_of
from compress.engines.tensorrt.plan import build_plan, make_monitor
from compress.engines.tensorrt.runner import TensorRTEngine
from compress.engines.tensorrt.standard import TENSORRT
from compress.errors import EngineError
from compress.progress import SILENT

T = TypeVar("T")
GPU = "a GPU"


class Counting:
    """A progress that remembers what it showed."""

    def __init__(self) -> None:
        self.shown: list[object] = []

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        for done, item in enumerate(items):
            self.shown.append([what, done, total])
            yield item
        self.shown.append("closed")

    def note(self, text: str) -> None:
        raise AssertionError(text)


def logged() -> list[str]:
    logger = logger_of(trt)
    logger.log(trt.ILogger.Severity.WARNING, "a warning")
    logger.log(trt.ILogger.Severity.ERROR, "an error")
    return list(logger.errors)


def monitored() -> list[object]:
    progress = Counting()
    monitor = make_monitor(trt, progress)
    base = trt.IProgressMonitor  # calls go the way that TensorRT's do: through the bindings, which dispatch to Python
    base.phase_start(monitor, "build", None, 2)
    base.phase_start(monitor, "tune", "build", 9)
    assert base.step_complete(monitor, "tune", 0)
    base.phase_finish(monitor, "tune")
    assert base.step_complete(monitor, "build", 0)
    base.phase_finish(monitor, "build")
    return progress.shown


def interrupted() -> list[bool]:
    class Stopping(Counting):
        def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
            yield from list(items)[:1]
            raise KeyboardInterrupt

    monitor = make_monitor(trt, Stopping())
    trt.IProgressMonitor.phase_start(monitor, "build", None, 2)
    goes_on = trt.IProgressMonitor.step_complete(monitor, "build", 0)
    return [goes_on, monitor.stopped]


def built() -> str:
    target = TargetConfig.model_validate({"engine": "tensorrt"})
    try:
        build_plan(TENSORRT, trt, Path("net.onnx"), target, Path(), SILENT)
    except EngineError as error:
        return str(error)
    return "built"


def opened() -> dict[str, str]:
    """How a plan is refused, by what is wrong with it; one that is vouched for gets as far as TensorRT's runtime."""
    torch.cuda.get_device_name = lambda: GPU  # type: ignore[assignment]  # all that is asked of the GPU before that
    here = {"engine": "tensorrt", "version": trt.__version__, "device": GPU, "threads": 1, "batch": 1}
    cases: dict[str, dict[str, Any] | None] = {
        "vouched": here,
        "no sidecar": None,
        "other engine": {**here, "engine": "onnxruntime"},
        "other version": {**here, "version": "9.3.0"},
        "other version, compatible": {**here, "version": "9.3.0", "options": {"version_compatible": True}},
        "other gpu": {**here, "device": "Orin"},
        "other gpu, compatible": {**here, "device": "Orin", "options": {"hardware_compatible": True}},
        "truncated": here,
    }
    messages = {}
    for name, facts in cases.items():
        with TemporaryDirectory() as folder:
            plan = Path(folder) / "net.plan"
            plan.write_bytes(b"native code")
            if facts is not None:
                write_sidecar(plan, plan, None, **facts)
            if name == "truncated":
                plan.write_bytes(b"native")
            messages[name] = _refusal(plan, trust=False)
            messages[f"{name}, trusted"] = _refusal(plan, trust=True)
    return messages


def _refusal(plan: Path, *, trust: bool) -> str:
    try:
        TensorRTEngine(TENSORRT, plan, OpenOptions(device="cuda", trust=trust))
    except EngineError as error:
        return str(error)
    return "opened"


if __name__ == "__main__":
    parts = (logged, monitored, interrupted, built, opened)
    json.dump({part.__name__: part() for part in parts}, sys.stdout)
