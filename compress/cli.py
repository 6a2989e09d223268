"""The command line: ``python -m compress STAGE --config c.toml --set section.key=value``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from compress import __version__, signals
from compress.config import ENGINES, Config, describe_config, load_config
from compress.console import Console, accept_any_text
from compress.engines.auto import AUTO
from compress.errors import PipelineError
from compress.parse import UnknownFields
from compress.progress import SILENT, Terminal
from compress.ranks import first_to_speak, leads, lost_another
from compress.run import Run

# The stages import torch and NNCF, which takes seconds: each is imported when it runs.


def _baseline(config: Config, run: Run, _: argparse.Namespace) -> None:
    from compress.train.stage import baseline

    baseline(config, run)


def _prune(config: Config, run: Run, _: argparse.Namespace) -> None:
    from compress.prune.stage import prune

    prune(config, run)


def _finetune(config: Config, run: Run, _: argparse.Namespace) -> None:
    from compress.train.stage import finetune

    finetune(config, run)


def _quantize(config: Config, run: Run, args: argparse.Namespace) -> None:
    from compress.quantize.stage import quantize

    quantize(config, run, source=args.source)


def _sensitivity(config: Config, run: Run, _: argparse.Namespace) -> None:
    from compress.quantize.stage import sensitivity

    sensitivity(config, run)


def _export(config: Config, run: Run, args: argparse.Namespace) -> None:
    from compress.export.stage import export

    export(config, run, source=args.source)


def _build(config: Config, run: Run, args: argparse.Namespace) -> None:
    from compress.engines.stage import build

    build(config, run, engine=args.engine)


def _all(config: Config, run: Run, args: argparse.Namespace) -> None:
    from compress.engines.stage import retarget

    config = config.model_copy(update={"target": retarget(config.target, args.engine)})
    pruning: list[Stage] = [_prune, _finetune] if args.source == "finetune" else []
    for stage in (_baseline, *pruning, _quantize, _export, _build):
        stage(config, run, args)


def _lint(args: argparse.Namespace) -> int:
    from compress.engines.examine import examine
    from compress.export.lint import lint_file

    examine(args.file)
    report = lint_file(args.file, args.target)
    Console().print(report.to_json() if args.json else str(report), soft_wrap=True)
    return 1 if report.errors else 0


Stage = Callable[[Config, Run, argparse.Namespace], None]
STAGES: dict[str, tuple[Stage, str]] = {
    "baseline": (_baseline, "load the trained network, or train it"),
    "prune": (_prune, "remove channels of its residual blocks, within the budget"),
    "finetune": (_finetune, "train the pruned network on, distilled from the unpruned one"),
    "quantize": (_quantize, "calibrate to INT8, or train on with quantization (quantize.mode = 'qat')"),
    "sensitivity": (_sensitivity, "tell which layer of the INT8 network costs the accuracy"),
    "export": (_export, "write <name>_fp32.onnx and <name>_int8.onnx"),
    "build": (_build, "build the engine that ships, for the target"),
    "all": (_all, "baseline to build, in this order"),
}


def parser() -> argparse.ArgumentParser:
    """The argument parser of ``python -m compress``."""
    top = argparse.ArgumentParser(prog="python -m compress", description="Compress a trained ResNet, stage by stage.")
    top.add_argument("--version", action="version", version=__version__)
    stages = top.add_subparsers(dest="stage", metavar="STAGE", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration; default: all defaults")
    common.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one key"
    )
    working = argparse.ArgumentParser(add_help=False, parents=[common])
    working.add_argument("--force", action="store_true", help="run the stage even if its output is up to date")
    for name, (_, text) in STAGES.items():
        command = stages.add_parser(name, help=text, description=text.capitalize() + ".", parents=[working])
        if name in ("quantize", "export", "all"):
            command.add_argument(
                "--from",
                dest="source",
                choices=("finetune", "baseline"),
                default="finetune",
                help="the network to go on from: the pruned and fine-tuned one, or the unpruned baseline",
            )
        if name in ("build", "all"):
            command.add_argument(
                "--engine",
                choices=(*ENGINES, AUTO),
                help="instead of target.engine; auto: the fastest here of those that run the target's files",
            )
    stages.add_parser("config", help="print every key with its value and meaning", parents=[common])
    text = "say what in a quantized ONNX file would run in float, not fuse or not load on a target"
    command = stages.add_parser(
        "lint", help=text, description=text.capitalize() + "; exit code 1 if there is an error."
    )
    command.add_argument("file", type=Path, metavar="FILE", help="any ONNX file with QuantizeLinear/DequantizeLinear")
    command.add_argument("--target", help="one of compress/targets; default: the one that the file names")
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    return top


def run_command(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake, and a signal that stops it, become one line and an exit code."""
    accept_any_text()
    console = Console(stderr=True)
    try:
        with signals.interruptible(), reported_unknown_fields(console):
            return command()
    except (Exception, KeyboardInterrupt) as error:
        if code := signals.stopped(error):
            return code
        if isinstance(error, PipelineError):
            message, code = str(error), error.exit_code
        elif isinstance(error, OSError):
            message, code = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
        elif lost_another(error):
            message, code = "another of the processes has died, and took this training with it; ask again to go on", 1
        else:
            raise
        if first_to_speak():
            _tell(console, message)
        return code


@contextmanager
def reported_unknown_fields(console: Console) -> Iterator[None]:
    """In the block what a newer version has written into a file is reported as a line, like every other message."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
        if issubclass(category, UnknownFields):
            console.print(f"warning: {message}", soft_wrap=True)
        else:
            usual(message, category, *more, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _tell(console: Console, error: str) -> None:
    console.print("error: ", style="bold red", end="")
    console.print(error, soft_wrap=True)


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.stage == "lint":
        return _lint(args)
    config = load_config(args.config, args.overrides)
    if args.stage == "config":
        Console().print(describe_config(config), soft_wrap=True)
        return 0
    run = Run(config.run.dir, force=args.force, progress=Terminal() if leads() else SILENT)
    STAGES[args.stage][0](config, run, args)
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point; exits with the codes of ``compress.errors``."""
    sys.exit(run_command(lambda: _command(argv)))
