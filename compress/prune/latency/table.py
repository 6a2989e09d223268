"""The latency table, which ``benchmarks.latency_table`` writes: latencies measured on one engine, for one network.

A row is one width assignment of one **segment type**. Segments with the same operations, shapes and full widths have
the same type, which is measured once: the two blocks of a ResNet-18's first stage, for example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from torch import nn

from compress.config import TargetConfig
from compress.errors import ConfigError
from compress.files import write_atomic
from compress.graph.groups import Coupling, Slot
from compress.graph.segments import Segment
from compress.graph.tracing import trace
from compress.models.layers import size_of
from compress.models.shapes import describe
from compress.parse import Finite, Size, brief, read

Array = npt.NDArray[np.float64]
Ms = Annotated[float, Field(ge=1e-6, le=1e9)]  # milliseconds of something that runs
Channels = Annotated[float, Field(ge=0, le=2**31)]


@dataclass(frozen=True)
class Machine:
    """Where a table was measured: what a latency depends on besides the network.

    Attributes:
        target: the profile whose lowering was timed, such as ``ort-x86``.
        engine, version: the runtime.
        device: the processor's or the GPU's name.
        machine: as ``platform.machine()`` says.
        threads, batch: of the timed inference.
        pair_sums: what the engine's INT8 kernels add two products in there; see ``engines.saturation``. Empty where it
            was not asked.
    """

    target: str
    engine: str
    version: str
    device: str
    machine: str
    threads: Size
    batch: Size
    pair_sums: str = ""


@dataclass(frozen=True)
class Side:
    """Channels on one side of a layer: ``fixed`` and those of each unit, with one entry an axis of the kind.

    >>> Side(3.0, (1, 0, 2))([np.array([1, 2]), np.array(9), np.array(10)]).tolist()
    [24.0, 25.0]
    """

    fixed: Channels
    per_unit: tuple[Channels, ...]

    def __call__(self, units: Sequence[Array]) -> Array:
        """Channels, from the units of each axis, in the shape that those broadcast to which matter here."""
        parts = (np.multiply(each, count) for each, count in zip(units, self.per_unit, strict=True) if count)
        return sum(parts, start=np.array(self.fixed))


@dataclass(frozen=True)
class Layer:
    """What each output channel of a layer reads, and how many of these there are."""

    inputs: Side
    outputs: Side


@dataclass(frozen=True)
class SegmentKind:
    """Segments that cost the same at the same widths.

    Attributes:
        name: of the first such segment.
        units: all units of each axis; an axis is a coupling group of the segment.
        step: of each axis, the coarsest steps of width between which nothing is gained; found by measuring.
        layers: for the model's features.
    """

    name: str
    units: tuple[Size, ...]
    step: tuple[Size, ...]
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        sides = [side for layer in self.layers for side in (layer.inputs, layer.outputs)]
        if len({len(self.units), len(self.step), *(len(side.per_unit) for side in sides)}) != 1:
            raise ValueError(f"the axes of kind '{self.name}' are not the same everywhere")

    def on_step(self, units: Sequence[int]) -> bool:
        """Whether each axis stands at a step, or at its end: no plan has a width between the steps."""
        axes = zip(units, self.step, self.units, strict=True)
        return all(count % step == 0 or count == full for count, step, full in axes)


@dataclass(frozen=True)
class Member:
    """A segment of the network: of which kind it is, and which group each axis stands for."""

    name: str
    kind: str
    groups: tuple[str, ...]
    removable: bool


@dataclass(frozen=True)
class Row:
    """Time of a kind at some units kept, in ms: a low quantile, with the spread of its rounds."""

    kind: str
    units: tuple[Size, ...]
    ms: Ms
    lo: Finite
    hi: Finite
    n: Size


@dataclass(frozen=True)
class WholeRow:
    """Time of a whole network, and the median of its samples; ``held_out`` ones are predicted, not fitted."""

    units: Mapping[str, Size]
    removed: tuple[str, ...]
    held_out: bool
    ms: Ms
    lo: Finite
    hi: Finite
    median: Ms
    n: Size


@dataclass(frozen=True)
class LatencyTable:
    """Measured latencies of a network's segments, and of some whole networks.

    Attributes:
        network: ``fingerprint`` of what was measured.
        place: where.
        imported: it was measured with a kit on another device, which the user stated by importing it.
        groups: all units of each coupling group.
        summary: what ``LatencyModel`` made of it when it was written, for people to read.
    """

    network: str
    place: Machine
    imported: bool
    groups: Mapping[str, Size]
    kinds: tuple[SegmentKind, ...]
    segments: tuple[Member, ...]
    rows: tuple[Row, ...]
    networks: tuple[WholeRow, ...]
    summary: Mapping[str, float]
    schema_version: Literal[1] = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        known = {kind.name: len(kind.units) for kind in self.kinds}
        for row in self.rows:
            if len(row.units) != known.get(row.kind):
                raise ValueError(f"a row of '{row.kind}' has {len(row.units)} widths, the kind {known.get(row.kind)}")
        for kind in self.kinds:
            if not any(row.kind == kind.name and kind.on_step(row.units) for row in self.rows):
                raise ValueError(f"there is no row of '{kind.name}' at its steps")
        for member in self.segments:
            if len(member.groups) != known.get(member.kind) or not set(member.groups) <= self.groups.keys():
                raise ValueError(f"the groups of '{member.name}' do not fit its kind")
        segments = {member.name for member in self.segments}
        for one in self.networks:
            if not one.units.keys() <= self.groups.keys() or not set(one.removed) <= segments:
                raise ValueError("a whole network has groups or blocks that the table does not have")

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all; ``read`` gives it back."""
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """Read what ``write`` wrote.

        Raises:
            ConfigError: no such file, not a latency table, or one of another schema.
        """
        remedy = "measure it with `python -m benchmarks.latency_table --config FILE`"
        if not path.is_file():
            raise ConfigError(f"there is no latency table at {path}", remedy=remedy)
        return read(path, cls, remedy=remedy, error=ConfigError)

    def check(
        self,
        network: str,
        target: TargetConfig,
        here: Machine | None,
        *,
        foreign: bool = False,
        name: str = "the latency table",
    ) -> None:
        """Check that this table was measured for ``network`` on the requested target.

        Args:
            network: ``fingerprint`` of the network that is to be pruned.
            target: the configured target.
            here: ``latency.machine.here(target)``; none where the target's engine does not run on this machine.
                Such a table, and one from a kit, is taken to be of the device that the user means.
            foreign: accept another version, device or number of threads.
            name: of this table, for messages.

        Raises:
            ConfigError: it is about another network, target, engine or batch; or about another version, device or
                number of threads, and ``foreign`` is false.
        """
        measure = "measure this one with `python -m benchmarks.latency_table --config FILE`"
        if self.network != network:
            raise ConfigError(f"{name} was measured for another network", remedy=measure)
        asked = {"target": target.name, "engine": target.engine, "batch": target.batch}
        for what, wanted in asked.items():
            if getattr(self.place, what) != wanted:
                raise ConfigError(f"{name} {_differs(what, self.place, wanted)}", remedy=measure)
        bound: dict[str, object] = {"threads": target.threads}
        if here is not None and not self.imported:
            bound |= {"version": here.version, "machine": here.machine, "device": here.device}
            if self.place.pair_sums and here.pair_sums:  # one name of a virtual processor can stand for several
                bound["pair_sums"] = here.pair_sums
        for what, wanted in bound.items():
            if getattr(self.place, what) != wanted and not foreign:
                raise ConfigError(
                    f"{name} {_differs(what, self.place, wanted)}",
                    remedy=f"{measure}; or accept it with --set prune.allow_foreign_table=true",
                )


