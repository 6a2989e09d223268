"""The report's parts on how a run was measured and where its files come from, needed to check or repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.reporting.outcome import Section
from benchmarks.reporting.record import RunRecord
from benchmarks.reporting.sections import Part
from benchmarks.results.latency import LatencyResult, MachineState
from compress.run import Manifest

_ARTIFACTS = {".onnx", ".plan", ".xml", ".bin", ".safetensors"}
_SHORT = 12  # digits of a digest that name a file among a run's


def measurement(record: RunRecord) -> Part:
    """The machine, its state during the measurement, versions and settings."""
    first = record.networks[0].latency
    text = (
        f"Measured on {first.date[:10]} with resnet-compress {first.tool.version}: "
        f"{first.scenario.processes} worker process(es) a network, one after the other, the networks taking turns, "
        f"{first.scenario.rounds} each. Intervals are bootstrapped over whole processes."
    )
    tables = (
        Section("Machine", ["property", "value"], _machine(first)),
        Section("Engines", ["network", "input", "runtime", "provider that ran", "modes"], _engines(record)),
    )
    details = (
        Section("State of the machine", ["property", "before", "after"], _states(first)),
        Section("Settings of the measurement", ["setting", "value"], _pairs(first.config)),
        Section("Commands", ["step", "command"], _commands(record)),
    )
    return Part("measured", "How it was measured", text, tables=tables, details=details)


_SUMS = {
    "int32": "added exactly",
    "int16": "two added in saturating int16, as without VNNI: exact for files of this package",
}


def _machine(result: LatencyResult) -> list[list[str]]:
    host, scenario = result.host, result.scenario
    return [
        ["processor", f"{host.cpu}, {host.cores} logical"],
        ["memory", f"{host.memory_bytes / 2**30:.1f} GiB"],
        ["system", host.system],
        ["Python", host.python],
        *([f"INT8 products in {name}", _SUMS[sums]] for name, sums in host.int8_pair_sums.items()),
        *([name, version] for name, version in sorted(host.libraries.items())),
        ["git commit", result.tool.git_sha or "unknown"],
        ["input pool", f"{scenario.inputs}: {scenario.pool} different ones, in turn"],
    ]


def _engines(record: RunRecord) -> list[list[str]]:
    return [
        [
            network.name,
            "×".join(str(dim) for dim in network.latency.scenario.shape),
            f"{network.latency.backend.name} {network.latency.backend.version}",
            network.latency.backend.actual,
            ", ".join(f"{key} {value}" for key, value in sorted(network.latency.modes.items())),
        ]
        for network in record.networks
    ]


def _states(result: LatencyResult) -> list[list[str]]:
    before, after = (state.model_dump(mode="json") for state in (result.monitor.before, result.monitor.after))
    return [[name.replace("_", " "), _plain(before[name]), _plain(after[name])] for name in MachineState.model_fields]


def _commands(record: RunRecord) -> list[list[str]]:
    """The commands of the stages, and of the measurement as it was recorded."""
    steps = [[stage, f"python -m compress {stage}"] for stage in record.manifests]
    argv = record.networks[0].latency.argv
    measured = shlex.join(argv) if argv else f"python -m benchmarks.summary --run {record.directory}"
    return [*steps, ["measurement", measured]]


def origin(record: RunRecord) -> Part | None:
    """The run's files with their digests and parents, and the settings of each stage."""
    if not record.manifests:
        return None
    rows = [
        [f"{stage}/{name}", digest, _parents(manifest)]
        for stage, manifest in record.manifests.items()
        for name, digest in sorted(manifest.outputs.items())
        if Path(name).suffix in _ARTIFACTS
    ]
    measured = [
        [network.name, "/".join(Path(network.latency.artifact.path).parts[-2:]), network.latency.artifact.sha256]
        for network in record.networks
    ]
    settings = tuple(
        Section(
            f"{stage}: settings ({manifest.seconds:g} s)",
            ["setting", "value"],
            [*_pairs(manifest.settings), *(["version of " + k, v] for k, v in manifest.versions.items())],
        )
        for stage, manifest in record.manifests.items()
    )
    text = "Each file is identified by its SHA-256 and by the SHA-256 of the files that it was made from."
    tables = (Section("Measured files", ["network", "file", "SHA-256"], measured),)
    kept = Section("All files of the stages", ["file", "SHA-256", "made from"], rows)
    return Part("origin", "Where it comes from", text, tables=tables, details=(kept, *settings))


def _parents(manifest: Manifest) -> str:
    return ", ".join(f"{Path(name).name} {digest[:_SHORT]}" for name, digest in manifest.parents.items())


def _pairs(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """A nested mapping, flat: dotted keys.

    >>> _pairs({"a": {"b": 1}, "c": None})
    [['a.b', '1'], ['c', '-']]
    """
    found = []
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        found += _pairs(value, f"{prefix}{key}.") if nested else [[prefix + key, _plain(value)]]
    return found


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
