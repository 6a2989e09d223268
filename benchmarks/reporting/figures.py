"""Draw a run's JSON files as figures: the predicted front, the losses, the removals, the measured front."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from benchmarks.results.networks import MeasuredNetwork, ParetoFile, on_front
from calibration.names import readable
from compress.errors import PipelineError
from compress.files import MANIFEST
from compress.graph.plan import WidthPlan
from compress.parse import read
from compress.prune.allocation.allocate import FrontFile
from compress.prune.losses.store import LOSSES, Measured, load_losses
from compress.prune.sizes import SIZES, SizesFile
from compress.prune.stage import FRONT, PLAN
from compress.run import read_manifest

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "resnet-compress",  # makes the bytes of a picture reproducible
}
BLUE, RED, GREY = "#1f5fa8", "#c0392b", "#707070"
_MIXED = ("data", "axes fraction")  # coordinates
_COLUMNS = 6  # of the small multiples
_NAME = 16  # characters of a group's name that fit above its panel
_COST = {  # what a budget is of, its unit, and how much that is
    "latency": ("INT8 latency, predicted", "ms", 1.0),
    "macs": ("multiply-accumulates", "M", 1e6),
    "params": ("parameters", "M", 1e6),
}
_LOSS = "loss: divergence of the outputs"


def caption(text: str) -> str:
    r"""Make a name from a file safe for a figure: escape control characters, and dollars, which would start a formula.

    >>> print(caption("a $x_$"))
    a \$x_\$
    """
    return readable(text).replace("$", r"\$")


def svg(figure: Figure) -> str:
    """A figure as SVG: text as paths, so that it looks the same everywhere; no date."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def front(record: FrontFile, plan: WidthPlan, *, alone: bool) -> Figure:
    """The least loss at every budget, and where the plan is.

    Args:
        record: of ``front.json``.
        alone: whether its budget was the only one; with other budgets the plan may lose more than the front shows.
    """
    what, symbol, unit = _COST[record.kind]
    cost, loss = np.array(record.cost) / unit, np.array(record.loss)
    full, chosen = (value / unit for value in _ends(record.kind, plan))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4), layout="constrained")
        ax = figure.subplots()
        positive = loss > 0
        ax.step(cost[positive], loss[positive], where="post", color=BLUE)
        ax.set_yscale("log")
        ax.axvline(full, color=GREY, linestyle=":")
        ax.annotate("dense", (full, 1), (-4, -4), _MIXED, "offset points", color=GREY, ha="right", va="top")
        ax.axvline(chosen, color=RED, linestyle="--", linewidth=1)
        text = f"chosen: {chosen:.4g} {symbol} ({chosen / full:.0%})"
        # The curve comes down at the right end only: below it there is room, on the wider side.
        side: Literal["left", "right"] = "right" if chosen > full / 2 else "left"
        place = (-4 if side == "right" else 4, 6)
        ax.annotate(text, (chosen, 0), place, _MIXED, "offset points", color=RED, ha=side)
        if alone and (below := np.flatnonzero(cost <= chosen * (1 + 1e-6))).size:
            ax.plot(chosen, loss[below[-1]], "o", color=RED)
        ax.set(xlabel=f"{what} ({symbol})", ylabel=f"predicted {_LOSS}", title="The least loss at every budget")
        ax.set_xlim(0, full * 1.02)
    return figure


def _ends(kind: str, plan: WidthPlan) -> tuple[float, float]:
    """The cost before and after; before the first round, where there are several."""
    if kind == "latency":
        assert plan.latency is not None  # the front of a latency was made with its table
        return plan.latency
    return getattr(plan.before, kind), getattr(plan.after, kind)


