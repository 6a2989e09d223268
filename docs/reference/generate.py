"""``python docs/reference/generate.py``: writes what the documentation takes from the code and from committed figures.

- ``docs/reference/configuration.md``: every key of the configuration, from ``compress.config``.
- ``docs/reference/results.md``: every field of a result file, from the JSON Schema of ``benchmarks.results.schema``.
- ``docs/decisions/README.md``: the list of decisions, from their titles.
- the tables between ``<!-- table: NAME -->`` and ``<!-- /table -->`` in README.md and docs/, from
  ``docs/results/NAME.json``.

``--check`` writes nothing, and exits with 1 if a file is not current; a test does the same.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # a script of docs/ is in no package

GENERATED = "<!-- Written by docs/reference/generate.py: do not edit. -->\n"
_TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)

Json = Mapping[str, Any]


def markdown(header: list[str], rows: list[list[str]], *, right: frozenset[int] = frozenset()) -> str:
    """A table; the columns in ``right`` are aligned right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    rule = ["---:" if k in right else "---" for k in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]]) + "\n"


# Tables of results


def shown(value: Any, column: Json) -> str:
    """A cell: text as it is, a number by the column's format, an estimate with its 95% interval.

    >>> shown([11.45, 11.17, 11.73], {"format": ".2f", "suffix": "x"})
    '11.45x [11.17, 11.73]'
    """
    if isinstance(value, str):
        return value
    form, suffix = column.get("format", "d"), column.get("suffix", "")
    if isinstance(value, list):
        middle, low, high = value
        return f"{middle:{form}}{suffix} [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{suffix}"


def table(name: str) -> str:
    """The table of ``docs/results/NAME.json``, in Markdown."""
    record = json.loads((DOCS / "results" / f"{name}.json").read_text())
    columns = record["columns"]
    rows = [[shown(row[column["key"]], column) for column in columns] for row in record["rows"]]
    numbers = frozenset(k for k, column in enumerate(columns) if "format" in column)
    return markdown([column["title"] for column in columns], rows, right=numbers)


def with_tables(text: str) -> str:
    """A page with its tables as the committed figures have them."""
    return _TABLE.sub(lambda found: f"{found[1]}{table(found[2])}{found[3]}", text)


# The configuration


def configuration() -> str:
    """docs/reference/configuration.md."""
    from compress.config import Config

    schema = Config.model_json_schema()
    lines = [
        "# Configuration\n",
        GENERATED,
        "One TOML file holds the whole configuration, one section a stage. Every key has a default. On the command\n"
        "line `--set SECTION.KEY=VALUE` overrides a key, and an unknown key is an error that names the nearest known\n"
        "one. `resnet-compress config --config my.toml` prints the same keys with the values of a file.\n",
    ]
    for name, prop in schema["properties"].items():
        lines += _section(name, _resolved(prop, schema), schema)
    return "\n".join(lines)


def _section(path: str, section: Json, schema: Json) -> Iterator[str]:
    rows, inner = [], []
    for key, prop in section["properties"].items():
        resolved = _resolved(prop, schema)
        if resolved.get("type") == "object" and "properties" in resolved:
            inner.append((f"{path}.{key}", resolved))
            continue
        kind, allowed = type_of(prop, schema)
        known = _known(f"{path}.{key}")
        if known:
            allowed = ", ".join(f"`{one}`" for one in known)
        rows.append([f"`{key}`", kind, _default(prop), allowed, prop.get("description", "")])
    yield f"## [{path}]\n"
    yield markdown(["key", "type", "default", "allowed", "meaning"], rows)
    for name, value in inner:
        yield from _section(name, value, schema)


def _known(key: str) -> list[str]:
    """The names that a registry knows, for a key whose type is only text."""
    from compress import targets
    from compress.models.registry import ARCHITECTURES
    from compress.registries import BACKENDS, CRITERIA, RANGES, STEPS

    known = {
        "target.name": targets.names(),
        "target.engine": BACKENDS,
        "model.arch": [*ARCHITECTURES, "package.module:factory"],
        "prune.importance": CRITERIA,
        "quantize.method": RANGES,
        **{f"{section}.steps": STEPS for section in ("train", "finetune", "qat")},
    }
    return list(known.get(key, ()))


def _default(prop: Json) -> str:
    value = prop.get("default")
    if value is None:
        return "none"
    return f"`{json.dumps(value)}`"


def _resolved(prop: Json, schema: Json) -> Json:
    if "$ref" in prop:
        found: Json = schema["$defs"][prop["$ref"].rpartition("/")[2]]
        return found
    return prop


_WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "array": "list"}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def type_of(prop: Json, schema: Json) -> tuple[str, str]:
    """A type in words, and which values it allows."""
    prop = _resolved(prop, schema)
    if "anyOf" in prop:
        parts = [type_of(one, schema) for one in prop["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(part[0] for part in parts)), "; ".join(part[1] for part in parts if part[1])
    if "enum" in prop:
        return _words(prop["enum"]), ", ".join(f"`{json.dumps(one)}`" for one in prop["enum"])
    if "const" in prop:
        return _words([prop["const"]]), f"`{json.dumps(prop['const'])}`"
    kind = prop.get("type", "any")
    limits = [f"{word} {prop[key]:g}" for key, word in _BOUNDS.items() if key in prop]
    if kind == "array" and isinstance(prop.get("items"), Mapping):
        inner, allowed = type_of(prop["items"], schema)
        return f"list of {_plural(inner)}", allowed
    if kind == "object":
        return "table", ""
    if prop.get("format") == "path":
        return "path", ""
    if "pattern" in prop:
        limits.append(f"matches `{prop['pattern']}`")
    return _WORDS.get(kind, kind), ", ".join(limits)


def _words(values: list[Any]) -> str:
    return "whole number" if all(isinstance(one, int) for one in values) else "text"


def _plural(word: str) -> str:
    known = {"text": "texts", "path": "paths", "any": "values"}
    return known.get(word, word if word.startswith("list") else f"{word}s")


# The result files


def results() -> str:
    """docs/reference/results.md."""
    from benchmarks.results.schema import json_schema

    schema = json_schema()
    rows = [[f"`{name}`", file["madeBy"], _link(file)] for name, file in schema["files"].items()]
    lines = [
        "# Result files\n",
        GENERATED,
        "Every JSON file that the project writes. The same schema for machines:\n"
        "[`benchmarks/results/result.schema.json`](../../benchmarks/results/result.schema.json). What was not\n"
        "measured is `null`. `resnet-compress show FILE.json` prints a result again.\n",
        markdown(["file", "written by", "form"], rows),
        "# Forms\n",
    ]
    definitions = schema["$defs"]
    first = list(dict.fromkeys(_names(schema["files"])))
    for name in [*first, *(one for one in sorted(definitions) if one not in first)]:
        lines += _definition(name, definitions[name])
    return "\n".join(lines)


def _names(schema: Any) -> Iterator[str]:
    """The forms that a part of a schema refers to."""
    if isinstance(schema, Mapping):
        if "$ref" in schema:
            yield _name(schema)
        for value in schema.values():
            yield from _names(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _names(value)


def _name(reference: Json) -> str:
    name: str = reference["$ref"].rpartition("/")[2]
    return name


def _title(name: str) -> str:
    """A form's name; pydantic puts the module before it where two have the same.

    >>> _title("compress__engines__harness__Bounds")
    'Bounds (compress.engines.harness)'
    """
    *module, last = name.split("__")
    return f"{last} ({'.'.join(module)})" if module else last


def _anchor(name: str) -> str:
    return re.sub(r"[^\w\- ]", "", _title(name).lower()).replace(" ", "-")


def _definition(name: str, record: Json) -> Iterator[str]:
    yield f"## {_title(name)}\n"
    text = " ".join((record.get("description") or "").split())
    if text:
        yield f"{text}\n"
    if "properties" in record:
        required = set(record.get("required", ()))
        rows = [
            [f"`{key}`" + ("" if key in required else " (may be absent)"), _link(prop), prop.get("description", "")]
            for key, prop in record["properties"].items()
        ]
        yield markdown(["field", "type", "meaning"], rows)


def _link(prop: Json) -> str:
    """The type of a field, with a link where it is a record of its own."""
    if "$ref" in prop:
        return f"[{_title(_name(prop))}](#{_anchor(_name(prop))})"
    for key in ("anyOf", "oneOf"):
        if key in prop:
            return " or ".join(dict.fromkeys("null" if one.get("type") == "null" else _link(one) for one in prop[key]))
    if prop.get("type") == "array":
        if "prefixItems" in prop:
            return f"list of {len(prop['prefixItems'])}: {', '.join(_link(one) for one in prop['prefixItems'])}"
        return f"list of {_link(prop['items'])}" if isinstance(prop.get("items"), Mapping) else "list"
    if prop.get("type") == "object":
        inner = prop.get("additionalProperties")
        return f"table of {_link(inner)}" if isinstance(inner, Mapping) else "table"
    kind, allowed = type_of(prop, {})
    return f"{kind}: {allowed}" if "enum" in prop or "const" in prop else kind


# The decisions


def decisions() -> str:
    """docs/decisions/README.md."""
    files = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    titles = [(file.name, file.read_text().splitlines()[0].removeprefix("# ")) for file in files]
    lines = [
        "# Decisions\n",
        GENERATED,
        "Short records of choices that a successor would question: what was decided, why, what was measured, and the",
        "price. A record is not rewritten when a later decision changes it; the later one says so.\n",
        *(f"- [{title}]({name})" for name, title in titles),
    ]
    return "\n".join(lines) + "\n"


# All of it


def pages() -> dict[Path, str]:
    """By path, what every generated file and every page with tables should be."""
    found = {
        DOCS / "reference/configuration.md": configuration(),
        DOCS / "reference/results.md": results(),
        DOCS / "decisions/README.md": decisions(),
    }
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        if page not in found and "<!-- table: " in (text := page.read_text()):
            found[page] = with_tables(text)
    return found


def stale() -> list[Path]:
    """The files that are not what they should be."""
    return [path for path, text in pages().items() if not path.exists() or path.read_text() != text]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not current")
    if parser.parse_args().check:
        old = stale()
        for path in old:
            sys.stderr.write(f"not current: {path.relative_to(ROOT)}; run: python docs/reference/generate.py\n")
        return 1 if old else 0
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
