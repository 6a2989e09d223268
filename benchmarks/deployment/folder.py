"""Write the folder that runs an engine on a device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx
from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmarks.deployment.device import predict as device
from benchmarks.deployment.network import Network, open_network
from benchmarks.deployment.samples import Sample
from benchmarks.results.tables import literal
from calibration.preprocess import Preprocess
from compress import __version__
from compress.engines.base import engine_files, engine_of
from compress.engines.metadata import Metadata
from compress.engines.sidecar import engine_sha256, read_sidecar
from compress.errors import ConfigError, EngineError
from compress.export.parity import FP32_ERROR, INT8_ERROR
from compress.files import file_sha256, whole, write_atomic, write_json
from compress.targets import profile

ENGINE, PREPROCESS, CLASSES = (f"{name}.json" for name in device.FILES)
EXPECTED, SUMS = "expected.json", "SHA256SUMS"
_CPP = ("main.cpp", "engine.h", "preprocess.h", "preprocess.cpp")
_RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_TRACE = "pkg.torch.onnx.stack_trace"  # of the exporter of PyTorch
_TOP = 3


def check_output(out: Path, *, force: bool) -> None:
    """Check that the folder may be written.

    Raises:
        ConfigError: there is something in its place that must not be lost.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / ENGINE).is_file():
        raise ConfigError(f"{out} exists, and deploy has not written it", remedy="choose another --output")
    if not force:
        raise ConfigError(f"{out} is not empty", remedy="choose another --output, or replace it with --force")


def write_folder(path: Path, out: Path, samples: Sequence[Sample]) -> None:
    """Write the whole folder, or nothing.

    Args:
        path: the engine file.
        out: the folder; what is in it is replaced.
        samples: their answers here are written down, for a comparison on the device.

    Raises:
        EngineError: the engine does not open, or cannot be run by such a folder.
        BackendAbsent: its runtime is not on this machine.
        DataError: a sample is smaller than the network's input.
    """
    _check_runtime(path)
    record = read_sidecar(path)
    with open_network(path, threads=1 if record is None else record.threads) as network, whole(out) as folder:
        metadata = network.engine.metadata
        assert metadata is not None  # ``open_network`` has read the preprocessing from it
        _check_target(path, network.engine.name, metadata)
        for file in engine_files(path):
            write_atomic(folder / file.name, _without_traces(file))
        facts = _facts(path, folder, network, metadata, threads=1 if record is None else record.threads)
        how = described(network.preprocess)
        expected = {
            "tolerance": INT8_ERROR if metadata.precision == "int8" else FP32_ERROR,
            "samples": [_expected(folder, network, sample, i) for i, sample in enumerate(samples, start=1)],
        }
        for name, value in ((ENGINE, facts), (PREPROCESS, how), (CLASSES, network.classes), (EXPECTED, expected)):
            write_json(folder / name, value)
        _write_programs(folder, {"engine": facts, "how": how, "classes": network.classes, "expected": expected})
        written = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        write_atomic(folder / SUMS, "".join(f"{file_sha256(folder / name)}  {name}\n" for name in written))


def _check_runtime(path: Path) -> None:
    runtime = engine_of(path)
    if runtime == "tensorrt":
        raise EngineError(
            f"{path}: a TensorRT plan runs only on the GPU model and the TensorRT version that it was built with",
            remedy="copy the run's folder to the device, run `resnet-compress build --target tensorrt` there, and "
            "`resnet-compress predict`",
        )
    if runtime == "tensorrt-rtx":
        record = read_sidecar(path)
        where = "GPUs of the compute capabilities that it was built for" if record is None else record.device
        version = "the version that built it" if record is None else f"version {record.version}"
        raise EngineError(
            f"{path}: deploy has no program for a plan of TensorRT for RTX, which runs only on {where}, with {version}",
            remedy="copy the plan with its sidecar to such a machine, "
            "install this project with the extra tensorrt-rtx there, and run `resnet-compress predict`",
        )
    if path.suffix == ".safetensors":
        raise EngineError(f"{path} is run by PyTorch", remedy="export the network, and give the .onnx file")
    if runtime is not None and runtime not in device.RUNTIMES:
        raise EngineError(f"{path}: there is no program for {runtime}", remedy="give an .onnx or .xml file")


def _check_target(path: Path, runtime: str, metadata: Metadata) -> None:
    if metadata.target and runtime not in profile(metadata.target).engines:
        raise EngineError(
            f"{path.name} was quantized for target {metadata.target}, which {runtime} does not run in INT8",
            remedy=f"build it for {profile(metadata.target).engines[0]}, and give that file",
        )


