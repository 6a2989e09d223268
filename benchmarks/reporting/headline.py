"""The top of a report: the warnings, and a sentence with the main result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.reporting.record import RunRecord
from benchmarks.results.networks import MeasuredNetwork
from benchmarks.results.tables import points


@dataclass(frozen=True)
class Figure:
    """A main number of the report, with a note on how to read it."""

    name: str
    value: str
    note: str


def headline(record: RunRecord) -> str:
    """The main result in a sentence: speed-up, change of accuracy, and file size."""
    dense, result = record.networks[0], record.result
    size = f"its file takes {megabytes(result)} MB instead of {megabytes(dense)} MB"
    return f"The {result.name} network {_faster(result, dense)}{_change(result)}; {size}."


def _faster(result: MeasuredNetwork, dense: MeasuredNetwork) -> str:
    compared = result.latency.comparison
    if compared is None:
        return f"takes {result.latency_ms:.3f} ms"
    ratio = compared.ratio
    return (
        f"is {1 / ratio.value:.2f} times as fast as {dense.name} "
        f"(95% interval {1 / ratio.hi:.2f} to {1 / ratio.lo:.2f})"
    )


def _change(result: MeasuredNetwork) -> str:
    accuracy, found = result.accuracy, result.fidelity
    if found is not None:
        near = "equal" if found.sqnr_db is None else f"{found.sqnr_db:.1f} dB, cosine {found.cosine:.4f}"
        return f", with this SQNR of its outputs against the dense network's: {near} ({found.images} images)"
    if accuracy is None:
        return ", and its accuracy was not measured"
    if accuracy.paired is None:
        return f", with a top-1 accuracy of {100 * accuracy.top1.value.value:.2f}%"
    change = accuracy.paired.difference
    low, high = 100 * change.lo, 100 * change.hi
    points = f"{100 * change.value:+.2f} points (95% interval {low:+.2f} to {high:+.2f}; {accuracy.images} images)"
    unclear = ", which may be no change at all: the interval contains 0" if low <= 0 <= high else ""
    return f", at a change of top-1 accuracy of {points}{unclear}"


def megabytes(network: MeasuredNetwork) -> str:
    """The size of the network's file in MB."""
    return f"{network.latency.artifact.bytes / 1e6:.2f}"


def figures(record: RunRecord) -> list[Figure]:
    """The numbers of the headline, shown as large figures."""
    dense, result = record.networks[0], record.result
    compared, accuracy = result.latency.comparison, result.accuracy
    found = []
    if compared is not None:
        ratio = compared.ratio
        note = f"{1 / ratio.hi:.2f} to {1 / ratio.lo:.2f}, against {dense.name}"
        found.append(Figure("speed-up", f"{1 / ratio.value:.2f}×", note))
    found.append(Figure("median latency", f"{result.latency_ms:.3f} ms", f"{dense.name}: {dense.latency_ms:.3f} ms"))
    if accuracy is not None:
        change = f"{points(accuracy.paired.difference)} points" if accuracy.paired else f"{accuracy.images} images"
        found.append(Figure("top-1 accuracy", f"{100 * accuracy.top1.value.value:.2f}%", change))
    if (near := result.fidelity) is not None and near.sqnr_db is not None:
        found.append(Figure("SQNR of the outputs", f"{near.sqnr_db:.1f} dB", f"cosine {near.cosine:.4f}"))
    found.append(Figure("file", f"{megabytes(result)} MB", f"{dense.name}: {megabytes(dense)} MB"))
    return found


def warnings(record: RunRecord) -> list[str]:
    """Warnings about files that have changed since the measurement, then the measurement's own warnings."""
    return list(dict.fromkeys([*record.stale, *warnings_of(record.networks)]))


def warnings_of(networks: Sequence[MeasuredNetwork]) -> list[str]:
    """The warnings of the measurements, each with the network's name."""
    return list(dict.fromkeys(f"{network.name}: {text}" for network in networks for text in _said(network)))


def _said(network: MeasuredNetwork) -> Iterator[str]:
    for result in (network.accuracy, network.fidelity, network.latency):
        if result is not None:
            yield from result.warnings
