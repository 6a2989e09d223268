"""How a program of this package starts: its own modules are found first, and a signal ends it without a traceback.

A user works in a folder of their own, which may hold folders named ``benchmarks`` or ``compress``. ``python -m`` looks
there before anywhere else; a program of ours looks there last. Only what is the user's own, such as the factory of a
network, is looked for there first. Who imports the package as a library keeps their own ``sys.path`` and handlers.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from compress import signals

PROGRAM = "resnet-compress"
_ROOT = str(Path(__file__).parents[1])


def begin(package: str) -> None:
    """Called where the import of ``package`` begins, which is before the module that it runs is imported."""
    if _runs(package):
        signals.leave_at_once()
        look_here_last()


def look_here_last() -> None:
    """Put the current directory at the end of ``sys.path``, behind the folder of this package."""
    here = str(Path.cwd())
    others = [entry for entry in sys.path if entry and entry != here]
    sys.path[:] = [*others, *(root for root in (_ROOT, here) if root not in others)]


def import_own(name: str) -> ModuleType:
    """Import a module of the user's: the current directory comes first for it, whatever is installed."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        with suppress(ValueError):  # the module may have changed the path
            sys.path.remove(here)


def python(*arguments: str) -> list[str]:
    """The command of a process that does not look for modules in the current directory first."""
    return [sys.executable, "-P", *arguments]


def same_path() -> dict[str, str]:
    """The environment of a process that finds the modules that this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _runs(package: str) -> bool:
    """Whether this process is ``python -m package``, or our console script."""
    if sys.argv[:1] != ["-m"]:  # as it is until the interpreter has found the module
        return _is_script(sys.argv)
    return sys.orig_argv[-len(sys.argv)].removeprefix("-m").partition(".")[0] == package


def _is_script(words: Sequence[str]) -> bool:
    return bool(words) and Path(words[0]).stem == PROGRAM
