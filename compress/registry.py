"""A registry maps names that a configuration may use to values; users can add their own."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

from compress import startup
from compress.errors import ConfigError

T = TypeVar("T")

PLUGINS = "RESNET_COMPRESS_PLUGINS"
"""Environment variable: modules of your own, separated by commas, that add to registries. ``run.plugins`` sets it."""


class Registry(Mapping[str, T]):
    """A mapping from names to values. The module of a built-in value is imported when the value is first looked up.

    >>> colours: Registry[str] = Registry("colour", {"upper": "string:ascii_uppercase"})
    >>> colours.add("red")("#f00")
    '#f00'
    >>> list(colours), colours["red"], colours["upper"][:3]
    (['upper', 'red'], '#f00', 'ABC')
    >>> colours["rde"]
    Traceback (most recent call last):
    compress.errors.ConfigError: unknown colour 'rde'
      fix: did you mean 'red'?

    Args:
        what: what a name stands for, in the singular; used in error messages.
        built_in: ``module:attribute`` by name.
    """

    def __init__(self, what: str, built_in: Mapping[str, str]) -> None:
        self.what = what
        self._known: dict[str, T | str] = dict(built_in)
        self._places = dict(built_in)

    def add(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a value under a name; a value that has the name already is replaced."""

        def register(value: T) -> T:
            self._known[name] = value
            self._places.pop(name, None)
            return value

        return register

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(tuple(self._known))

    def __len__(self) -> int:
        load_plugins()
        return len(self._known)

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return name in self._known

    def __getitem__(self, name: str) -> T:
        """Look up a name; raises ConfigError if it is not known."""
        self.known(name)
        place = self._places.get(name)
        if place is not None:
            module, _, attribute = place.partition(":")
            self.add(name)(getattr(importlib.import_module(module), attribute))
        return cast(T, self._known[name])

    def known(self, name: str) -> str:
        """Return the name itself if it is known; used to validate a configuration.

        Raises:
            ConfigError: the name is not known; the message suggests the nearest one.
        """
        if name not in self:
            close = difflib.get_close_matches(str(name), self._known, n=1, cutoff=0.5)
            remedy = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(self._known)}"
            raise ConfigError(f"unknown {self.what} '{name}'", remedy=remedy)
        return name


def load_plugins(modules: Iterable[str] = ()) -> None:
    """Import modules that add to registries: those given, and those in the environment variable.

    The given modules are added to the environment variable, so that child processes import them too.

    Raises:
        ConfigError: a module cannot be imported.
    """
    named = [name for name in os.environ.get(PLUGINS, "").split(",") if name]
    wanted = list(dict.fromkeys([*named, *modules]))
    for name in wanted:
        if name not in sys.modules:
            import_own(name, "plugin")
    if wanted != named:
        os.environ[PLUGINS] = ",".join(wanted)


def import_own(name: str, what: str) -> Any:
    """Import a user's module. The current directory is searched first.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return startup.import_own(name)
    except Exception as error:  # a user's module may raise any exception when it is imported
        raise ConfigError(
            f"{what} '{name}' cannot be imported: {type(error).__name__}: {error}",
            remedy="give the name of a module that Python finds from the current directory",
        ) from error
