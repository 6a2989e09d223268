#!/usr/bin/env python3
"""Times the files that manifest.json lists, on the machine where it runs: ONNX files, or plans of TensorRT for RTX.

The script needs only Python 3.8 or later, numpy and the engine's package; README.txt names it. Several
files are timed together and take turns in short rounds, so that other work on the machine slows all of them alike. One
reference file is timed in every round and shows how the machine's speed drifts. Each result is appended to
results.jsonl at once: if the script is stopped, run it again and it continues.

    python3 measure.py
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_S = 0.001  # a sample lasts at least this long, so that the clock's own cost does not count
SAMPLES = 3  # of one file in a round, at least
TOGETHER = 8  # files that take turns at a time, besides the reference


class OnnxRuntime:
    """CPU sessions, with the settings of the engine that ships."""

    suffix = ".onnx"

    def __init__(self, threads: int) -> None:
        import onnxruntime

        self.ort, self.threads = onnxruntime, threads
        self.version, self.device = onnxruntime.__version__, processor()
        # With one thread the calling thread does all the work: its processor time is the latency on an idle machine,
        # even if this machine is busy.
        self.clock = time.thread_time if threads == 1 else time.perf_counter

    def open(self, path: Path, evict: int) -> Callable[[int], float]:
        options = self.ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = self.ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = {node.name: noise(node.shape) for node in session.get_inputs()}
        return timed(lambda: session.run(None, feeds), self.clock, evict)

    def run(self, path: Path, value: float) -> Any:
        session = self.ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        node = session.get_inputs()[0]
        return session.run(None, {node.name: np.full(node.shape, value, np.float32)})[0]


class OpenVino:
    """One request on the CPU, with the settings of the engine that ships."""

    suffix = ".onnx"

    def __init__(self, threads: int) -> None:
        os.environ.setdefault("CI", "true")  # otherwise the import sends telemetry
        import openvino

        self.ov, self.core = openvino, openvino.Core()
        self.version, self.device = openvino.__version__, processor()
        self.settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }

    def open(self, path: Path, evict: int) -> Callable[[int], float]:
        model = self.core.compile_model(str(path), "CPU", self.settings)
        request = model.create_infer_request()
        for port in model.inputs:
            request.set_tensor(port, self.ov.Tensor(noise(list(port.shape))))
        return timed(request.infer, time.perf_counter, evict)

    def run(self, path: Path, value: float) -> Any:
        model = self.core.compile_model(str(path), "CPU", self.settings)
        return model([np.full(list(model.input(0).shape), value, np.float32)])[0]


class TensorRT:
    """Plans, replayed as CUDA graphs and timed by CUDA events; those of TensorRT 10 and 11 are built here."""

    suffix = ".onnx"

    def __init__(self, threads: int) -> None:
        self.trt = trt = self.load()
        self.cuda = Cuda()
        self.version, self.device = trt.__version__, self.cuda.name()
        self.logger = trt.Logger(trt.Logger.ERROR)
        self.timings = b""  # TensorRT's timing cache, which makes the next build faster

    def load(self) -> Any:
        return importlib.import_module("tensorrt")

    def open(self, path: Path, evict: int) -> Callable[[int], float]:
        trt = self.trt
        runtime = trt.Runtime(self.logger)
        engine = runtime.deserialize_cuda_engine(self.plan(path))
        if engine is None:
            sys.exit(f"{path}: {trt.__name__} {self.version} rejects the plan on {self.device}")
        context = self.context(engine)
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            context.set_tensor_address(name, self.cuda.buffer(noise(list(engine.get_tensor_shape(name)))))
        stream = self.cuda.stream()

        def enqueue() -> None:
            if not context.execute_async_v3(stream.value):
                sys.exit(f"TensorRT cannot run {path}")

        enqueue()  # the first run initializes TensorRT, which cannot be captured
        self.cuda.call("cudaStreamSynchronize", stream)
        launch = self.cuda.captured(stream, enqueue)
        alive = (runtime, engine, context)  # keep them alive as long as the CUDA graph
        return lambda count: self.cuda.elapsed(stream, launch, count) if alive else 0.0

    def context(self, engine: Any) -> Any:
        return engine.create_execution_context()

    def plan(self, path: Path) -> bytes:
        """Build the plan of an ONNX file, strongly typed."""
        trt = self.trt
        builder = trt.Builder(self.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse(path.read_bytes()):
            problem = parser.get_error(0)
            sys.exit(f"TensorRT cannot read {path}: {problem.desc()}")
        config = builder.create_builder_config()
        cache = config.create_timing_cache(self.timings)
        config.set_timing_cache(cache, False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            sys.exit(f"TensorRT cannot build {path}")
        cache = config.get_timing_cache()
        self.timings = bytes(cache.serialize())
        return bytes(plan)


class TensorRTForRTX(TensorRT):
    """Plans that the kit holds. A plan's kernels are compiled for this GPU when it is opened, before they are timed."""

    suffix = ".plan"
    compiled: Any = None  # the cache of compiled kernels, which makes the next plan open faster

    def load(self) -> Any:
        """NVIDIA's package; or the bindings, with the libraries that another package carries."""
        if importlib.util.find_spec("tensorrt_rtx") is not None:
            return importlib.import_module("tensorrt_rtx")
        for package in ("tensorrt_rtx_libs", "onnxruntime_ep_nv_tensorrt_rtx"):
            files = [in_packages(f"{package}/lib{name}.so.*") for name in ("tensorrt_rtx", "tensorrt_onnxparser_rtx")]
            if all(files):
                library, _ = (ctypes.CDLL(str(found[-1]), mode=ctypes.RTLD_GLOBAL) for found in files)
                bindings: Any = importlib.import_module("tensorrt_rtx_bindings")
                number = library.getInferLibVersion()  # 10701 is 1.7.1
                version = [number // 10000, number // 100 % 100, number % 100]
                if list(map(int, bindings.__version__.split(".")[:3])) != version:  # they would crash one another
                    there = ".".join(map(str, version))
                    sys.exit(
                        f"the libraries have version {there}, but tensorrt_rtx_bindings has {bindings.__version__}"
                    )
                return bindings
        return importlib.import_module("tensorrt_rtx_bindings")

    def context(self, engine: Any) -> Any:
        strategy = self.trt.DynamicShapesKernelSpecializationStrategy
        runtime_config = engine.create_runtime_config()
        runtime_config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER  # not while kernels are timed
        if self.compiled is None:
            self.compiled = runtime_config.create_runtime_cache()
            self.alive = (engine, runtime_config)
        runtime_config.set_runtime_cache(self.compiled)
        return engine.create_execution_context(runtime_config)

    def plan(self, path: Path) -> bytes:
        return path.read_bytes()


class Cuda:
    """The functions of the CUDA runtime that this script needs, called with ctypes."""

    def __init__(self) -> None:
        self.lib: Any = None
        names = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
        packaged = ("nvidia/*/lib/libcudart.so.*", "onnxruntime_ep_nv_tensorrt_rtx/libcudart.so.*")
        for name in (*names, *(str(file) for pattern in packaged for file in in_packages(pattern))):
            try:
                self.lib = ctypes.CDLL(name)
                break
            except OSError:
                continue
        if self.lib is None:
            sys.exit("the CUDA runtime, libcudart.so, is not on the library path (set LD_LIBRARY_PATH)")
        self.lib.cudaGetErrorString.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.lib, name)(*arguments)
        if status:
            sys.exit(f"{name} failed: {self.lib.cudaGetErrorString(status).decode()}")

    def name(self) -> str:
        """The GPU's name: the first field of cudaDeviceProp, in every CUDA version."""
        properties = ctypes.create_string_buffer(1 << 14)
        self.call("cudaGetDeviceProperties", properties, 0)
        return properties.value.decode()

    def capability(self) -> str:
        """The GPU's compute capability, such as 8.6."""
        number = ctypes.c_int()
        parts = []
        for attribute in (75, 76):  # major and minor
            self.call("cudaDeviceGetAttribute", ctypes.byref(number), attribute, 0)
            parts.append(str(number.value))
        return ".".join(parts)

    def buffer(self, array: Any) -> int:
        """The address of a copy on the GPU; it stays until the process ends."""
        pointer, size = ctypes.c_void_p(), ctypes.c_size_t(array.nbytes)
        self.call("cudaMalloc", ctypes.byref(pointer), size)
        self.call("cudaMemcpy", pointer, array.ctypes.data_as(ctypes.c_void_p), size, 1)  # host to device
        return int(pointer.value or 0)

    def stream(self) -> ctypes.c_void_p:
        stream = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(stream))
        return stream

    def captured(self, stream: ctypes.c_void_p, enqueue: Callable[[], None]) -> Callable[[], None]:
        """A function that launches what ``enqueue`` puts on the stream, as one CUDA graph."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cudaStreamBeginCapture", stream, 2)  # relaxed
        enqueue()
        self.call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        self.call("cudaGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        return lambda: self.call("cudaGraphLaunch", executable, stream)

    def elapsed(self, stream: ctypes.c_void_p, launch: Callable[[], None], count: int) -> float:
        """Seconds that ``count`` launches take on the GPU."""
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self.call("cudaEventCreate", ctypes.byref(event))
        self.call("cudaEventRecord", events[0], stream)
        for _ in range(count):
            launch()
        self.call("cudaEventRecord", events[1], stream)
        self.call("cudaEventSynchronize", events[1])
        milliseconds = ctypes.c_float()
        self.call("cudaEventElapsedTime", ctypes.byref(milliseconds), events[0], events[1])
        for event in events:
            self.call("cudaEventDestroy", event)
        return milliseconds.value / 1e3


ENGINES: dict[str, Any] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "tensorrt": TensorRT,
    "tensorrt-rtx": TensorRTForRTX,
}


def in_packages(pattern: str) -> list[Path]:
    """Files in the folders from which Python imports."""
    return [file for folder in sys.path if folder for file in sorted(Path(folder).glob(pattern))]


def opened(manifest: dict[str, Any]) -> Any:
    """The engine. The script ends with one line if the engine, or a GPU for which its plans are built, is not here."""
    try:
        backend = ENGINES[manifest["engine"]](manifest["threads"])
    except (ImportError, OSError) as error:
        sys.exit(f"{manifest['engine']} cannot be imported ({error}): README.txt says what to install")
    built = manifest.get("built")
    if built and backend.version != built["version"]:
        sys.exit(f"the plans are of version {built['version']}, which must be installed; this is {backend.version}")
    if built and backend.cuda.capability() not in built["capabilities"]:
        sys.exit(
            f"the plans run on GPUs of compute capability {', '.join(built['capabilities'])}; "
            f"this GPU, {backend.device}, has {backend.cuda.capability()}"
        )
    return backend


def processor() -> str:
    """The processor's name; the board's name if /proc/cpuinfo has none, as on ARM."""
    for path, mark in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", "")):
        try:
            lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(mark):
                return (line.partition(":")[2] if mark else line).strip("\0 ")
    return platform.processor() or platform.machine()


def pair_sums(backend: Any, path: Path) -> str:
    """The type in which the engine adds two products of an INT8 convolution: int16 (can overflow) or int32.

    In the probe all weights are 127 and all activations 255; in int16 the sums are about half of the exact ones. Empty
    on a GPU.
    """
    if not (hasattr(backend, "run") and path.exists()):
        return ""
    exact = 127 * 255 * 16 * 9
    return "int32" if float(np.median(backend.run(path, 255.0))) > 0.75 * exact else "int16"


def timed(call: Callable[[], Any], clock: Callable[[], float], evict: int) -> Callable[[int], float]:
    """A function that times ``call`` a number of times, and reads ``evict`` bytes before each call."""
    others = np.ones(evict // 8, dtype=np.int64)

    def run(count: int) -> float:
        total = 0.0
        for _ in range(count):
            others.max(initial=0)
            start = clock()
            call()
            total += clock() - start
        return total

    return run


def noise(shape: list[int]) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def sample(run: Callable[[int], float], seconds: float) -> list[float]:
    """Milliseconds per call: the minimum and the median of a round's samples."""
    run(1)  # another file has used the caches since
    inner = max(1, int(SAMPLE_S / max(run(1), 1e-9) + 1))
    values: list[float] = []
    end = time.perf_counter() + seconds
    while len(values) < SAMPLES or time.perf_counter() < end:
        values.append(run(inner) / inner * 1e3)
    return [min(values), float(np.median(values))]


