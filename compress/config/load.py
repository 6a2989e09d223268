"""Read a configuration: a TOML file and overrides."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from compress.config.budget import BUDGETS
from compress.config.recipes import learning_keys
from compress.config.section import listed, plain
from compress.config.training import MEANT
from compress.config.whole import Config
from compress.errors import ConfigError, PipelineError
from compress.parse import brief, read_bytes
from compress.registry import load_plugins

_GIVE = "give a TOML file such as `python -m compress config` prints"
_MOST_BYTES = 1 << 20
_MOST_DOTS = 1000  # per line: the parser's time grows with the square of the parts of a key


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` (TOML; None means all defaults) and apply ``section.key=value`` overrides.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is out of range.
    """
    table: dict[str, Any] = {}
    where = "the command line"
    if path is not None:
        where = str(path)
        try:
            text = read_bytes(path, remedy=_GIVE, most=_MOST_BYTES, error=ConfigError).decode("utf-8-sig")
            if max(line.count(".") for line in f"{text}\n".splitlines()) > _MOST_DOTS:
                raise ValueError(f"a line has more than {_MOST_DOTS} dots")
            table = tomllib.loads(text)
        except ConfigError:
            raise
        except PipelineError as error:
            raise ConfigError(error.message, remedy=error.remedy) from None
        except (ValueError, RecursionError) as error:  # raised for too long numbers and for deep nesting too
            raise ConfigError(f"{path} is not valid TOML: {brief(error)}", remedy=_GIVE) from None
    _drop_budgets(table, overrides)
    _drop_target(table, overrides)
    _drop_learning(table, overrides)
    for override in overrides:
        _override(table, override)
    _load_plugins(table)
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


def _load_plugins(table: Mapping[str, Any]) -> None:
    """Import the modules that ``run.plugins`` names, before the names that they add are looked up."""
    section = table.get("run")
    plugins = listed(section.get("plugins")) if isinstance(section, dict) else None
    if isinstance(plugins, list) and all(isinstance(name, str) for name in plugins):
        load_plugins(plugins)


def _drop_budgets(table: dict[str, Any], overrides: Sequence[str]) -> None:
    """Drop the file's budgets if an override gives a budget of any kind."""
    section = table.get("prune")
    if isinstance(section, dict) and any(o.split("=")[0].strip().removeprefix("prune.") in BUDGETS for o in overrides):
        for kind in BUDGETS:
            section.pop(kind, None)


def _drop_target(table: dict[str, Any], overrides: Sequence[str]) -> None:
    """Drop the file's target, engine and device if an override gives a target or an engine."""
    section = table.get("target")
    if isinstance(section, dict) and {o.split("=")[0].strip() for o in overrides} & {"target.name", "target.engine"}:
        for key in ("name", "engine", "device"):
            section.pop(key, None)


def _drop_learning(table: dict[str, Any], overrides: Sequence[str]) -> None:
    """Drop the file's keys on how is learned if an override gives a recipe; those on how images are changed stay."""
    for override in overrides:
        key, _, name = (part.strip() for part in override.partition("="))
        name, (section, _, word) = name.strip("'\""), key.partition(".")
        if word == "recipe" and isinstance(found := table.get(section), dict):
            for dropped in learning_keys(section, name) & found.keys():
                del found[dropped]


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, name = (part.strip() for part in key.split("."))
    if not (equals and sections and all(sections) and name):
        raise ConfigError(
            f"--set {brief(override, 100)}: expected section.key=value", remedy="for example --set prune.macs=40%"
        )
    try:  # numbers, booleans and arrays read as TOML does; anything else is a string
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {brief(override, 100)}: '{section}' is a value in the config, not a section")
    if isinstance(value, int | float) and not isinstance(value, bool):
        known = _fields(sections).get(name)
        if known is not None and known.annotation in (str, str | None):
            value = text.strip()
    table[name] = value


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        key = ".".join(location)
        if problem["type"] == "extra_forbidden":
            known = list(_fields(location[:-1]))
            meant = [key for key in known if key == MEANT.get(plain(location[-1]))]
            close = meant or difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            lines.append(f"unknown key '{key}'; {hint}")
        else:
            what = brief(problem["msg"].removeprefix("Value error, "))
            lines.append(f"{key}: {what} (got {brief(repr(problem['input']), 100)})")
    return f"{where}: " + "; ".join(lines)


def _fields(path: Sequence[str]) -> Mapping[str, FieldInfo]:
    """The keys of a section, given the section's path; none if there is no such section."""
    fields: Mapping[str, FieldInfo] = Config.model_fields
    for name in path:
        fields = getattr(fields[name].annotation, "model_fields", {}) if name in fields else {}
    return fields
