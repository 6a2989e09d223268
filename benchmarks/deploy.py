"""``python -m benchmarks.deploy --engine FILE --output DIR``: write the folder that runs an engine on a device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from benchmarks.cli import OUTPUT, Configured, Folder, Images, run
from compress.commands import CONFIGURATION, command_line
from compress.console import Console

EngineFile = Annotated[Path, Parameter(name="--engine", metavar="FILE", help="Engine file (.onnx, .xml).")]


def deploy(
    *,
    engine: EngineFile,
    output: Annotated[Folder, Parameter(group=OUTPUT)],
    images: Annotated[list[str] | None, Parameter(metavar="IMAGE", consume_multiple=True)] = None,
    data: Annotated[Images | None, Parameter(group=CONFIGURATION)] = None,
    configured: Configured = Configured(),
    samples: Annotated[int, Parameter(metavar="N", validator=Number(gte=0))] = 5,
    force: Annotated[bool, Parameter(group=OUTPUT)] = False,
) -> int:
    """Write a folder that runs an engine on a device, without this package.

    It holds the engine file; predict.py, which needs only the engine's runtime, numpy and Pillow; a C++ program with
    its CMakeLists.txt; the preprocessing and the classes as JSON; and sample images with this machine's answers, which
    `python predict.py --check` compares with the device's. The README.md in it says how to use them.

    Exit code: 0, 1 error, 2 usage, 5 engine absent.

    Args:
        output: Folder to write. It must be new or empty, unless --force is given.
        images: Sample images: files, folders, or patterns such as 'photos/*.jpg'; all of them are taken.
        samples: Number of sample images to draw from --data or the configuration's evaluation images.
        force: Replace a folder that deploy wrote before.
    """
    from benchmarks.deployment.folder import check_output, write_folder
    from benchmarks.deployment.samples import drawn, given
    from compress.engines.examine import examine

    check_output(output, force=force)
    examine(engine)
    named = data is not None or configured != Configured()
    found = given(images) if images else drawn(data, configured.load(), samples) if named else []
    write_folder(engine, output, found)
    console = Console()
    console.print(f"written: {output}", soft_wrap=True)
    if not found:
        text = "without sample images: give --images or --data, so that the device's answers can be checked"
        console.print(text, soft_wrap=True)
    return 0


app = command_line("python -m benchmarks.deploy")
app.default(deploy)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``deploy``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
