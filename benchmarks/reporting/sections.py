"""The parts of a report about a run's results; for a part without data, the command that makes the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.reporting import charts, figures
from benchmarks.reporting.charts import Chart, LatencyPairs, inline
from benchmarks.reporting.choices import Choice, choices, which
from benchmarks.reporting.headline import megabytes
from benchmarks.reporting.outcome import ABOVE_PEAK, Section, as_predicted, median, share_of_peak, widths
from benchmarks.reporting.outcome import error as relative_error
from benchmarks.reporting.outcome import predictions as predicted_table
from benchmarks.reporting.record import RunRecord
from benchmarks.reporting.rows import input_header, quality, quality_header, sides
from benchmarks.results.networks import MeasuredNetwork, ParetoFile
from benchmarks.results.tables import interval, speedup
from compress.prune.latency.predictor import LatencyModel
from compress.prune.latency.table import LatencyTable

_TAILS = ("p90", "p95", "p99")


@dataclass(frozen=True)
class Part:
    """A part of the report.

    Attributes:
        text: a description of the part in a sentence or two.
        tables: tables that are shown; those in ``details`` are folded.
        choices: networks, each with the way to take it.
    """

    anchor: str
    title: str
    text: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[Section, ...] = ()
    details: tuple[Section, ...] = ()
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Missing:
    """A part that has no data, and the command that makes the data."""

    what: str
    command: str


def before_after(record: RunRecord) -> Part:
    """Every measured network in one table."""
    text = (
        "All networks ran in one interleaved measurement; latency is the median of single inferences. "
        "In brackets: 95% intervals. Dense is the network as it was trained, pruned the one with fewer channels; FP32 "
        "computes in 32-bit floating point, INT8 in 8-bit integers. Top-1 is the share of images whose likeliest class "
        "is the right one; its change is paired, image by image, in percentage points."
    )
    if any(network.for_comparison for network in record.networks):
        text += (
            " Layers that cost too much accuracy in INT8 were left in float; "
            "the network without float layers shows what they cost in latency and gain in accuracy."
        )
    return Part("before-after", "Before and after", text, tables=(comparison(record.networks),))


def comparison(networks: Sequence[MeasuredNetwork]) -> Section:
    """Networks as the rows of a table."""
    size = ["latency ms", "speed-up", "file MB", "params M", "MACs M"]
    header = ["network", *input_header(networks), *quality_header(networks), *size]
    return Section("", header, [_cells(network, networks) for network in networks])


def _cells(network: MeasuredNetwork, networks: Sequence[MeasuredNetwork]) -> list[str]:
    compared = network.latency.comparison
    return [
        network.label,
        *(sides(network) for _ in input_header(networks)),
        *quality(network),
        interval(network.latency.stats["latency_ms"].median, 3),
        speedup(compared.ratio if compared else None),
        megabytes(network),
        f"{network.params / 1e6:.3f}",
        f"{network.macs / 1e6:.1f}",
    ]


def front(record: RunRecord) -> Part | None:
    """The networks measured at several budgets; if there are none, the front that pruning has predicted."""
    if record.front is not None:
        return measured_front(record.front)
    if record.plan is None:
        return None
    figure = figures.predicted_front(record.directory, record.plan)
    if figure is None:
        return None
    text = "What pruning predicts before fine-tuning: the least that a network loses at each budget. Not measured."
    chart = Chart(
        "The least loss of the outputs at every budget; red: the budget that was chosen.", inline(figure, "front")
    )
    return Part("front", "Predicted loss against budget", text, (chart,))


def measured_front(front: ParetoFile) -> Part:
    """The networks measured at several budgets, and those among which to choose."""
    points = front.rows
    drawn = inline(figures.pareto(front.title, points), "pareto")
    text = (
        "The same network pruned to several budgets, all measured in one run; a percentage is the budget, as a "
        "share of the dense INT8 network's latency. Up and left is better."
    )
    what = "Fidelity of the outputs" if any(point.fidelity for point in points) else "Accuracy"
    legend = "Filled: INT8; hollow: float. The line joins the networks that no other one beats."
    chart = Chart(f"{what} against median latency (logarithmic), with 95% intervals. {legend}", drawn)
    details = [replace(comparison(points), title="All networks")]
    if front.left_out:
        details.append(Section("Points that were not measured", ["point"], [[text] for text in front.left_out]))
    ways = tuple(choices(points))
    return Part("front", f"{what} against latency", text, (chart,), (which(points),), tuple(details), ways)


def channels(record: RunRecord) -> Part | None:
    """The channels that pruning removed."""
    if record.plan is None or (table := widths(record.plan)) is None:
        return None
    plan = record.plan
    text = (
        f"Pruning kept {plan.after.macs / plan.before.macs:.0%} of the multiply-accumulates "
        f"and {plan.after.params / plan.before.params:.0%} of the parameters. "
        "A group is a set of layers that must keep the same channels."
    )
    if plan.removed:
        text += f" Removed as a whole: {', '.join(plan.removed)}."
    chart = Chart(
        "Channels of each group, from input to output: grey before, blue after.", inline(charts.widths(plan), "widths")
    )
    return Part("channels", "Channels before and after", text, (chart,), details=(replace(table, title=""),))


def losses(record: RunRecord) -> Part | None:
    """The measured loss of each group at every width, and of removing each block."""
    if record.plan is None:
        return None
    plan = record.plan
    measured = figures.losses_of(record.directory)
    if measured is None or not measured.curves:
        return None
    wide = inline(figures.losses(measured, plan), "losses", width=None)
    narrow = inline(figures.losses(measured, plan, columns=2), "losses-narrow", width=None)
    drawn = [Chart("Loss (logarithmic) by the share of a group's channels that stay; red: the plan.", wide, narrow)]
    if measured.removals:
        caption = "Loss of removing a whole block; red: removed."
        drawn.append(Chart(caption, inline(figures.removals(measured, plan), "removals")))
    text = (
        "How much the network's outputs change when one group alone is narrowed. "
        "A flat curve means that channels can be removed; the plan removes them where they also cost time."
    )
    return Part("losses", "What each group's width costs", text, tuple(drawn))


def quantization(record: RunRecord) -> Part | None:
    """Signal-to-quantization-noise ratio of each layer."""
    if record.sensitivity is None:
        return None
    layers, whole = record.sensitivity.layers, record.sensitivity.whole
    text = (
        "Signal-to-quantization-noise ratio (SQNR): how much stronger a layer's signal is than the error that INT8 "
        "adds. At 0 dB the error is as large as the signal, at 20 dB a tenth of it, at 40 dB a hundredth. "
        "Layers are in order of execution."
    )
    chart = Chart("SQNR of each layer; dashed: the whole network.", inline(charts.sqnr(layers, whole), "sqnr"))
    header = ["layer", "gained when left in float, dB", "only this layer in INT8, dB", "at its output, dB"]
    rows = [
        [one.layer, _gain(one.without, whole), _db(one.alone), _db(one.output)]
        for one in sorted(layers, key=lambda one: -_finite(one.without))
    ]
    return Part(
        "sqnr",
        "Quantization noise of each layer",
        text,
        (chart,),
        details=(Section("By what leaving a layer in float gains", header, rows),),
    )


def _finite(value: float | None) -> float:
    return math.inf if value is None else value


def _db(value: float | None) -> str:
    return "∞" if value is None else f"{value:.2f}"


def _gain(without: float | None, whole: float | None) -> str:
    return "∞" if without is None or whole is None else f"{without - whole:+.2f}"


def distributions(record: RunRecord) -> Part:
    """The distribution of each network's latencies."""
    results = {network.name: network.latency for network in record.networks}
    text = "Every sample counts, none was dropped. Each panel has its own axis."
    caption = "How many inferences (height) took how long; red: the median with its 95% interval."
    chart = Chart(caption, inline(charts.latencies(results), "latency"))
    return Part("latency", "How latency is spread", text, (chart,), details=(_tails(record), _costs(record)))


