"""The stages as commands: ``python -m compress STAGE --config c.toml --set section.key=value``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from cyclopts import App, Group, Parameter

from compress.check.command import check
from compress.commands import ConfigFile, Overrides, command_line
from compress.commands import run as run_app
from compress.config import Config, describe_config, load_config
from compress.console import Console
from compress.progress import SILENT, Terminal
from compress.ranks import leads
from compress.run import Run

# The stages import torch and NNCF, which takes seconds: each is imported when it runs.

STAGES = Group("Stages", sort_key=0)
TOOLS = Group("Tools", sort_key=2)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments that every stage takes."""

    config: ConfigFile = None
    overrides: Overrides = field(default_factory=list)
    force: Annotated[bool, Parameter(help="Run the stage even if its output is up to date.")] = False

    def open(self) -> tuple[Config, Run]:
        """The configuration, and the run that it names."""
        config = load_config(self.config, self.overrides)
        return config, Run(config.run.dir, force=self.force, progress=Terminal() if leads() else SILENT)


Source = Annotated[
    Literal["finetune", "baseline"],
    Parameter(name="--from", help="Continue from the pruned and fine-tuned network, or from the unpruned baseline."),
]
Target = Annotated[
    str | None,
    Parameter(
        help="Use this target or engine instead of target.name; `auto` builds for each installed engine that runs the "
        "target's files, measures them, and keeps the fastest."
    ),
]
FormerTarget = Annotated[str | None, Parameter(name="--engine", show=False)]
"""The former name of ``--target``."""


def baseline(*, asked: Asked = Asked()) -> None:
    """Load the trained network, or train it."""
    _baseline(*asked.open())


def _baseline(config: Config, run: Run) -> None:
    from compress.quantize.quantizable import check_quantizable
    from compress.train.stage import baseline

    baseline(config, run, lambda net, shape: check_quantizable(net, config.target.name, shape))


def prune(*, asked: Asked = Asked()) -> None:
    """Remove channels of the network's residual blocks, within the budget."""
    from compress.prune.stage import prune

    prune(*asked.open())


def finetune(*, asked: Asked = Asked()) -> None:
    """Train the pruned network further, distilled from the unpruned one."""
    from compress.train.stage import finetune

    finetune(*asked.open())


def quantize(*, asked: Asked = Asked(), source: Source = "finetune") -> None:
    """Calibrate to INT8, or also train with quantization (quantize.mode = "qat")."""
    from compress.quantize.stage import quantize

    quantize(*asked.open(), source=source)


def sensitivity(*, asked: Asked = Asked()) -> None:
    """Show which layers of the INT8 network cost the most accuracy."""
    from compress.quantize.stage import sensitivity

    sensitivity(*asked.open())


def export(*, asked: Asked = Asked(), source: Source = "finetune") -> None:
    """Write NAME_fp32.onnx and NAME_int8.onnx."""
    from compress.export.stage import export

    export(*asked.open(), source=source)


def build(*, asked: Asked = Asked(), target: Target = None, engine: FormerTarget = None) -> None:
    """Build the engine file that ships, for the target."""
    from compress.engines.stage import build

    build(*asked.open(), engine=target or engine)


def all_stages(
    asked: Asked = Asked(),
    *,
    source: Source = "finetune",
    target: Target = None,
    engine: FormerTarget = None,
) -> None:
    """Run all stages from baseline to build, in this order."""
    from compress.engines.stage import build, retarget
    from compress.export.stage import export
    from compress.prune.stage import prune
    from compress.quantize.stage import quantize
    from compress.train.stage import finetune

    config, run = asked.open()
    config = config.model_copy(update={"target": retarget(config.target, target or engine)})
    _baseline(config, run)
    if source == "finetune":
        prune(config, run)
        finetune(config, run)
    quantize(config, run, source=source)
    export(config, run, source=source)
    build(config, run, engine=target or engine)


def show_config(*, config: ConfigFile = None, overrides: Overrides | None = None) -> None:
    """Print every configuration key with its value and its meaning."""
    Console().print(describe_config(load_config(config, overrides or [])), soft_wrap=True)


def lint(file: Path, /, *, target: str | None = None, json: bool = False) -> int:
    """Report what in a quantized ONNX file would run in float, not fuse or not load on a target.

    The exit code is 1 if there is an error.

    Args:
        file: any ONNX file with QuantizeLinear and DequantizeLinear.
        target: the target or the engine; default: the target named in the file.
        json: print the findings as JSON.
    """
    from compress.engines.examine import examine
    from compress.export.lint import lint_file
    from compress.progress import Terminal
    from compress.targets import named

    if target is not None:
        target = named(target)
    examine(file)
    report = lint_file(file, target, Terminal())
    Console().print(report.to_json() if json else str(report), soft_wrap=True)
    return 1 if report.errors else 0


def register(app: App) -> App:
    """Add the stages and ``config``, ``check`` and ``lint`` to a command line."""
    for name, stage in {
        "baseline": baseline,
        "prune": prune,
        "finetune": finetune,
        "quantize": quantize,
        "sensitivity": sensitivity,
        "export": export,
        "build": build,
        "all": all_stages,
    }.items():
        app.command(stage, name=name, group=STAGES)
    app.command(show_config, name="config", group=TOOLS)
    app.command(check, group=TOOLS)
    app.command(lint, group=TOOLS)
    return app


app = register(command_line("python -m compress", help="Compress a trained ResNet, stage by stage."))


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point; exits with the codes of ``compress.errors``."""
    sys.exit(run_app(app, argv))