def losses(measured: Measured, plan: WidthPlan, *, columns: int = _COLUMNS) -> Figure:
    """The loss of each group by the share of channels kept, one panel per group, with the plan's choice.

    The full width is not drawn: its loss is 0, which a logarithmic axis cannot show.

    Args:
        columns: columns of panels, at most.
    """
    plans = {group.name: group for group in plan.groups}  # in order of execution
    curves = {name: measured.curves[name] for name in sorted(measured.curves, key=[*plans, *measured.curves].index)}
    columns = min(columns, len(curves))
    rows = -(-len(curves) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.9 * columns + 0.6, 1.5 * rows + 0.9), layout="constrained")
        panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
        for ax, (name, curve) in zip(panels, curves.items(), strict=False):
            full = curve.units[-1]
            for units, style in ((range(curve.units[0], full), "-"), (curve.units[:-1], ".")):
                ax.plot(100 * np.array(units) / full, curve.at(units), style, color=BLUE, linewidth=1, markersize=4)
            title = _short(name)
            if (group := plans.get(name)) is not None and group.after < group.before:
                title += f": {group.before} → {group.after}"
                if 0 < (units_kept := len(group.kept)) < full:
                    ax.plot(100 * units_kept / full, curve.at([units_kept]), "o", markersize=5, color=RED)
            ax.set_title(caption(title), fontsize=8)
            ax.set(yscale="log", xlim=(0, 104), xticks=[0, 50, 100])
        for ax in panels[len(curves) - columns : len(curves)]:  # above an empty place there is no axis to share
            ax.tick_params(labelbottom=True)
        for ax in panels[len(curves) :]:
            ax.set_visible(False)
        figure.supxlabel("channels kept (%)", fontsize=9)
        figure.supylabel(_LOSS, fontsize=9)
        figure.suptitle("What each group's width costs; red: the plan", fontsize=10)
    return figure


def _short(name: str) -> str:
    """The last parts of a name, as many as fit.

    >>> _short("encoder.stages.layer3.10.conv1")
    '…layer3.10.conv1'
    """
    parts = name.split(".")
    first = next((k for k in range(len(parts)) if len(".".join(parts[k:])) <= _NAME), len(parts) - 1)
    return "…" * (first > 0) + ".".join(parts[first:])


def removals(measured: Measured, plan: WidthPlan) -> Figure:
    """The loss of removing each block; blocks that the plan removes are red."""
    names = list(measured.removals)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 0.28 * len(names) + 1.1), layout="constrained")
        ax = figure.subplots()
        colors = [RED if name in plan.removed else BLUE for name in names]
        ax.barh(list(map(caption, names)), list(measured.removals.values()), color=colors, height=0.6)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set(xlabel=_LOSS, title="What each block's removal costs" + ("; red: removed" if plan.removed else ""))
    return figure


def pareto(title: str, rows: Sequence[MeasuredNetwork]) -> Figure:
    """Measured quality against measured latency, with 95% intervals; see ``benchmarks.pareto``.

    Args:
        title: of the figure.
        rows: the networks; the first is the dense one in float. INT8 is drawn filled, float hollow; the line joins
            those that no other beats, which are named, as are the dense ones. Of a backbone the first, which the others
            are compared with, is not drawn.

    Raises:
        PipelineError: nothing is known of the networks' outputs.
    """
    known = [row for row in rows if row.quality is not None and math.isfinite(row.quality)]
    if not known:
        raise PipelineError(f"'{rows[-1].name}' has no accuracy to draw", remedy="measure it on evaluation images")
    front = on_front(known)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        ax = figure.subplots()
        for row, (ms, quality) in ((row, _bounds(row)) for row in known):
            color = GREY if row.dense else BLUE
            errors = [_reach(ms), _reach(quality)]
            mark, inside = "s" if row.dense else "o", color if row.int8 else "none"
            ax.errorbar(ms[0], quality[0], errors[1], errors[0], mark, color=color, mfc=inside, capsize=2)
            if row.dense or row in front:
                text = row.name if row.dense else row.name.removesuffix(" INT8")
                ax.annotate(caption(text), (ms[0], quality[0]), (6, -12), textcoords="offset points", color=color)
        line = np.array([(ms[0], quality[0]) for ms, quality in map(_bounds, front)]).reshape(-1, 2)
        ax.plot(*line.T, color=BLUE, linewidth=1, alpha=0.5, zorder=0)
        ax.set_xscale("log")
        _plain_ticks(ax)
        ylabel = "SQNR of the outputs (dB)" if known[-1].fidelity else "top-1 (%)"
        ax.set(xlabel="latency, median (ms)", ylabel=ylabel)
        ax.set_title(_wrapped(caption(title)))
        ax.margins(x=0.2, y=0.1)
    return figure