def measure(
    backend: Any, folder: Path, names: list[str], manifest: dict[str, Any], seed: int
) -> dict[str, list[list[float]]]:
    """Time some files and the reference in turns; rounds of [minimum, median] by name.

    In the network, the weights of the other layers push those of a layer out of the processor's caches. So before each
    run of a piece, as many bytes are read as the network has weights; a whole network does that by itself.
    """
    runs = {}
    for name in [manifest["files"][0], *names]:
        runs[name] = backend.open(folder / f"{name}{backend.suffix}", manifest["evict"].get(name, 0))
        runs[name](2)
    rounds: dict[str, list[list[float]]] = {name: [] for name in runs}
    order = list(runs)
    for index in range(manifest["rounds"]):
        random.Random(seed + index).shuffle(order)
        for name in order:
            rounds[name].append(sample(runs[name], manifest["round_s"]))
    return rounds


def read_results(path: Path) -> list[dict[str, Any]]:
    """The complete rows; if the script was killed, the last row may be cut and is skipped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description="Times the files that manifest.json lists; see README.txt.")
    options.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    folder = options.parse_args().folder
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    backend = opened(manifest)
    results = folder / "results.jsonl"
    place = {
        "version": backend.version,
        "device": backend.device,
        "machine": platform.machine(),
        "pair_sums": pair_sums(backend, folder / "probe.onnx"),
    }
    rows = read_results(results)
    if any(row["place"] != place for row in rows):
        sys.exit(f"{results} has results of another device or engine version: delete it to measure again")
    done = {row["name"] for row in rows}
    reference, *names = manifest["files"]
    waiting = [name for name in names if name not in done]
    random.Random(0).shuffle(waiting)  # so that slow drift does not affect one sort of file only
    before = len(names) - len(waiting)
    with results.open("a", encoding="utf-8") as out:
        out.write("\n" if rows else "")  # end a line that may have been cut
        for start in range(0, len(waiting), TOGETHER):
            batch = waiting[start : start + TOGETHER]
            rounds = measure(backend, folder, batch, manifest, start * 1000)
            for name in batch:
                row = {"name": name, "rounds": rounds[name], "reference": rounds[reference], "place": place}
                out.write(json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())
            sys.stdout.write(f"{before + start + len(batch)}/{len(names)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
