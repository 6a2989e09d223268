"""Measured networks as the rows of a table, with the remarks below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.results.networks import MeasuredNetwork
from benchmarks.results.tables import interval, percent, points, speedup
from compress.engines.base import open_engine
from compress.engines.metadata import Metadata
from compress.errors import EngineError

_SIZE = ["params M", "MACs M", "file MB", "latency ms", "speed-up"]


def table(networks: Sequence[MeasuredNetwork]) -> tuple[list[str], list[list[str]]]:
    """The columns of a table of networks, and its rows."""
    header = ["network", *input_header(networks), *quality_header(networks), *_SIZE]
    return header, [_cells(network, networks) for network in networks]


def input_header(networks: Sequence[MeasuredNetwork]) -> list[str]:
    """A column for the input size, where the networks differ in it."""
    return ["input"] if len(set(map(sides, networks))) > 1 else []


def sides(network: MeasuredNetwork) -> str:
    """Height and width of the network's input in pixels, or one number for both."""
    height, width = network.latency.scenario.shape[-2:]
    return f"{height}" if height == width else f"{height}x{width}"


def quality_header(networks: Sequence[MeasuredNetwork]) -> list[str]:
    """What is known of the outputs: accuracy, or their fidelity to those of the first network."""
    if any(network.fidelity for network in networks):
        return ["SQNR dB", "cosine"]
    return ["top-1 %", "change, points"]


def quality(network: MeasuredNetwork) -> list[str]:
    """The cells below ``quality_header``."""
    if (found := network.fidelity) is not None:
        return ["equal" if found.sqnr_db is None else f"{found.sqnr_db:.1f}", f"{found.cosine:.4f}"]
    accuracy = network.accuracy
    return [
        percent(accuracy.top1.value) if accuracy else "",
        points(accuracy.paired.difference) if accuracy and accuracy.paired else "",
    ]


def _cells(network: MeasuredNetwork, networks: Sequence[MeasuredNetwork]) -> list[str]:
    compared = network.latency.comparison
    return [
        network.label,
        *(sides(network) for _ in input_header(networks)),
        *quality(network),
        f"{network.params / 1e6:.3f}",
        f"{network.macs / 1e6:.1f}",
        f"{network.bytes / 1e6:.2f}",
        interval(network.latency.stats["latency_ms"].median, 3),
        speedup(compared.ratio if compared else None),
    ]


def invalid(networks: Sequence[MeasuredNetwork]) -> list[str]:
    """The reasons of INVALID measurements; empty if all are VALID."""
    said = [
        f"{network.name}: {reason}"
        for network in networks
        for verdict in network.verdicts
        if verdict.status == "INVALID"
        for reason in verdict.reasons or ["no reason given"]
    ]
    return list(dict.fromkeys(said))


def remarks(networks: Sequence[MeasuredNetwork]) -> list[str]:
    """The remarks below a table, without repetitions: first the reasons of INVALID measurements, then warnings."""
    warnings = [f"{network.name}: {text}" for network in networks for text in network.latency.warnings]
    if (one := next((network.fidelity for network in networks if network.fidelity), None)) is not None:
        warnings.append(
            f"SQNR and cosine: the outputs on {one.images} images against those of {networks[0].name}; "
            "of several outputs, the lowest"
        )
    return [*(f"INVALID, do not use these figures: {text}" for text in invalid(networks)), *dict.fromkeys(warnings)]


def metadata_of(path: Path) -> Metadata:
    """The metadata of an exported file or an engine.

    Raises:
        EngineError: it has no metadata, or does not open.
    """
    with open_engine(path) as engine:
        if engine.metadata is None:
            raise EngineError(f"{path} carries no metadata", remedy="run `python -m compress export` again")
        return engine.metadata
