"""What all commands share: how arguments are parsed, how help looks, and how a command ends."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

from compress import __version__, signals
from compress.console import Console, accept_any_text
from compress.errors import PipelineError
from compress.parse import UnknownFields
from compress.ranks import first_to_speak, lost_another

USAGE = 2
"""Exit code of a command whose arguments cannot be parsed."""

CONFIGURATION = Group("Configuration", sort_key=1)

ConfigFile = Annotated[
    Path | None, Parameter(group=CONFIGURATION, help="TOML configuration; without it every key has its default value.")
]
Overrides = Annotated[
    list[str],
    Parameter(name="--set", group=CONFIGURATION, help="Override one key, as in `--set prune.latency=50%`; repeatable."),
]


def command_line(name: str, *, help: str | None = None) -> App:
    """An ``App`` in the style of all our commands.

    A command is a function: its parameters are the flags, the ``Args`` section of its docstring is their help, and its
    return value is the exit code. A module that takes long to import is imported in the function, so that ``--help``
    appears at once.
    """
    return App(
        name=name,
        help=help,
        version=__version__,
        help_format="markdown",
        default_parameter=Parameter(negative=(), allow_repeating=True, show_default=_worth_telling),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,  # ``signals`` handles it
    )


def _worth_telling(default: Any) -> str | None:
    """A default value as the help shows it; nothing for a flag that is off or a list that is empty."""
    if default is None or default is False or default == [] or default == ():
        return None
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


def run(app: App, argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: the arguments; default: those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _called(app, words))


def _called(app: App, words: Sequence[str]) -> int:
    try:
        code = app(words)
    except CycloptsError as error:
        name = " ".join(map(str, (app.name[0], *(error.command_chain or ()))))
        console = Console(stderr=True)
        _tell(console, str(error))
        console.print(f"`{name} --help` lists the arguments", soft_wrap=True)
        return USAGE
    return code if isinstance(code, int) else 0


def run_command(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake, or a signal that stops it, becomes one line and an exit code."""
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
            message, code = "another training process died, so this one ended; run the command again to continue", 1
        else:
            raise
        if first_to_speak():
            _tell(console, message)
        return code


@contextmanager
def reported_unknown_fields(console: Console) -> Iterator[None]:
    """Report unknown fields that a newer version wrote into a file as one line, like every other message."""
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
