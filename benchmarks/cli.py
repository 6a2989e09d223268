"""What the commands that measure have in common: their flags, how their words are read, and how they end."""

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

# A module that measures takes seconds to import: each is imported in the function that needs it.

PASS, FAILED, USAGE, REGRESSION, INVALID, ABSENT = range(6)
"""Exit codes: 3, a gate is not met; 4, a measurement is of no use; 5, the engine is not on this machine."""

SCENARIO = Group("Scenario", sort_key=2)
EFFORT = Group("Effort", sort_key=3)
GATES = Group("Gates", sort_key=4)
OUTPUT = Group("Output", sort_key=5)
ONE_PRESET = Group("One preset", validator=mutually_exclusive, show=False)


def _share(_: object, tokens: Sequence[Token]) -> float:
    return float(tokens[0].value.removesuffix("%")) / 100


def _processors(_: object, tokens: Sequence[Token]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(part) for part in tokens[0].value.split(",")))


# Kinds of values
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
TrustPlan = Annotated[bool, Parameter(name="--trust", help="Open a plan whose sidecar does not vouch for it.")]
TrustFactory = Annotated[
    bool, Parameter(name="--trust", help="Import the factory that model.json names, if it names one.")
]
Target = Annotated[str, Parameter(name="--target", help="What the INT8 file is made for.")]
Images = Annotated[str, Parameter(metavar="WHERE", help=f"Labelled images: {DATA_HELP}.")]
JsonFile = Annotated[
    str | None, Parameter(metavar="[FILE]", group=OUTPUT, help="Write the result as JSON; without FILE to stdout.")
]
Fast = Annotated[bool, Parameter(group=EFFORT, help="1 s of samples a network: for a first look.")]
Limits = Annotated[
    tuple[str, ...],
    Parameter(
        name="--fail-on",
        metavar="METRIC:P%",
        group=GATES,
        help="Exit 3 where an engine is slower by more than this beyond doubt, as in median:5%; repeatable.",
    ),
]
AllowDifferent = Annotated[
    bool, Parameter(group=GATES, help="Compare although mode or machine differ, and say in what.")
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
    """The configuration, and what overrides it."""

    config: ConfigFile = None
    overrides: Overrides = field(default_factory=list)

    def load(self) -> Config:
        """The configuration.

        Raises:
            ConfigError: it makes no sense.
        """
        return load_config(self.config, self.overrides)


_words: ContextVar[Sequence[str]] = ContextVar("words", default=())


def words() -> list[str]:
    """The command line that is running, as a result keeps it."""
    return list(_words.get())


def run(app: App, argv: Sequence[str] | None = None) -> int:
    """The exit code of a command line.

    Args:
        argv: its words; default: those of this process.
    """
    token = _words.set(sys.argv if argv is None else argv)
    try:
        return commands.run(app, spelled_out(sys.argv[1:] if argv is None else argv))
    finally:
        _words.reset(token)


def spelled_out(given: Sequence[str]) -> list[str]:
    """Words as cyclopts takes them: ``-`` is joined to its flag, and ``--json`` without a file means ``-``.

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
