"""Draw the report's own figures, and turn any figure into SVG in the colours of the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from benchmarks.reporting.figures import BLUE, GREY, RED, STYLE, caption, svg
from benchmarks.results.base import Bounds
from benchmarks.results.latency import LatencyResult
from compress.graph.plan import WidthPlan
from compress.quantize.sensitivity import LayerRatios

WIDTH = 4.4  # inches; at this width the labels can be read on a phone
_BINS = 60
_SHOWN = 0.995  # share of the samples that a histogram's axis covers
_THEME = {"#000000": "currentColor", BLUE: "var(--blue)", RED: "var(--red)", GREY: "var(--muted)"}
_LEFT_OUT = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
_ID = re.compile(r'((?:\bid="|href="#|url\(#))')


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption.

    Attributes:
        narrow: a second drawing for the width of a phone; None if one drawing serves both.
    """

    caption: str
    wide: Markup
    narrow: Markup | None = None


def inline(figure: Figure, name: str, *, width: float | None = WIDTH) -> Markup:
    """A figure as an ``<svg>`` element without background, in the colours of the page around it.

    Args:
        name: unique on the page; it keeps the identifiers of two drawings apart.
        width: width in inches; None keeps the figure's own. The title is dropped, because the page has one.
    """
    if width is not None:
        figure.set_size_inches(width, figure.get_size_inches()[1])
    figure.patch.set_alpha(0)
    with matplotlib.rc_context(STYLE):
        figure.suptitle("")
        for ax in figure.axes:
            ax.patch.set_alpha(0)
            if len(figure.axes) == 1:
                ax.set_title("")
    text = _LEFT_OUT.sub("", svg(figure))
    for color, themed in _THEME.items():
        text = text.replace(color, themed)
    text = _ID.sub(rf"\g<1>{name}-", text)
    return Markup(text.replace("<svg ", '<svg aria-hidden="true" ', 1).strip())


def latencies(results: Mapping[str, LatencyResult]) -> Figure:
    """A histogram of each network's samples, with the median and its interval; the tail is only counted."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 * len(results) + 0.3), layout="constrained")
        panels = figure.subplots(len(results), 1, squeeze=False)[:, 0]
        for ax, (name, result) in zip(panels, results.items(), strict=True):
            samples = np.concatenate([np.array(part) for part in result.samples_ns if part]) / 1e6
            median = result.stats["latency_ms"].median
            end = max(float(np.quantile(samples, _SHOWN)), median.hi)
            counts, edges = np.histogram(samples, _BINS, range=(float(samples.min()), end))
            ax.stairs(counts, edges, fill=True, color=BLUE, alpha=0.6)
            ax.axvspan(median.lo, median.hi, color=RED, alpha=0.3, linewidth=0)
            ax.axvline(median.value, color=RED, linewidth=1)
            if beyond := int((samples > end).sum()):
                text = f"{beyond} more, up to {samples.max():.3g} ms →"
                ax.annotate(text, (1, 0.98), xycoords="axes fraction", ha="right", va="top", fontsize=8)
            ax.set_title(caption(name), loc="left", fontsize=9)
            ax.set(yticks=[])
        panels[-1].set_xlabel("one inference (ms)")
    return figure


def widths(plan: WidthPlan) -> Figure:
    """Channels of each group, before (grey) and after (blue), in order of execution."""
    names = [caption(group.name) for group in plan.groups]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.24 * len(names) + 0.7), layout="constrained")
        ax = figure.subplots()
        ax.barh(names, [group.before for group in plan.groups], color=GREY, alpha=0.3, height=0.7)
        ax.barh(names, [group.after for group in plan.groups], color=BLUE, height=0.7)
        for name, group in zip(names, plan.groups, strict=True):
            text = f"{group.before} → {group.after}" if group.after else f"{group.before} → gone"
            color = "black" if group.after else RED
            ax.annotate(text, (group.before, name), (4, 0), textcoords="offset points", va="center", color=color)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set(xlabel="channels")
        ax.margins(x=0.25, y=0.01)
    return figure


def sqnr(layers: Sequence[LayerRatios], whole: float | None) -> Figure:
    """Signal-to-quantization-noise ratios by layer, in order of execution.

    Args:
        layers: of ``sensitivity.json``; what is None is infinite, and not drawn.
        whole: of the network, in dB.
    """
    names = [caption(one.layer) for one in layers]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.22 * len(names) + 1.0), layout="constrained")
        ax = figure.subplots()
        for key, mark, color, label in (
            ("output", "o", BLUE, "at its output, all layers in INT8"),
            ("alone", "D", RED, "at the network's outputs, only it in INT8"),
        ):
            ratios = [getattr(one, key) for one in layers]
            known = [(ratio, row) for row, ratio in enumerate(ratios) if ratio is not None]
            ax.plot(*zip(*known, strict=True), mark, color=color, markersize=4, label=label) if known else None
        if whole is not None:
            ax.axvline(whole, color=GREY, linestyle="--", linewidth=1, label="the whole network")
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        ax.set(xlabel="SQNR (dB), more is better")
        ax.margins(y=0.02)
        figure.legend(loc="outside upper left", fontsize=8, frameon=False)
    return figure


@dataclass(frozen=True)
class LatencyPairs:
    """Latencies in ms, predicted and measured, one pair per network."""

    label: str
    predicted: Sequence[float]
    measured: Sequence[float]


def predictions(series: Sequence[LatencyPairs], exported: tuple[float, Bounds] | None) -> Figure:
    """Measured against predicted latency, with the line on which they are equal.

    Args:
        series: at most two.
        exported: predicted and measured ms of the run's exported network.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        ax = figure.subplots()
        for one, mark, color in zip(series, ("s", "o"), (GREY, BLUE), strict=False):
            ax.plot(one.predicted, one.measured, mark, color=color, markersize=4, label=one.label)
        if exported is not None:
            predicted, found = exported
            reach = [[max(0.0, found.value - found.lo)], [max(0.0, found.hi - found.value)]]
            ax.errorbar([predicted], [found.value], reach, fmt="D", color=RED, capsize=3, label="the exported network")
        low, high = min(ax.get_xlim()[0], ax.get_ylim()[0]), max(ax.get_xlim()[1], ax.get_ylim()[1])
        ax.plot([low, high], [low, high], color=GREY, linestyle=":", linewidth=1)
        ax.set(xlabel="predicted (ms)", ylabel="measured (ms)", aspect="equal")
        figure.legend(loc="outside upper left", fontsize=8, frameon=False)
    return figure
