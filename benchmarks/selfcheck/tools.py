"""The runtimes' own timing tools, each run as its makers say and read as it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.timing.machine import bound_to
from benchmarks.timing.worker import Settings, open_for
from compress.errors import BackendAbsent, EngineError

_SECONDS = 5


@dataclass(frozen=True)
class RivalTool:
    """A tool, and the number that it prints.

    Attributes:
        command: the program; ``{iterations}`` stands for how many inferences fill some seconds.
        printed: pattern of the line with the milliseconds.
    """

    name: str
    command: Sequence[str]
    statistic: Literal["mean", "median"]
    printed: str

    def run(self, about_ms: float, processors: Sequence[int] | None = None) -> float:
        """Milliseconds an inference, of which one takes ``about_ms``; ``processors`` are what the tool is bound to.

        Raises:
            EngineError: it failed, or printed no such line.
        """
        iterations = max(20, round(_SECONDS * 1e3 / about_ms))
        command = [part.format(iterations=iterations) for part in self.command]
        with bound_to(processors):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(self.printed, done.stdout)
        if done.returncode or found is None:
            raise EngineError(f"{self.name} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        return float(found[1])


def rival(engine: Path, settings: Settings) -> RivalTool:
    """The tool for an engine file: ONNX Runtime's perf_test in Python, or OpenVINO's benchmark_app.

    Raises:
        EngineError: there is none for this kind of file, or none for these settings.
        BackendAbsent: it is not installed.
    """
    with open_for(engine, settings) as opened:
        shape = [settings.batch, *opened.inputs[0].shape[1:]]
    if engine.suffix == ".onnx":
        cores = psutil.cpu_count(logical=False) or 1
        if (cores, 1) != (settings.threads, settings.batch):
            raise EngineError(
                "onnxruntime_test takes one image at a time, on a thread for each core",
                remedy=f"hold it against the harness with --threads {cores}",
            )
        command = [sys.executable, "-m", "onnxruntime.tools.onnxruntime_test", str(engine), "{iterations}"]
        return RivalTool("onnxruntime_test", command, "mean", r"avg latency: ([\d.]+) ms")
    if engine.suffix == ".xml":
        program = Path(sys.executable).parent / "benchmark_app"
        if not program.exists():
            raise BackendAbsent("benchmark_app is not installed", remedy='`pip install --editable ".[openvino]"`')
        options = {
            "-m": str(engine),
            "-d": "CPU",
            "-hint": "none",
            "-api": "sync",
            "-nstreams": "1",
            "-nthreads": str(settings.threads),
            "-data_shape": str(shape).replace(" ", ""),  # -shape would fix the batch, which the file leaves open
            "-infer_precision": "f32",  # as our engines; its default is bfloat16 where the processor has that
            "-t": str(_SECONDS),
        }
        command = [str(program), *(text for pair in options.items() for text in pair)]
        return RivalTool("benchmark_app", command, "median", r"Median:\s+([\d.]+) ms")
    raise EngineError(f"no runtime's own tool times {engine}", remedy="give an .onnx or .xml file")