def _tails(record: RunRecord) -> Section:
    header = ["network", "samples", "outliers", "least ms", "median ms", *(f"{name} ms" for name in _TAILS)]
    rows = []
    for network in record.networks:
        stats = network.latency.stats["latency_ms"]
        tails = [interval(tail, 3) if tail else "too few samples" for tail in map(stats.percentiles.get, _TAILS)]
        counts = [str(stats.n), str(network.latency.outliers)]
        rows.append([network.name, *counts, f"{stats.min:.3f}", interval(stats.median, 3), *tails])
    return Section("Tails", header, rows)


def _costs(record: RunRecord) -> Section:
    header = ["network", "load ms", "first inference ms", "memory MB", "GMAC/s", "share of the machine's peak"]
    rows = []
    for network in record.networks:
        result, work = network.latency, network.latency.work
        start = [f"{result.load_ms:.0f}", f"{result.first_inference_ms:.2f}", f"{result.peak_memory_bytes / 1e6:.0f}"]
        speed = [f"{work.gmacs_per_s:.1f}" if work else "unknown", share_of_peak(work) or "unknown"]
        rows.append([network.name, *start, *speed])
    note = ABOVE_PEAK if any("above" in row[-1] for row in rows) else ""
    return Section("Start, memory and share of the peak", header, rows, note)


