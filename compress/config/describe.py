"""Print a configuration as TOML, each key with its meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from compress.config.section import Known, Section
from compress.config.whole import Config


def describe_config(config: Config) -> str:
    """The configuration as TOML, each key with its meaning: what ``python -m compress config`` prints."""
    return "\n\n".join(line for name in Config.model_fields for line in _describe(name, getattr(config, name)))


def _describe(name: str, section: Section) -> Iterator[str]:
    """A section, then the sections within it."""
    lines = [f"[{name}]"]
    inner = []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            inner.append((f"{name}.{key}", value))
        else:
            text = f"{key} = {_toml(value)}" if value is not None else f"# {key} ="
            allowed = f" ({', '.join(names)})" if (names := _choices(field)) else ""
            lines.append(f"{text:<44}  # {field.description}{allowed}")
    yield "\n".join(lines)
    for path, value in inner:
        yield from _describe(path, value)


def _choices(field: FieldInfo) -> list[str]:
    """The values that a key can have, where they are few; those of a list are the values of its items."""
    found: list[str] = []
    parts: list[Any] = [field.annotation, *field.metadata]
    while parts:
        part = parts.pop(0)
        if get_origin(part) is Literal:
            found += map(str, get_args(part))
        elif isinstance(known := getattr(part, "func", None), Known):
            found += known.registry
        else:
            parts += get_args(part)
    return found


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case Mapping():
            return f"{{{', '.join(f'{k} = {_toml(v)}' for k, v in value.items())}}}"
        case _:
            return json.dumps(str(value))
