"""``python -m benchmarks.families``: build a network of every family for a target, and count what runs in INT8."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from cyclopts import Parameter

from benchmarks.cli import Count, Folder, Target, run
from compress.commands import command_line
from compress.config import TargetConfig
from compress.console import Console


def families(
    *,
    target: Target = "tensorrt-rtx",
    size: Annotated[Count, Parameter(help="Height and width of the input; networks for CIFAR take 32.")] = 224,
    only: Annotated[str, Parameter(metavar="TEXT", help="Only networks whose name contains this.")] = "",
    output: Annotated[Folder | None, Parameter(help="Keep the ONNX files and the engines in this folder.")] = None,
) -> int:
    """Build an untrained network of every family for a target, and show what runs in INT8.

    Every file is checked as `export` checks it: by the rules of `lint`, and for TensorRT by its own parser.

    Exit code: 0, 1 a network cannot be built, 2 usage, 5 the target's engine is absent.
    """
    from benchmarks.evaluation.families import build_families
    from benchmarks.evaluation.families import families as networks
    from benchmarks.results.tables import show
    from compress.engines.base import require_builder, version_of
    from compress.errors import ConfigError
    from compress.export.rules.registry import tensorrt_runs
    from compress.progress import Terminal
    from compress.targets import named, profile

    name = named(target)
    if not tensorrt_runs(profile(name)):
        raise ConfigError(f"this command is for TensorRT, and {target} is not", remedy="--target tensorrt-rtx")
    chosen = TargetConfig.model_validate({"name": name})
    if not any(only in network for network in networks(size)):
        raise ConfigError(f"no network has '{only}' in its name", remedy=f"known: {'; '.join(networks(size))}")
    require_builder(chosen.engine, chosen.device)
    with TemporaryDirectory() as scratch:
        folder = output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        built = list(build_families(chosen, folder, size, only, Terminal()))
    show(
        Console(),
        f"{chosen.engine} {version_of(chosen.engine)}, {size} pixels; each file parsed and built",
        ["network", "parsed layers", "convolutions in INT8", "plan MB", "seconds"],
        [
            [b.name, str(b.layers), f"{b.int8} of {b.convolutions}", f"{b.bytes / 1e6:.1f}", f"{b.seconds:.1f}"]
            for b in built
        ],
    )
    return 0


app = command_line("python -m benchmarks.families")
app.default(families)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``families``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
