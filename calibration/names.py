"""Make file names printable: a file system allows names that are not text, or that control a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count

_BYTES = re.compile("[\udc80-\udcff]+")  # bytes that are not UTF-8, as Python's file functions hand them on
_BIDI = "\u202a-\u202e\u2066-\u2069"  # these reverse the direction of the text after them
_CONTROL = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_BIDI}\ud800-\udfff]")


def readable(name: str) -> str:
    r"""A name on one line that any terminal, JSON or ONNX file can hold: bytes and control characters are escaped.

    A name that needs no escape stays as it is, so ``readable`` of a readable name is the same name.

    >>> print(readable("a\udce9 b\x1b[2J\n"), readable("caf\xe9"))
    a\xe9 b\x1b[2J\n café
    """
    text = _BYTES.sub(lambda found: found[0].encode(errors="surrogateescape").decode(errors="backslashreplace"), name)
    return _CONTROL.sub(_escaped, text)


def printable(text: str) -> str:
    r"""Like ``readable``, for text of several lines: line feeds are kept.

    >>> printable("one\ntwo\r")
    'one\ntwo\\r'
    """
    return "\n".join(map(readable, text.split("\n")))


def readable_names(names: Iterable[str]) -> tuple[str, ...]:
    r"""``readable`` of distinct names, kept distinct: if several read alike, the later ones get a number.

    >>> print(*readable_names(["a\udce9", "b", "a\\xe9"]), sep=", ")
    a\xe9, b, a\xe9 (2)
    """
    found: dict[str, None] = {}
    for text in map(readable, names):
        numbered = (f"{text} ({number})" for number in count(2))
        found[text if text not in found else next(one for one in numbered if one not in found)] = None
    return tuple(found)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
