"""``python -m benchmarks.arm --engine FILE``: what ONNX Runtime makes of a file on processors that are not here."""

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
    """What ONNX Runtime makes of an exported INT8 file on processors that are not here.

    QEMU's user mode runs it: in this machine's own Python where the processor is of this machine's architecture, else
    in one from a file tree (--root; docs/targets.md says how to make it). ONNX Runtime decides by itself what it fuses,
    so its optimized graph is read: a convolution in float is an error, unless the file says that its layer is meant to
    be. The outputs are held against this machine's, with all optimizations off and as the engine runs here, and a
    convolution whose sum is known tells whether the processor adds products in int16, which overflows. Emulated times
    say nothing about a device and are not reported.

    Exit code: 0, 1 error, 2 usage, 5 QEMU or a Python of the processor's architecture is absent.

    Args:
        cpu: Default: those that the file is made for and a Python is here for.
        root: File tree with a Python of another architecture.
        images: How many images of noise to compare on.
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
