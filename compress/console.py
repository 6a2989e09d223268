"""The one way to a terminal: what is printed is text, whatever the names in it hold."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Any

import rich.console
from rich.text import Text

from calibration.names import printable


class Console(rich.console.Console):
    """rich's console without markup, emoji codes and highlighting; control characters but line feeds are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed, also as part of a table, becomes a Text here."""
        return super().render_str(printable(text), **options)


def accept_any_text() -> None:
    """Have standard output and error escape what their encoding lacks, rather than raise UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