def _bounds(row: MeasuredNetwork) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """ms, and percent or dB, each as (value, low, high)."""
    ms, quality = row.latency.stats["latency_ms"].median, row.quality
    if row.accuracy is None:
        assert quality is not None
        return (ms.value, ms.lo, ms.hi), (quality, quality, quality)
    share = row.accuracy.top1.value
    return (ms.value, ms.lo, ms.hi), (100 * share.value, 100 * share.lo, 100 * share.hi)


def _reach(bounds: tuple[float, float, float]) -> list[list[float]]:
    value, low, high = bounds
    return [[max(0.0, value - low)], [max(0.0, high - value)]]  # a bootstrap interval need not hold the estimate


def _plain_ticks(ax: Axes) -> None:
    """Ticks of a logarithmic axis close enough for less than a decade, written out."""
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))


def _wrapped(title: str) -> str:
    """A title in two lines, broken at its semicolons."""
    first, _, rest = title.partition("; ")
    return f"{first}\n{rest}" if rest else first


def draw(directory: Path) -> dict[str, Figure]:
    """Draw every figure for which a run's folder has the files; by file name.

    Raises:
        PipelineError: there is nothing to draw.
    """
    found: dict[str, Figure] = {}
    prune, measured = directory / "prune", directory / "pareto" / "pareto.json"
    if (prune / MANIFEST).exists():
        plan = WidthPlan.read(prune / PLAN)
        if (drawn := predicted_front(directory, plan)) is not None:
            found["front.svg"] = drawn
        if (curves := losses_of(directory)) is not None:
            found["losses.svg"] = losses(curves, plan)
            if curves.removals:
                found["removals.svg"] = removals(curves, plan)
    if measured.exists():
        read_pareto = read(measured, ParetoFile, remedy="make it again: python -m benchmarks.pareto --config FILE")
        found["pareto.svg"] = pareto(read_pareto.title, read_pareto.rows)
    if not found:
        raise PipelineError(f"there is nothing to draw in {directory}", remedy="python -m compress prune first")
    return found


def predicted_front(directory: Path, plan: WidthPlan) -> Figure | None:
    """The ``front`` figure of a run; None if pruning had no budget, and so wrote no front."""
    path = directory / "prune" / FRONT
    if not path.exists():
        return None
    settings = read_manifest(directory / "prune").settings.get("prune", {})
    alone = sum(settings.get(kind) is not None for kind in ("latency", "macs", "params")) <= 1
    return front(read(path, FrontFile, remedy="make it again: python -m compress prune --force"), plan, alone=alone)


def losses_of(directory: Path) -> Measured | None:
    """The losses that pruning used in its last round; None if there are none."""
    stage, store = directory / "prune", directory / "losses"
    if (sizes := stage / SIZES).exists():
        taken = f"{read(sizes, SizesFile, remedy='run stage prune again').taken}px"
        stage = directory / "candidates" / taken / "prune"
        other = directory / "sizes" / taken / "losses"
        store = other if other.is_dir() else store
    if not (stage / MANIFEST).exists():
        return None
    parents = read_manifest(stage).parents
    names = [Path(parent).name for parent in parents if Path(parent).parent.name == "losses"]
    folders = [folder for name in names if (folder := store / name).joinpath(LOSSES).exists()]
    return load_losses(folders[-1]) if folders else None
