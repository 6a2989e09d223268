"""The command line of the whole package: ``resnet-compress COMMAND``, or ``python -m benchmarks COMMAND``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, Group

from benchmarks.cli import run
from compress import cli, commands
from compress.cli import TOOLS
from compress.commands import command_line
from compress.startup import PROGRAM

MEASUREMENTS = Group("Measurements", sort_key=1)

_MEASUREMENTS = (
    "latency",
    "accuracy",
    "compare",
    "latency_table",
    "plan_latency",
    "summary",
    "pareto",
    "regression",
    "trust",
    "arm",
)
_TOOLS = ("predict", "deploy", "report", "plots", "show", "doctor")


def front_door() -> App:
    """The app with every command. A module is imported only when its command runs or its help is shown."""
    app = cli.register(command_line(PROGRAM, help="Compress a trained ResNet for a device, and measure the result."))
    for group, names in ((MEASUREMENTS, _MEASUREMENTS), (TOOLS, _TOOLS)):
        for name in names:
            app.command(f"benchmarks.{name}:{name}", name=name.replace("_", "-"), group=group)
    app.register_install_completion_command()
    return app


app = front_door()


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0].startswith("-"):
        for name in (*_MEASUREMENTS, *_TOOLS):  # import each command: the list shows its docstring's first line
            app[name.replace("_", "-")]
    lints = words[:1] == ["lint"]  # the --json of lint takes no file
    sys.exit(commands.run(app, words) if lints else run(app, argv))


if __name__ == "__main__":
    main()
