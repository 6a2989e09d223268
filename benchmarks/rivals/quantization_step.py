"""Run one quantization in a process of its own, and measure its time and memory.

The clock starts when the interpreter, the libraries and the list of calibration images are loaded. A rival starts from
the FP32 file, ours from the stage folder of the float network, both on disk. The clock stops when the quantized network
is ready. Reading and preprocessing the images counts, and is the same for all. A rival's quantizer writes its file
within that time; ours exports afterwards, and the export time is reported separately. Each tool uses its default number
of threads.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.evaluation.images import calibration_split
from benchmarks.results.rivals import Step
from benchmarks.rivals.peers import PEERS, load
from benchmarks.rivals.peers.source import Images, read
from benchmarks.timing.worker import peak_memory
from calibration.sampler import calibration_sample
from calibration.split import Split
from compress.engines.openvino import without_telemetry
from compress.errors import ConfigError, EngineError, PipelineError

Write = Callable[[], Path]


@dataclass(frozen=True)
class Job:
    """One quantization.

    Attributes:
        name: a rival, or a target for ours.
        fp32: the exported FP32 file.
        model: folder of the same network for ours (``model.json`` and ``model.safetensors``); rivals need none.
        data: where the calibration images are; see ``benchmarks.evaluation.images``.
        images, seed: how many, and which.
        trust: import the factory that ``model.json`` names.
    """

    name: str
    fp32: Path
    model: Path | None
    data: str
    images: int
    seed: int
    trust: bool = False

    def sample(self) -> Split:
        """The calibration images.

        Raises:
            DataError: they cannot be read, or are fewer than asked for.
        """
        split = calibration_split(self.data)
        return split.subset(calibration_sample(split, self.images, seed=self.seed), "calibration")


def run(job: Job, folder: Path) -> Step:
    """Do it in this process; the file goes into ``folder``.

    Raises:
        ConfigError: no peer or target has that name, or ours is asked for without ``model``.
        BackendAbsent: a library of the peer is not installed.
        PipelineError: it cannot be read or quantized.
    """
    work = _peer(job, folder) if job.name in PEERS else _ours(job, folder)
    start_bytes, start = psutil.Process().memory_info().rss, time.perf_counter()
    write = work()
    stop, peak_bytes = time.perf_counter(), peak_memory()
    path = write()
    return Step(path.name, stop - start, time.perf_counter() - stop, start_bytes, peak_bytes)


def run_apart(job: Job, folder: Path) -> Step:
    """Like ``run``, in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_quiet_stdout) as pool:
        try:
            return pool.submit(run, job, folder).result()
        except BrokenProcessPool:
            raise EngineError(
                f"the process of '{job.name}' died", remedy="out of memory? give fewer --images, or leave it out"
            ) from None
        except PipelineError as error:
            error.message = f"{job.name}: {error.message}"
            raise
        except Exception as error:  # whatever another tool raises
            raise EngineError(f"{job.name}: {type(error).__name__}: {error}") from error


def _quiet_stdout() -> None:
    """Send the libraries' progress bars to standard error: standard output is for the table."""
    os.dup2(2, 1)


def _peer(job: Job, folder: Path) -> Callable[[], Write]:
    quantize, sample = load(job.name), job.sample()
    stem = job.fp32.stem.removesuffix("_fp32")
    out = folder / f"{stem}_{job.name}{PEERS[job.name].suffix}"

    def work() -> Write:
        source = read(job.fp32)
        quantize(source, Images(sample, source.metadata.preprocess), out)
        return lambda: out

    return work


def _ours(job: Job, folder: Path) -> Callable[[], Write]:
    with without_telemetry():
        from benchmarks.rivals.quantization_ours import quantize  # imports what a peer has no need of
        from compress.models.model import ANY

    if job.model is None:
        raise ConfigError(f"'{job.name}' needs the float network", remedy="give --model, such as runs/NAME/baseline")
    model, sample, factory = job.model, job.sample(), ANY if job.trust else ""
    return lambda: quantize(job.fp32, model, sample, job.name, folder, factory=factory)
