"""Read JSON files into typed forms; all JSON files are read with this module.

Any fault in the file becomes one error that names the file, the field and the remedy. The size of the file, the depth
of its nesting and the length of its numbers are checked before anything is built. Fields that the form does not know,
as a newer version may write, are reported as a warning and ignored.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from compress.errors import PipelineError

T = TypeVar("T")

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]

MOST_BYTES = 64 << 20
_VERSIONS = (("schema_version",), ("format",))
_LONGEST = 60  # characters of a wrong value that a message shows


class UnknownFields(UserWarning):
    """A file has fields that this version does not know."""


def read(
    path: Path, form: type[T], *, remedy: str, error: type[PipelineError] = PipelineError, part: bool = False
) -> T:
    """Read a JSON file as a ``form``: a dataclass, a pydantic model, or a type such as ``dict[str, float]``.

    Args:
        remedy: how to fix a wrong file, such as the command that makes it.
        error: the error to raise if the content is wrong.
        part: the form names only some of the file's fields; the others are ignored without a warning.

    Raises:
        PipelineError: the file is absent, or cannot be read.
        PipelineError: (or ``error``) it is too large, not JSON, or of another form.
    """
    return parse(read_bytes(path, remedy=remedy, error=error), form, path, remedy=remedy, error=error, part=part)


def parse(
    text: bytes | str,
    form: type[T],
    where: Path | str,
    *,
    remedy: str,
    error: type[PipelineError] = PipelineError,
    part: bool = False,
) -> T:
    """Like ``read``, for JSON that is part of another file.

    >>> parse('{"a": 1, "b": 2}', dict[str, int], "x.json", remedy="")
    {'a': 1, 'b': 2}
    >>> parse('{"a": "one"}', dict[str, int], "x.json", remedy="write a number")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    calibration.errors.PipelineError: x.json is damaged, or of another version: field 'a': ... (got 'one')
      fix: write a number
    """
    adapter: TypeAdapter[T] = _adapter(cast(Hashable, form))
    try:
        value = adapter.validate_json(text, strict=True)
    except ValidationError as problem:
        raise error(f"{where} {explain(problem)}", remedy=remedy) from None
    if part:
        return value
    unknown = sorted(set(_unknown(from_json(text), adapter.dump_python(value, mode="json"))))
    if unknown:
        more = ", ..." if len(unknown) > 3 else ""
        told = f"{where} has fields that this version does not know and ignores: {', '.join(unknown[:3])}{more}"
        warnings.warn(told, UnknownFields, stacklevel=2)
    return value


def read_bytes(path: Path, *, remedy: str, most: int = MOST_BYTES, error: type[PipelineError] = PipelineError) -> bytes:
    """Read a regular file of at most ``most`` bytes.

    Raises:
        PipelineError: it is absent, or cannot be read.
        PipelineError: (or ``error``) it is a folder or a device, or larger.
    """
    try:
        content = None
        if stat.S_ISREG(path.stat().st_mode):  # asked first: opening a pipe would wait for a writer
            with path.open("rb") as file:
                content = file.read(most + 1)
    except (OSError, ValueError) as problem:  # ValueError: a name that no file can have
        raise PipelineError(f"cannot read {path}: {getattr(problem, 'strerror', problem)}", remedy=remedy) from None
    if content is None:
        raise error(f"{path} is not a regular file", remedy=remedy)
    if len(content) > most:
        raise error(f"{path} is larger than {most >> 20} MiB, which is too large for such a file", remedy=remedy)
    return content


def brief(text: object, most: int = 300) -> str:
    """Shorten an error message or value from elsewhere to one line of at most ``most`` characters.

    >>> brief("bad header\\n  at 3"), brief("x" * 1000, most=5)
    ('bad header at 3', 'xxxxx...')
    """
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[:most]}..."


def explain(problem: ValidationError) -> str:
    """Describe the first fault that a validation found in a file: what is wrong, where, and the value.

    The messages of this project's own checks, which raise ValueError, are used unchanged.
    """
    faults = problem.errors(include_url=False)
    first = next((fault for fault in faults if fault["loc"][-1:] in _VERSIONS), faults[0])
    if first["type"] == "json_invalid":
        return f"is not JSON: {first['ctx']['error']}"
    if first["type"] == "literal_error" and first["loc"][-1:] in _VERSIONS:
        return f"has schema version {first['input']!r}, this version reads {first['ctx']['expected']}"
    where = brief(".".join(str(part) for part in first["loc"]), 2 * _LONGEST)
    message = brief(first["msg"].removeprefix("Value error, "))
    if first["type"] == "missing":
        return f"is damaged, or of another version: field '{where}' is missing"
    shown = brief(repr(first["input"]), _LONGEST)
    place = f"field '{where}': " if where else ""
    return f"is damaged, or of another version: {place}{message} (got {shown})"


@lru_cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def _unknown(given: Any, known: Any, where: str = "") -> Iterator[str]:
    """The paths of what is in the file and not in the value that was read from it."""
    if isinstance(given, Mapping) and isinstance(known, Mapping):
        for key, value in given.items():
            path = f"{where}.{key}" if where else str(key)
            if key in known:
                yield from _unknown(value, known[key], path)
            else:
                yield path
    elif isinstance(given, list) and isinstance(known, list):
        for value, other in zip(given, known, strict=False):
            yield from _unknown(value, other, f"{where}[]")
