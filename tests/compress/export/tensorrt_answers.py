"""Ask TensorRT for RTX about ONNX files: whether it builds them, and which layers of the plan compute in float.

As a program it answers for many files, one JSON line each. It is a process of its own, since the library is native code
and may crash; ``ask`` starts it again after the file that it crashed on. No GPU is needed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compress.engines.tensorrt.rtx import RTX

WEIGHTED = "corrltn|deconvolution|fully_connected"  # as the compiler calls convolutions and products with a weight


class Answer(NamedTuple):
    """What the library does with a file.

    Attributes:
        does: ``refuses``, ``crashes``, or what the layers with weights of its plan compute in: ``int8`` or ``float``.
        why: the error, or the names of the layers in float.
    """

    does: str
    why: str


def ask(paths: Sequence[Path]) -> dict[Path, Answer]:
    answers: dict[Path, Answer] = {}
    while left := [path for path in paths if path not in answers]:
        done = subprocess.run([sys.executable, __file__, *left], capture_output=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith(b"[")]
        new = {path: Answer(*json.loads(line)) for path, line in zip(left, lines, strict=False)}
        if done.returncode:
            new[left[len(new)]] = Answer("crashes", f"exit code {done.returncode}: {done.stderr[-300:]!r}")
        assert new, done.stderr
        answers |= new
    return answers


def unknown(names: Collection[str]) -> set[str]:
    """Those of these operators that the parser does not have."""
    done = subprocess.run([sys.executable, __file__, "--unknown", *names], capture_output=True, check=True)
    return set(done.stdout.decode().split())


def answer(trt: Any, logger: Any, path: Path) -> Answer:
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return Answer("refuses", " ".join(parser.get_error(0).desc().split()))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = list(tensor.shape)
        if -1 in sizes:
            least = [size if size > 0 else 1 if axis == 0 else 16 for axis, size in enumerate(sizes)]
            most = [8 if sizes[0] < 0 else sizes[0], *least[1:]]
            profile.set_shape(tensor.name, least, least, most)
    if profile:  # it has a shape
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return Answer("refuses", logger.last)
    floats = [name for name, kinds in layers(bytes(plan)) if kinds != ["int8", "int8"]]
    return Answer("float" if floats else "int8", ", ".join(floats))


def layers(plan: bytes) -> Iterator[tuple[str, list[str]]]:
    """The layers with weights and the types of their two inputs.

    NVIDIA documents no such thing, but a plan holds its program as text: ``tensor={ ... name="x" ... type=int8 }`` and
    ``corrltn={ name="node_conv2d" output={...} input={"x" "w" ...} ... }``.
    """
    types = dict(re.findall(rb'tensor=\{ [^\n]*?name="([^"]+)"[^\n]*? type=(\w+) \}', plan))
    for name, inputs in re.findall(rb'\n  (?:%b)=\{ name="([^"]+)" [^\n]*?input=\{([^}]*)\}' % WEIGHTED.encode(), plan):
        yield name.decode(), [types[tensor].decode() for tensor in re.findall(rb'"([^"]+)"', inputs)[:2]]


def main(arguments: list[str]) -> None:
    trt = RTX.module()

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        last = ""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = " ".join(message.split())

    logger = Logger()
    if arguments[0] == "--unknown":
        parser = trt.OnnxParser(trt.Builder(logger).create_network(0), logger)
        sys.stdout.write(" ".join(name for name in arguments[1:] if not parser.supports_operator(name)))
        return
    for argument in arguments:
        sys.stdout.write(json.dumps(answer(trt, logger, Path(argument))) + "\n")
        sys.stdout.flush()  # it may crash on the next one


if __name__ == "__main__":
    main(sys.argv[1:])
