"""What the measuring commands share: flags, argument types, argument parsing and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter, Token
from cyclopts.validators import Number, mutually_exclusive

from benchmarks.evaluation import DATA_HELP
from compress import commands
from compress.commands import CONFIGURATION, ConfigFile, Overrides
from compress.config import Config, load_config

# The measuring modules take seconds to import, so each is imported inside the function that needs it.

PASS, FAILED, USAGE, REGRESSION, INVALID, ABSENT = range(6)
"""Exit codes: 3, a gate failed; 4, a measurement is INVALID; 5, the engine is not installed on this machine."""

SCENARIO = Group("Scenario", sort_key=2)
EFFORT = Group("Effort", sort_key=3)
GATES = Group("Gates", sort_key=4)
OUTPUT = Group("Output", sort_key=5)
ONE_PRESET = Group("One preset", validator=mutually_exclusive, show=False)


def _share(_: object, tokens: Sequence[Token]) -> float:
    return float(tokens[0].value.removesuffix("%")) / 100


def _processors(_: object, tokens: Sequence[Token]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(part) for part in tokens[0].value.split(",")))


# Types of arguments
Count = Annotated[int, Parameter(metavar="N", validator=Number(gte=1))]
Seed = Annotated[int, Parameter(metavar="N", validator=Number(gte=0))]
Seconds = Annotated[float, Parameter(metavar="S", validator=Number(gt=0))]
Percent = Annotated[float, Parameter(metavar="P%", converter=_share, validator=Number(gt=0))]
Share = Annotated[float, Parameter(metavar="S", validator=Number(gt=0, lt=1))]
Processors = Annotated[tuple[int, ...], Parameter(metavar="0,1", converter=_processors, n_tokens=1)]
Folder = Annotated[Path, Parameter(metavar="DIR")]
File = Annotated[Path, Parameter(metavar="FILE")]
Device = Literal["cpu", "cuda"]
Preset = Literal["fast", "normal", "rigorous"]

# Flags
EngineFiles = Annotated[
    list[Path],
    Parameter(
        name="--engine",
        metavar="FILE",
        consume_multiple=1,
        help="Engine files (.onnx, .xml, .plan), or a stage's model.safetensors, which PyTorch runs.",
    ),
]
EngineFile = Annotated[
    Path, Parameter(name="--engine", metavar="FILE", help="Engine file (.onnx, .xml, .plan), or a model.safetensors.")
]
TrustPlan = Annotated[bool, Parameter(name="--trust", help="Open a plan although its sidecar does not match it.")]
TrustFactory = Annotated[bool, Parameter(name="--trust", help="Allow importing the factory that model.json names.")]
Target = Annotated[str, Parameter(name="--target", help="Target that the INT8 file is made for.")]
Images = Annotated[str, Parameter(metavar="WHERE", help=f"Labelled images: {DATA_HELP}.")]
JsonFile = Annotated[
    str | None,
    Parameter(
        metavar="[FILE]",
        group=OUTPUT,
        help="Write the result as JSON to FILE, or to standard output if no FILE is given.",
    ),
]
Fast = Annotated[bool, Parameter(group=EFFORT, help="Sample each network for only 1 s: for a first look.")]
Limits = Annotated[
    tuple[str, ...],
    Parameter(
        name="--fail-on",
        metavar="METRIC:P%",
        group=GATES,
        help="Exit 3 if the whole 95% interval says that an engine is slower by more than this, such as median:5%; "
        "repeatable.",
    ),
]
AllowDifferent = Annotated[
    bool, Parameter(group=GATES, help="Compare even if the settings or the machines differ, and list the differences.")
]
TextFile = Annotated[str | None, Parameter(metavar="FILE", group=OUTPUT)]
RunFolder = Annotated[
    Path | None,
    Parameter(
        name="--run", metavar="DIR", group=CONFIGURATION, help="The run's folder; default: the configuration's run.dir."
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Configured:
    """The configuration file and its overrides."""

    config: ConfigFile = None
    overrides: Overrides = field(default_factory=list)

    def load(self) -> Config:
        """Load the configuration.

        Raises:
            ConfigError: the file or an override is not valid.
        """
        return load_config(self.config, self.overrides)


_words: ContextVar[Sequence[str]] = ContextVar("words", default=())


def words() -> list[str]:
    """The running command line, for the ``argv`` field of a result."""
    return list(_words.get())


def run(app: App, argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: the arguments; default: those of this process.
    """
    token = _words.set(sys.argv if argv is None else argv)
    try:
        return commands.run(app, spelled_out(sys.argv[1:] if argv is None else argv))
    finally:
        _words.reset(token)


def spelled_out(given: Sequence[str]) -> list[str]:
    """Rewrite arguments for cyclopts: join ``-`` to its flag, and turn ``--json`` without a file into ``--json=-``.

    >>> spelled_out(["a.onnx", "--json", "--csv", "-", "--fast"])
    ['a.onnx', '--json=-', '--csv=-', '--fast']
    """
    found: list[str] = []
    for word, following in zip(given, [*given[1:], "--"], strict=False):
        if word == "-" and found and found[-1].startswith("--"):
            found[-1] = found[-1] if "=" in found[-1] else f"{found[-1]}=-"
        else:
            found.append("--json=-" if word == "--json" and following.startswith("--") else word)
    return found
