"""Terminal output: everything is printed as plain text, whatever names it contains."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Any

import rich.console
from rich.text import Text

from calibration.names import printable


class Console(rich.console.Console):
    """rich's console without markup, emoji codes and highlighting; control characters except line feeds are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn every printed string into a Text, also a string within a table."""
        return super().render_str(printable(text), **options)


def accept_any_text() -> None:
    """Escape what the encoding of standard output and error lacks, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
