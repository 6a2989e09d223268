"""``python -m benchmarks.regression --baseline FILE``: run the pipeline and compare its results with a baseline."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from benchmarks.cli import REGRESSION, Configured, File, run
from compress.commands import CONFIGURATION, command_line
from compress.console import Console
from compress.errors import ConfigError


def regression(
    baseline: File,
    *,
    update: bool = False,
    configured: Configured = Configured(),
    directory: Annotated[Path | None, Parameter(name="--run", metavar="DIR", group=CONFIGURATION)] = None,
) -> int:
    """Run the whole pipeline and compare its accuracy and size with a committed baseline.

    Every stage runs, from the dense network to the engine, with the configuration that the baseline file names, or with
    --config. --set overrides a key on top of the baseline's own overrides, and --update stores it in the file.
    Accuracies are compared image by image with the predictions that are stored beside the file, with paired intervals;
    sizes and operator counts are compared as plain figures. Latency is not compared, because it depends on the machine.

    Exit code: 0, 1 error, 2 usage, 3 regression, 4 outputs are NaN or infinite, 5 engine absent.

    Args:
        baseline: The committed baseline.json.
        update: Show the differences and write the file; tolerances and their reasons stay as they are.
        directory: Run the stages in this folder and reuse the stages that are finished in it, even if the code has
            changed since. Default: run every stage in a temporary folder.
    """
    if update and configured.config is None and not baseline.exists():
        raise ConfigError("a new baseline needs a configuration", remedy="give --config FILE")

    from benchmarks.evaluation import regression as room
    from benchmarks.evaluation.baseline import HEADER, Baseline, Source
    from benchmarks.results.tables import show
    from compress.progress import Terminal
    from compress.run import Run

    known = Source() if update and not baseline.exists() else Baseline.read(baseline).source
    source = known.changed(configured.config, configured.overrides)
    try:
        config = source.load()
    except ConfigError as error:
        raise ConfigError(f"{baseline}: its source does not load: {error.message}", remedy=error.remedy) from None
    progress, console = Terminal(), Console()
    with ExitStack() as stack:
        folder = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="regression-")))
        stages = Run(folder, progress=progress)
        if update:
            rows = room.update(baseline, config, stages, source, progress)
            show(console, f"baseline {baseline}", ["quantity", "before", "now", "change"], rows)
            return 0
        checks = room.check(baseline, config, stages, progress)
    show(console, f"against {baseline}", HEADER, [one.cells() for one in checks])
    failed = [one for one in checks if not one.passed]
    for one in failed:
        console.print(f"REGRESSION: {one}", soft_wrap=True)
    return REGRESSION if failed else 0


app = command_line("python -m benchmarks.regression")
app.default(regression)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``regression``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