def _differs(name: str, table: Machine, wanted: object) -> str:
    words = {"version": f"{table.engine} version", "threads": "number of threads", "pair_sums": "INT8 sums in"}
    what = words.get(name, name)
    return f"was measured for {what} {brief(getattr(table, name), 100)}, not {wanted}"


def layers_of(net: nn.Module, coupling: Coupling, segment: Segment) -> tuple[Layer, ...]:
    """The convolutions and fully connected layers of a segment, one axis for each of ``segment.groups``."""
    found = []
    for name in segment.layers:
        size = size_of(net.get_submodule(name))
        if size is None or not size.kernel:
            continue
        groups = [coupling[group] for group in segment.groups]
        read = [0 if size.grouped else _channels(name, group.readers) for group in groups]
        written = [_channels(name, group.writers) for group in groups]
        units = [group.units for group in groups]
        found.append(Layer(_side(size.inputs, read, units), _side(size.outputs, written, units)))
    return tuple(found)


def _channels(layer: str, slots: Sequence[Slot]) -> int:
    """Channels that a unit takes on one side of a layer."""
    return sum(len(slot.channels[0]) for slot in slots if slot.layer == layer)


def _side(full: int, per_unit: Sequence[int], units: Sequence[int]) -> Side:
    fixed = full - sum(each * count for each, count in zip(per_unit, units, strict=True))
    return Side(float(fixed), tuple(map(float, per_unit)))


def fingerprint(net: nn.Module, shape: Sequence[int]) -> str:
    """A hash of what latency depends on: operations, layer shapes and input size (C, H, W), but not the weights.

    >>> fingerprint(nn.Conv2d(3, 8, 3), (3, 9, 9)) == fingerprint(nn.Conv2d(3, 8, 3), (3, 9, 9))
    True
    """
    traced = trace(net, shape)
    steps = [(n.op, n.name, _target(n.target), [str(a) for a in n.all_input_nodes]) for n in traced.graph.nodes]
    parts = json.dumps([list(shape), describe(net), steps], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


def _target(target: object) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))