def _without_traces(file: Path) -> bytes:
    """An engine file without the stack traces in its nodes, which hold paths of the machine that exported it."""
    data = file.read_bytes()
    if _TRACE.encode() not in data or file.suffix != ".onnx":
        return data
    model = onnx.load_from_string(data)
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != _TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    return bytes(model.SerializeToString())


def _facts(path: Path, folder: Path, network: Network, metadata: Metadata, *, threads: int) -> dict[str, Any]:
    """The contents of engine.json."""
    engine = network.engine
    return {
        "file": path.name,
        "sha256": engine_sha256(folder / path.name),
        "built_sha256": engine_sha256(path),
        "runtime": engine.name,
        "version": engine.version,
        "threads": threads,
        "batch": network.batch,
        "input": engine.inputs[0].name,
        "outputs": [spec.name for spec in engine.outputs],
        "returns": network.returns,
        "architecture": metadata.arch,
        "precision": metadata.precision,
        "target": metadata.target,
        "parameters": metadata.params,
        "macs": metadata.macs,
        "made_by": f"resnet-compress {__version__}",
    }


def described(p: Preprocess) -> dict[str, Any]:
    """The contents of preprocess.json, in words that need no other document."""
    height, width = p.sides
    resize = {"shorter_side": p.resize} if isinstance(p.resize, int) else {"height": p.resize[0], "width": p.resize[1]}
    return {
        "resize": resize if p.resize else None,
        "interpolation": p.interpolation,
        "antialias": p.antialias,
        "crop": "centre",
        "height": height,
        "width": width,
        "channels": p.channels,
        "channel_order": p.channel_order if p.channels > 1 else "grey",
        "scale": "pixels of 0..255 are multiplied by 1/255",
        "mean": list(p.mean),
        "std": list(p.std),
        "layout": "NCHW",
        "dtype": "float32",
    }


def _expected(folder: Path, network: Network, sample: Sample, number: int) -> dict[str, Any]:
    """Write a sample image, and run it."""
    alpha = network.preprocess.channels == 4
    name = f"samples/{number}.{'png' if alpha else 'ppm'}"  # PPM needs no decoder in C++, but has no alpha
    (folder / "samples").mkdir(exist_ok=True)
    sample.image.convert("RGBA" if alpha else "RGB").save(folder / name)
    x = network.input(sample.image)
    outputs = network.run(x)
    return {
        "file": name,
        "label": sample.label,
        "input_sha256": hashlib.sha256(x[0].tobytes()).hexdigest(),
        "answer": network.answer(outputs, _TOP),
        "outputs": {key: device.samples(value) for key, value in outputs.items()},
    }


def _write_programs(folder: Path, facts: dict[str, Any]) -> None:
    """Write what runs the engine in Python and in C++, and what explains it."""
    source, runtime = files("benchmarks.deployment.device"), facts["engine"]["runtime"]
    templates = Environment(
        loader=PackageLoader("benchmarks.deployment", "device"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"cpp": _cpp, "literal": literal, "answered": _answered}
    packages = {name: version(name) for name in (runtime, "numpy", "pillow")}
    how = facts["how"]
    in_bits = how["resize"] is None or how["antialias"]
    facts = {**facts, "runtime": _RUNTIMES[runtime], "in_cpp": how["channels"] != 4, "in_bits": in_bits}

    def copy(name: str, to: str) -> None:
        write_atomic(folder / to, source.joinpath(name).read_bytes())

    for name in ("predict.py", "LICENSE"):
        copy(name, name)
    write_atomic(folder / "requirements.txt", "".join(f"{name}=={number}\n" for name, number in packages.items()))
    write_atomic(folder / "README.md", templates.get_template("README.md").render(facts))
    if not facts["in_cpp"]:
        return
    for name in _CPP:
        copy(f"cpp/{name}", f"cpp/{name}")
    copy(f"cpp/engine_{runtime}.cpp", "cpp/engine.cpp")
    copy(f"cpp/{runtime}.cmake", "cpp/CMakeLists.txt")
    if runtime == "onnxruntime":
        copy("cpp/reduced/onnxruntime_c_api.h", "cpp/reduced/onnxruntime_c_api.h")
    write_atomic(folder / "cpp" / "network.h", templates.get_template("cpp/network.h").render(facts))


def _cpp(value: str | bool | float) -> str:
    """A value as C++ has it; names hold no control characters, so JSON's strings are C++'s."""
    return json.dumps(value, ensure_ascii=False)


def _answered(one: Mapping[str, Any]) -> str:
    """A class, or an output of a network that is no classifier, in a table's cell."""
    share = one.get("probability")
    return literal(device.lines([one])[0] if share is None else f"{one['name']} ({share:.1%})")
