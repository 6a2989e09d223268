"""Format numbers and intervals, and print tables: drawn on a terminal, as Markdown elsewhere."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from rich.table import Table
from rich.text import Text

from benchmarks.results.base import Bounds
from calibration.names import printable, readable
from compress.console import Console
from compress.errors import ConfigError
from compress.files import write_atomic

_MARKUP = re.compile(
    r"""[`*~|]                             # code, emphasis, strikethrough; the end of a cell
    | \\(?=[!-/:-@\[-`{-~]|$)            # a backslash, where it would escape something
    | (?<![^\W_])_ | _(?![^\W_])         # emphasis, but not inside a word
    | \](?=[(\[:])                       # a link, an image, the definition of one
    | <(?=[A-Za-z/!?])                   # HTML, an automatic link
    | &(?=\#?\w+;)                       # an entity
    | ^[\[\#>=] | ^[-+](?=[\s-]|$)       # a heading, a quotation, a list, a rule, a task, at the beginning
    """,
    re.VERBOSE,
)
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")  # the beginning of a numbered list


def show(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, as Markdown if the output goes to a file or a pipe."""
    if not console.is_terminal:
        console.print(f"{readable(title)}\n\n{markdown(header, rows)}", soft_wrap=True)
        return
    grid = Table(title=Text(readable(title)))
    for i, name in enumerate(header):
        grid.add_column(Text(readable(name)), justify="right" if i else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(readable(cell)) for cell in row))
    console.print(grid)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the text of the cells is escaped: see ``literal``.

    >>> print(markdown(["net", "ms"], [["dense", "5.5"]]))
    | net   |  ms |
    |-------|----:|
    | dense | 5.5 |
    """
    header, rows = [*map(literal, header)], [[*map(literal, row)] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    rule = "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths))
    lines = [_line(header, widths), f"|{rule}|", *(_line(row, widths) for row in rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join(padded)} |"


def literal(text: str) -> str:
    r"""Escape one line of text so that Markdown shows it literally; only what Markdown would interpret is escaped.

    >>> print(literal("resnet18_int8.onnx 5.5 [5.4, 5.6]"), literal("*a* [b](c) | _d_ <e>"))
    resnet18_int8.onnx 5.5 [5.4, 5.6] \*a\* [b\](c) \| \_d\_ \<e>
    """
    escaped = _MARKUP.sub(r"\\\g<0>", readable(text).strip(" "))
    return _NUMBERED.sub(r"\1\\\2", escaped)


def interval(bounds: Bounds, digits: int = 2) -> str:
    """
    >>> interval(Bounds(value=5.512, lo=5.5, hi=5.6))
    '5.51 [5.50, 5.60]'
    """
    return f"{bounds.value:.{digits}f} [{bounds.lo:.{digits}f}, {bounds.hi:.{digits}f}]"


def rate(bounds: Bounds) -> str:
    """With three significant digits.

    >>> rate(Bounds(value=3456.7, lo=3400, hi=3500)), rate(Bounds(value=0.41, lo=0.4, hi=0.42))
    ('3457 [3400, 3500]', '0.410 [0.400, 0.420]')
    """
    return interval(bounds, max(0, 2 - math.floor(math.log10(bounds.value))))


def points(bounds: Bounds) -> str:
    """A difference of shares, in percentage points.

    >>> points(Bounds(value=-0.002, lo=-0.01, hi=0.006))
    '-0.20 [-1.00, +0.60]'
    """
    return f"{bounds.value * 100:+.2f} [{bounds.lo * 100:+.2f}, {bounds.hi * 100:+.2f}]"


def percent(bounds: Bounds) -> str:
    """A share, in percent.

    >>> percent(Bounds(value=0.75, lo=0.7, hi=0.8))
    '75.00 [70.00, 80.00]'
    """
    return interval(Bounds(value=bounds.value * 100, lo=bounds.lo * 100, hi=bounds.hi * 100))


def speedup(ratio: Bounds | None) -> str:
    """A speed-up: the inverse of a ratio of latencies; 1 for the baseline itself.

    >>> speedup(Bounds(value=0.5, lo=0.4, hi=0.625))
    '2.00x [1.60, 2.50]'
    """
    return "1x" if ratio is None else f"{1 / ratio.value:.2f}x [{1 / ratio.hi:.2f}, {1 / ratio.lo:.2f}]"


def require_writable(target: str) -> None:
    """Check before a long measurement that ``emit`` can write ``target``, and make its folder.

    Raises:
        ConfigError: the file cannot be written, or is a folder.
    """
    if target == "-":
        return
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            folder = path.is_dir()
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}", remedy="choose another file") from error
    if folder:
        raise ConfigError(f"{target} cannot be written: it is a folder", remedy="choose a file in it")


def emit(text: str, target: str) -> None:
    """Write to a file, or to standard output if ``target`` is ``-``."""
    if target == "-":
        sys.stdout.write(printable(text))
    else:
        write_atomic(Path(target), printable(text))