def prediction(record: RunRecord) -> Part | None:
    """Predicted against measured latency."""
    if record.plan is None or record.plan.latency is None:
        return None
    dense, pruned = map(median, as_predicted(record.networks, record.table))
    table = predicted_table(record.plan, record.budget, dense, pruned)
    series = [*(_held_out(record.table) if record.table else [])]
    if record.tried:
        latencies = [one.predicted_ms for one in record.tried], [one.ms for one in record.tried]
        series.append(LatencyPairs("plans near the budget, while pruning", *latencies))
    drawn: tuple[Chart, ...] = ()
    if series or pruned is not None:
        figure = charts.predictions(series, None if pruned is None else (record.plan.latency[1], pruned))
        drawn = (Chart("Measured against predicted; on the dotted line they are equal.", inline(figure, "predicted")),)
    text = "Pruning chooses widths with a model of the latency; here its predictions are compared with measurements."
    if record.table is not None:
        errors = LatencyModel(record.table).errors
        if len(errors):
            worst = abs(errors).max()
            text += (
                f" On {len(errors)} whole networks that the model had not seen, it was wrong by {worst:.1%} at most."
            )
    if pruned is not None:
        off = relative_error(record.plan.latency[1], pruned.value)
        text += f" The exported network takes {pruned.value:.3f} ms; the prediction was {_off(off)} that."
    else:
        text += " No INT8 network of this run was measured with the model's engine, device and threads."
    return Part("predicted", "Predicted and measured latency", text, drawn, (table,) if table else ())


def _off(relative: float) -> str:
    """
    >>> _off(-0.072)
    '7.2% below'
    """
    return f"{abs(relative):.1%} {'below' if relative < 0 else 'above'}"


def _held_out(table: LatencyTable) -> list[LatencyPairs]:
    """Predicted and measured medians of whole networks that the model was not fitted to."""
    model = LatencyModel(table)
    held = [network for network in table.networks if network.held_out]
    predicted = [model.network_ms(network.units, network.removed) for network in held]
    measured = [model.typical * network.ms for network in held]
    return [LatencyPairs("networks the model had not seen", predicted, measured)] if held else []


_FRONT = Missing("accuracy against latency, measured", "python -m benchmarks.pareto --config FILE")
_PRUNE = "python -m compress prune --config FILE"
_TABLE = "python -m benchmarks.latency_table --config FILE, then prune with --set prune.latency=50%"
_PARTS: tuple[tuple[Callable[[RunRecord], Part | None], Missing | None], ...] = (
    (before_after, None),
    (front, _FRONT),
    (channels, Missing("channels before and after", _PRUNE)),
    (losses, Missing("what each group's width costs", _PRUNE)),
    (quantization, Missing("quantization noise of each layer", "python -m compress sensitivity --config FILE")),
    (distributions, None),
    (prediction, Missing("predicted and measured latency", _TABLE)),
)


def parts(record: RunRecord) -> tuple[list[Part], list[Missing]]:
    """The parts that have data, in the report's order, and the parts that are missing.

    Raises:
        PipelineError: a file that a part needs is damaged.
    """
    found = [(build(record), absent) for build, absent in _PARTS]
    missing = [absent for part, absent in found if part is None and absent is not None]
    if record.front is None and _FRONT not in missing:  # the predicted front is shown instead
        missing.insert(0, _FRONT)
    if record.result.accuracy is None and record.model.get("classes"):
        missing.insert(0, Missing("accuracy", f"python -m benchmarks.summary --run {record.directory} --data IMAGES"))
    return [part for part, _ in found if part is not None], missing
