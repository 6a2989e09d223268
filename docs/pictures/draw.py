"""``python docs/pictures/draw.py``: draws the pictures of the documentation as SVG, from committed files.

``python docs/pictures/draw.py --from runs/mine`` first takes what they show out of a run (that of the tutorial) into
``run.json``: no figure in a picture is typed by hand. The measured front is drawn from
``docs/results/imagenette-pareto.json``, of which ``docs/results.md`` shows the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # a script of docs/ is in no package

from benchmarks.reporting.figures import BLUE, GREY, RED, STYLE, svg  # noqa: E402

RESULTS = HERE.parent / "results"
RUN = HERE / "run.json"
PALE_BLUE, PALE_RED, PALE_GREY = "#dce8f5", "#f7dedb", "#eeeeee"


# What a run says


def extract(run: Path) -> dict[str, Any]:
    """The numbers that the pictures show, out of a run's files."""
    from benchmarks.reporting.headline import figures, headline
    from benchmarks.reporting.record import read_record

    def read(name: str) -> Any:
        return json.loads((run / name).read_text())

    record = read_record(run)
    plan, front = read("prune/plan.json"), read("prune/front.json")
    networks = [
        {
            "name": one.name,
            "latency_ms": one.latency.stats["latency_ms"].median.model_dump(),
            "top1": one.accuracy.top1.value.model_dump() if one.accuracy else None,
            "file_bytes": one.latency.artifact.bytes,
            "samples_ms": _thinned(one.latency.samples_ns),
            "verdict": one.latency.verdict.status,
        }
        for one in record.networks
    ]
    return {
        "command": "resnet-compress summary --config my.toml (docs/tutorial.md)",
        "cpu": record.networks[0].latency.host.cpu,
        "date": record.networks[0].latency.date,
        "front": {"cost": _rounded(front["cost"]), "loss": _rounded(front["loss"])},
        "plan": {"groups": [{k: g[k] for k in ("name", "kind", "before", "after")} for g in plan["groups"]]}
        | {"removed": plan["removed"], "latency": plan["latency"]},
        "networks": networks,
        "headline": headline(record),
        "tiles": [{"name": one.name, "value": one.value, "note": one.note} for one in figures(record)],
    }


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _thinned(rounds: list[list[int]], most: int = 400) -> list[float]:
    """At most so many of the samples, evenly spaced over the run, in ms."""
    flat = [sample / 1e6 for samples in rounds for sample in samples]
    step = max(1, len(flat) // most)
    return [round(sample, 4) for sample in flat[::step]]


# Boxes and arrows


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing whose unit is an inch."""
    figure = Figure(figsize=(width, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def box(ax: Axes, x: float, y: float, w: float, h: float, text: str, *, face: str = "white", edge: str = "#333333",
        size: float = 9, dashed: bool = False) -> None:  # fmt: skip
    style = "round,pad=0,rounding_size=0.06"
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=face, edgecolor=edge,
                                linestyle="--" if dashed else "-", linewidth=1.1))  # fmt: skip
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "#333333") -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=color, linewidth=1.4,
                                 shrinkA=0, shrinkB=0))  # fmt: skip


def line(ax: Axes, *points: tuple[float, float], color: str = "#333333") -> None:
    ax.plot(*zip(*points, strict=True), color=color, linewidth=1.4, solid_capstyle="round")


# The pictures


def block() -> Figure:
    """A residual block with the words of the glossary."""
    figure, ax = canvas(8.6, 3.3)
    y, h = 1.45, 0.62
    ax.add_patch(Rectangle((1.45, 0.55), 5.1, 2.1, fill=False, linestyle="--", edgecolor=GREY))
    ax.text(1.5, 0.36, "segment layer2.1: a residual block, removable because its shortcut is the identity",
            fontsize=8.5, color=GREY, va="center")  # fmt: skip
    _channels(ax, 0.35, y - 0.02, 6, BLUE, marked=None)
    ax.text(0.1, 2.42, "stream\n128 channels", fontsize=8.5, color=BLUE, va="center")
    arrow(ax, (0.95, y + h / 2), (1.8, y + h / 2), BLUE)
    box(ax, 1.8, y, 1.05, h, "conv1\nBN, ReLU", face=PALE_GREY)
    arrow(ax, (2.85, y + h / 2), (3.25, y + h / 2), RED)
    _channels(ax, 3.3, y - 0.02, 6, RED, marked=3)
    ax.text(3.55, 0.88, "inner width: 128 channels\none stripe: a unit", fontsize=8.5, color=RED, ha="center",
            va="center")  # fmt: skip
    arrow(ax, (3.9, y + h / 2), (4.3, y + h / 2), RED)
    box(ax, 4.3, y, 0.95, h, "conv2\nBN", face=PALE_GREY)
    arrow(ax, (5.25, y + h / 2), (5.7, y + h / 2), BLUE)
    ax.add_patch(matplotlib.patches.Circle((5.87, y + h / 2), 0.17, facecolor="white", edgecolor="#333333"))
    ax.text(5.87, y + h / 2, "+", ha="center", va="center", fontsize=12)
    line(ax, (1.2, y + h / 2), (1.2, 2.42), (5.87, 2.42), color=BLUE)
    arrow(ax, (5.87, 2.42), (5.87, y + h / 2 + 0.17), BLUE)
    ax.text(3.55, 2.52, "shortcut", fontsize=8.5, color=BLUE, ha="center")
    arrow(ax, (6.04, y + h / 2), (7.0, y + h / 2), BLUE)
    ax.text(6.32, y + h / 2 + 0.1, "ReLU", fontsize=8, ha="center")
    _channels(ax, 7.05, y - 0.02, 6, BLUE, marked=None)
    ax.text(7.0, 2.42, "the same stream:\nthe addition ties it", fontsize=8.5, color=BLUE, va="center")
    text = "conv1 reads the stream and writes the inner width; conv2 reads the inner width and writes the stream"
    ax.text(1.5, 2.95, text, fontsize=8.5, va="center")
    return figure


def _channels(ax: Axes, x: float, y: float, count: int, color: str, *, marked: int | None) -> None:
    """A tensor, drawn as stripes, one a channel."""
    pale = PALE_BLUE if color == BLUE else PALE_RED
    for k in range(count):
        face = color if k == marked else pale
        ax.add_patch(Rectangle((x, y + 0.11 * k), 0.5, 0.11, facecolor=face, edgecolor=color, linewidth=0.8))


def pipeline() -> Figure:
    """The stages, and what measures them."""
    figure, ax = canvas(9.2, 2.75)
    stages = [
        ("baseline", "trained ResNet\nand your images"),
        ("prune", "channels and blocks\nthat lose the least"),
        ("finetune", "with the dense\nnetwork as teacher"),
        ("quantize", "INT8: calibration\nor QAT"),
        ("export", "FP32 and INT8\nONNX, checked"),
        ("build", "engine file\nand sidecar"),
    ]
    w, gap, y = 1.36, 0.16, 1.35
    for k, (name, text) in enumerate(stages):
        x = 0.12 + k * (w + gap)
        box(ax, x, y, w, 0.95, "", face=PALE_BLUE, edge=BLUE)
        ax.text(x + w / 2, y + 0.75, name, ha="center", va="center", fontsize=10, weight="bold", color=BLUE)
        ax.text(x + w / 2, y + 0.33, text, ha="center", va="center", fontsize=8)
        if k:
            arrow(ax, (x - gap, y + 0.47), (x, y + 0.47), BLUE)
    second = 0.12 + w + gap
    text = "latency table: measured on the\nINT8 engine of your device"
    box(ax, 0.12, 0.3, 2.88, 0.6, text, face=PALE_RED, edge=RED, size=8.5)
    arrow(ax, (second + w / 2, 0.9), (second + w / 2, y), RED)
    last = 0.12 + 5 * (w + gap)
    box(ax, last - 2.9, 0.3, 2.9 + w, 0.6, "latency and accuracy with 95% intervals, before and after;\nreport, gates",
        face=PALE_RED, edge=RED, size=8.5)  # fmt: skip
    arrow(ax, (last + w / 2, y), (last + w / 2, 0.9), RED)
    text = "resnet-compress all, or make prune quantize export: each stage is a folder in runs/NAME/"
    ax.text(0.12, 2.5, text, fontsize=8.5)
    return figure


def fronts(run: dict[str, Any], pareto: dict[str, Any]) -> Figure:
    """Left: the predicted front of the tutorial's run. Right: the measured front on Imagenette."""
    front, plan = run["front"], run["plan"]
    full, chosen = plan["latency"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        pairs = [(c, v) for c, v in zip(front["cost"], front["loss"], strict=True) if v > 0]
        left.step(*zip(*pairs, strict=True), where="post", color=BLUE)
        left.set_yscale("log")
        left.axvline(full, color=GREY, linestyle=":")
        mixed = ("data", "axes fraction")  # coordinates
        left.annotate("dense", (full, 1), (-4, -4), mixed, "offset points", ha="right", va="top", color=GREY)
        left.axvline(chosen, color=RED, linestyle="--", linewidth=1)
        text = f"chosen: {chosen:.3f} ms ({chosen / full:.0%})"
        left.annotate(text, (chosen, 0.03), (6, 0), mixed, "offset points", color=RED)
        left.set(xlabel="INT8 latency, predicted (ms)", ylabel="loss, predicted (KL, nats)",
                 title="Predicted: the least loss at each latency\n(ResNet-18, the tutorial)")  # fmt: skip
        left.set_xlim(0, full * 1.02)
        rows = pareto["rows"]
        for row in rows:
            ms, top1 = row["measured_ms"], row["top_1_percent"]
            dense = row["network"].startswith("dense")
            color = GREY if dense else BLUE
            reach = [[[one[0] - one[1]], [one[2] - one[0]]] for one in (top1, ms)]
            right.errorbar(ms[0], top1[0], *reach, "s" if dense else "o", color=color, capsize=2)
            right.annotate(row["network"], (ms[0], top1[0]), (6, -12), textcoords="offset points", color=color)
        points = sorted((row["measured_ms"][0], row["top_1_percent"][0]) for row in rows[1:])
        right.plot(*zip(*points, strict=True), color=BLUE, linewidth=1, alpha=0.5, zorder=0)
        right.set_xscale("log")
        ticks = [0.5, 1, 2, 4, 8]
        right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        right.minorticks_off()
        right.set(xlabel="latency, measured (ms)", ylabel="top-1, measured (%)",
                  title="Measured: accuracy against latency\n(ResNet-18 on Imagenette, 95% intervals)")  # fmt: skip
        right.margins(x=0.2, y=0.1)
    return figure


def before_after(run: dict[str, Any]) -> Figure:
    """Channels of each group, and what the networks take."""
    groups, networks = run["plan"]["groups"], run["networks"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
        names = [group["name"] + (" (stream)" if group["kind"] == "stream" else "") for group in groups]
        left.barh(names, [group["before"] for group in groups], color=GREY, alpha=0.3, height=0.7)
        left.barh(names, [group["after"] for group in groups], color=BLUE, height=0.7)
        for name, group in zip(names, groups, strict=True):
            text = f"{group['before']} → {group['after'] or 'removed'}"
            left.annotate(text, (group["before"], name), (4, 0), textcoords="offset points", va="center",
                          color="black" if group["after"] else RED)  # fmt: skip
        left.invert_yaxis()
        left.grid(axis="y", visible=False)
        left.set(xlabel="channels, before (grey) and after (blue)", title="Widths")
        left.margins(x=0.25, y=0.01)
        medians = [one["latency_ms"] for one in networks]
        labels = [
            f"{one['name']}\n{100 * one['top1']['value']:.2f}% top-1, {one['file_bytes'] / 1e6:.1f} MB"
            for one in networks
        ]
        values = [one["value"] for one in medians]
        reach = [[max(0.0, v["value"] - v["lo"]) for v in medians], [max(0.0, v["hi"] - v["value"]) for v in medians]]
        right.barh(labels, values, xerr=reach, color=[GREY, BLUE, RED][: len(values)], height=0.55, capsize=2)
        for label, one in zip(labels, medians, strict=True):
            right.annotate(f"{one['value']:.3f} ms", (max(one["value"], one["hi"]), label), (6, 0),
                           textcoords="offset points", va="center")  # fmt: skip
        right.invert_yaxis()
        right.grid(axis="y", visible=False)
        right.set(xlabel="latency, median with 95% interval (ms)", title="Networks")
        right.margins(x=0.25)
    return figure


def report(run: dict[str, Any]) -> Figure:
    """The top of a report page: its sentence, its tiles, and the samples behind the medians."""
    networks = run["networks"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.9))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, 9.2), ylim=(0, 4.9))
        ax.axis("off")
        ax.text(0.2, 4.6, "resnet18", fontsize=15, weight="bold", va="center")
        ax.text(0.2, 4.3, textwrap.fill(run["headline"], 118), fontsize=8.5, va="top", linespacing=1.4)
        for k, tile in enumerate(run["tiles"]):
            x = 0.2 + 2.22 * k
            box(ax, x, 2.55, 2.1, 1.0, "", face=PALE_BLUE, edge=PALE_BLUE)
            ax.text(x + 0.12, 3.36, tile["name"], fontsize=8.5, color=GREY, va="center")
            ax.text(x + 0.12, 3.06, tile["value"], fontsize=14, weight="bold", va="center")
            ax.text(x + 0.12, 2.74, tile["note"], fontsize=7, color=GREY, va="center")
        width = 2.75
        for k, one in enumerate(networks):
            panel = figure.add_axes(((0.25 + k * (width + 0.25)) / 9.2, 0.42 / 4.9, width / 9.2, 1.7 / 4.9))
            samples = sorted(one["samples_ms"])
            end = max(samples[int(0.995 * (len(samples) - 1))], one["latency_ms"]["hi"])
            panel.hist([s for s in samples if s <= end], bins=40, color=BLUE, alpha=0.6)
            panel.axvspan(one["latency_ms"]["lo"], one["latency_ms"]["hi"], color=RED, alpha=0.3, linewidth=0)
            panel.axvline(one["latency_ms"]["value"], color=RED, linewidth=1)
            panel.set_title(one["name"], loc="left", fontsize=9)
            panel.set(yticks=[], xlabel="one inference (ms)")
    return figure


def draw() -> dict[str, Figure]:
    """By file name, every picture."""
    run = json.loads(RUN.read_text())
    pareto = json.loads((RESULTS / "imagenette-pareto.json").read_text())
    made: dict[str, Callable[[], Figure]] = {
        "block.svg": block,
        "pipeline.svg": pipeline,
        "front.svg": lambda: fronts(run, pareto),
        "before-after.svg": lambda: before_after(run),
        "report.svg": lambda: report(run),
    }
    return {name: make() for name, make in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="taken", type=Path, metavar="RUN", help="first take the figures out of this run")
    taken = parser.parse_args().taken
    if taken is not None:
        RUN.write_text(json.dumps(extract(taken)) + "\n")
    for name, figure in draw().items():
        (HERE / name).write_text(svg(figure))
        sys.stdout.write(f"{HERE / name}\n")


if __name__ == "__main__":
    main()
