"""A run's record as one HTML page, and as a model card in Markdown. Every value is escaped by the templates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from benchmarks import tables
from benchmarks.outcome import Section
from benchmarks.reporting import headline, provenance, sections
from benchmarks.reporting.record import RunRecord

_TEMPLATES = Environment(
    loader=PackageLoader("benchmarks", "reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def html(record: RunRecord) -> str:
    """One page that needs nothing besides itself.

    Raises:
        PipelineError: a file that a part is drawn from is damaged.
    """
    found, missing = sections.parts(record)
    last = [part for part in (provenance.measurement(record), provenance.origin(record)) if part is not None]
    return _TEMPLATES.get_template("report.html").render(
        title=record.title,
        arch=_arch(record),
        result=record.result.name,
        name=record.directory.resolve().name,
        date=_date(record),
        headline=headline.headline(record),
        figures=headline.figures(record),
        invalid=headline.invalid(record),
        warnings=headline.warnings(record),
        parts=[*found, *last],
        missing=missing,
    )


def model_card(record: RunRecord) -> str:
    """The result, what it was made from and how it may be used, for who gets the engine."""
    result = record.result
    channels = sections.channels(record)
    return _TEMPLATES.get_template("model_card.md").render(
        arch=_arch(record),
        classes=record.model.get("classes", []),
        preprocess=record.model.get("preprocess", {}),
        result=result,
        date=_date(record),
        headline=headline.headline(record),
        invalid=headline.invalid(record),
        warnings=headline.warnings(record),
        comparison=_markdown(sections.comparison(record.networks)),
        channels=None if channels is None else channels.text,
        manifests=record.manifests,
        host=result.latency.host,
    )


def _arch(record: RunRecord) -> str:
    return str(record.model.get("arch", record.title.partition(":")[0]))


def _markdown(section: Section) -> Markup:
    """A table whose cells can neither end it nor be markup."""

    def cell(text: str) -> str:
        return str(escape(text)).replace("|", "&#124;")

    rows: Sequence[Sequence[str]] = [[cell(text) for text in row] for row in section.rows]
    return Markup(tables.markdown([cell(text) for text in section.header], rows))


def _date(record: RunRecord) -> str:
    return datetime.fromisoformat(record.networks[0].latency.date).strftime("%Y-%m-%d %H:%M UTC")
