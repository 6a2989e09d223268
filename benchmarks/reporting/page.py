"""Write a run's record as one HTML page, and as a model card in Markdown.

Templates escape every value: first control characters, then the characters that HTML or Markdown would interpret. Only
Markup is inserted as it is: drawings and tables that this package made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.reporting import headline, provenance, sections
from benchmarks.reporting.record import RunRecord, read_record
from benchmarks.reporting.rows import invalid
from benchmarks.results import tables
from benchmarks.results.networks import MeasuredNetwork, ParetoFile
from calibration.names import readable
from compress.files import write_atomic

REPORT, CARD = "report.html", "model_card.md"


def _templates(escaped: Callable[[str], str], *, html: bool) -> Environment:
    """Templates in which every value but Markup passes through ``escaped``."""
    return Environment(
        loader=PackageLoader("benchmarks", "reporting"),
        autoescape=html,
        finalize=lambda value: value if isinstance(value, Markup) else escaped(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _code(value: Any) -> Markup:
    """A code span in Markdown, fenced by more backticks than the value has in a row.

    >>> _code("a`b"), _code("x")
    (Markup('``a`b``'), Markup('`x`'))
    """
    text = readable(str(value))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{fence}{edge}{text}{edge}{fence}")


_HTML, _MARKDOWN = _templates(readable, html=True), _templates(tables.literal, html=False)
_MARKDOWN.filters["code"] = _code


def html(record: RunRecord) -> str:
    """The report as one HTML page, which loads no other files.

    Raises:
        PipelineError: a file that a part needs is damaged.
    """
    found, missing = sections.parts(record)
    last = [part for part in (provenance.measurement(record), provenance.origin(record)) if part is not None]
    return _HTML.get_template("report.html").render(
        title=record.title,
        heading=f"{_arch(record)}, compressed: {record.result.name}",
        name=record.directory.resolve().name,
        date=_date(record.networks),
        headline=headline.headline(record),
        figures=headline.figures(record),
        invalid=invalid(record.networks),
        warnings=headline.warnings(record),
        parts=[*found, *last],
        missing=missing,
    )


def front_html(name: str, front: ParetoFile) -> str:
    """The networks measured at several budgets as one HTML page, with those among which to choose.

    Args:
        name: of the run.
    """
    return _HTML.get_template("report.html").render(
        title=front.title,
        heading=f"{front.rows[0].arch}: which network?",
        name=name,
        date=_date(front.rows),
        headline="",
        figures=[],
        invalid=invalid(front.rows),
        warnings=[*front.left_out, *headline.warnings_of(front.rows)],
        parts=[sections.measured_front(front)],
        missing=[],
    )


def model_card(record: RunRecord) -> str:
    """The model card for the users of the engine: the result, its origin and its intended use."""
    result = record.result
    channels, compared = sections.channels(record), sections.comparison(record.networks)
    return _MARKDOWN.get_template("model_card.md").render(
        arch=_arch(record),
        classes=record.model.get("classes", []),
        preprocess=record.model.get("preprocess", {}),
        result=result,
        date=_date(record.networks),
        headline=headline.headline(record),
        invalid=invalid(record.networks),
        warnings=headline.warnings(record),
        comparison=Markup(tables.markdown(compared.header, compared.rows)),
        channels=None if channels is None else channels.text,
        manifests=record.manifests,
        host=result.latency.host,
    )


def _arch(record: RunRecord) -> str:
    return str(record.model.get("arch", record.title.partition(":")[0]))


def _date(networks: Sequence[MeasuredNetwork]) -> str:
    return datetime.fromisoformat(networks[0].latency.date).strftime("%Y-%m-%d %H:%M UTC")


def write(directory: Path) -> None:
    """Write ``report.html`` and ``model_card.md`` into a run's folder; if one cannot be made, write neither.

    Raises:
        PipelineError: the folder is not a run, was not measured, or has a damaged file.
    """
    record = read_record(directory)
    page, card = html(record), model_card(record)
    write_atomic(directory / REPORT, page)
    write_atomic(directory / CARD, card)
