"""``python -m benchmarks.arm --engine FILE``: run an INT8 ONNX file under an emulated ARM or x86 processor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from benchmarks.cli import Count, EngineFile, run
from compress.commands import command_line
from compress.errors import ConfigError

Processor = Literal["Haswell", "EPYC-Rome", "cortex-a72", "neoverse-n1"]


def arm(
    engine: EngineFile,
    *,
    cpu: Annotated[tuple[Processor, ...], Parameter(consume_multiple=1, metavar="NAME")] = (),
    root: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    images: Count = 4,
) -> int:
    """Run an INT8 ONNX file under an emulated ARM or x86 processor and compare its outputs.

    QEMU's user mode emulates the processor. It runs this machine's own Python if the architecture is the same, and
    otherwise the Python of a file tree (--root; docs/howto/arm.md says how to make one). The command reads the graph
    that ONNX Runtime has optimized: a convolution in float is an error, unless the file says that its layer stays in
    float. It compares the outputs with this machine's, without optimizations and as the engine runs here. A test
    convolution with a known sum shows whether the processor adds products in int16, which can overflow. Emulated times
    say nothing about a device and are not reported.

    Exit code: 0, 1 error, 2 usage, 5 QEMU or a Python of the processor's architecture is absent.

    Args:
        cpu: Processors to emulate. Default: all that the file is made for and for which there is a Python.
        root: File tree with a Python of another architecture.
        images: Number of random images to compare the outputs on.
    """
    import numpy as np

    from benchmarks.emulation.emulate import check, default_cpus
    from benchmarks.evaluation.images import preprocess_of
    from benchmarks.results.tables import emit
    from compress.engines.base import open_engine
    from compress.engines.examine import examine
    from compress.progress import Terminal
    from compress.registries import BACKENDS

    if engine.suffix != (suffix := BACKENDS["onnxruntime"].suffix):
        raise ConfigError(f"ONNX Runtime runs {suffix} files, not '{engine.name}'")
    examine(engine)
    with open_engine(engine) as opened:
        shape, metadata = preprocess_of(opened, engine).shape, opened.metadata
    assert metadata is not None  # it has a preprocess
    cpus = list(cpu) or default_cpus(root, metadata.target)
    noise = np.random.default_rng(0).normal(size=(images, *shape)).astype(np.float32)
    check(engine, metadata, cpus, noise, root, Terminal())
    emit(f"{engine.name} computes what it should on {', '.join(cpus)}\n", "-")
    return 0


app = command_line("python -m benchmarks.arm")
app.default(arm)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``arm``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
