"""The one way in which a JSON file is read: into a form that says what it must hold.

Whatever is wrong with the file becomes one error that names the file, the field and the remedy. Nothing is built before
the size of the file, the depth of its nesting and the length of its numbers are known to be sane. Fields that the form
does not know, as a newer version may have written, are reported as a warning and left out.
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
        remedy: how to mend a file that is not as it should be, such as the command that makes it.
        error: what is raised where the content is wrong.
        part: the form names only some of the file's fields; the others are nobody's concern here.

    Raises:
        PipelineError: the file is absent, or cannot be read.
        PipelineError: (or ``error``) it is too large, no JSON, or of another form.
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
    """As ``read``, of JSON that is part of another file.

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
        told = f"{where} has fields that this version does not know, and leaves out: {', '.join(unknown[:3])}{more}"
        warnings.warn(told, UnknownFields, stacklevel=2)
    return value


def read_bytes(path: Path, *, remedy: str, most: int = MOST_BYTES, error: type[PipelineError] = PipelineError) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes.

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
        raise error(f"{path} is larger than {most >> 20} MiB, too large for what it should be", remedy=remedy)
    return content


def brief(text: object, most: int = 300) -> str:
    """What somebody else's code says of a file, in one line of at most so many characters.

    >>> brief("bad header\\n  at 3"), brief("x" * 1000, most=5)
    ('bad header at 3', 'xxxxx...')
    """
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[:most]}..."


def explain(problem: ValidationError) -> str:
    """What is wrong with a file, by the first fault that a validation has found: what it is, where, and what is there.

    The message of the project's own checks, which raise ValueError, stands as it is.
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
