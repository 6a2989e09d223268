"""The front door: ``resnet-compress COMMAND``, or ``python -m benchmarks COMMAND``."""

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
_TOOLS = ("report", "plots", "show", "doctor")


def front_door() -> App:
    """Every command; a module is imported when its command is called, or its help asked for."""
    app = cli.register(
        command_line(PROGRAM, help="Compress a trained ResNet for a device, and measure what that brings.")
    )
    for group, names in ((MEASUREMENTS, _MEASUREMENTS), (TOOLS, _TOOLS)):
        for name in names:
            app.command(f"benchmarks.{name}:{name}", name=name.replace("_", "-"), group=group)
    app.register_install_completion_command()
    return app


app = front_door()


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point; exits with the command's code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0].startswith("-"):
        for name in (*_MEASUREMENTS, *_TOOLS):  # the list of commands tells what each does: by its own docstring
            app[name.replace("_", "-")]
    lints = words[:1] == ["lint"]  # whose --json is a switch, which needs no file
    sys.exit(commands.run(app, words) if lints else run(app, argv))


if __name__ == "__main__":
    main()
