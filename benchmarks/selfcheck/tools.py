"""Run the runtimes' own timing tools as their documentation says, and read their output."""

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
    """A timing tool and the number that it prints.

    Attributes:
        command: the command line; ``{iterations}`` is replaced by the number of inferences that take some seconds.
        printed: regular expression for the line with the milliseconds.
    """

    name: str
    command: Sequence[str]
    statistic: Literal["mean", "median"]
    printed: str

    def run(self, about_ms: float, processors: Sequence[int] | None = None) -> float:
        """Run the tool and return its milliseconds per inference.

        Args:
            about_ms: rough latency, from which the number of inferences follows.
            processors: processors to bind the tool to.

        Raises:
            EngineError: the tool failed, or its output has no matching line.
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
    """The tool for an engine file: onnxruntime_test (in ONNX Runtime's Python package) or OpenVINO's benchmark_app.

    Raises:
        EngineError: no tool supports this sort of file or these settings.
        BackendAbsent: the tool is not installed.
    """
    with open_for(engine, settings) as opened:
        shape = [settings.batch, *opened.inputs[0].shape[1:]]
    if engine.suffix == ".onnx":
        cores = psutil.cpu_count(logical=False) or 1
        if (cores, 1) != (settings.threads, settings.batch):
            raise EngineError(
                "onnxruntime_test supports only batch 1 and one thread per core",
                remedy=f"give --threads {cores} and leave out --batch",
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
    raise EngineError(f"there is no benchmark tool to compare with for {engine}", remedy="give an .onnx or .xml file")
