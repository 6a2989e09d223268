"""Choose what a latency table measures: which pieces of the network, at which widths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import qmc
from torch import nn

from calibration.preprocess import Preprocess
from compress.config import TargetConfig
from compress.errors import ModelError
from compress.graph.groups import Coupling, groups_of
from compress.graph.segments import Segment, segments_of
from compress.graph.tracing import trace
from compress.parse import Size
from compress.probes.fragments import ends, fragment, repeats, signature
from compress.probes.resize import resized, without
from compress.probes.template import Template, make_template
from compress.prune.latency.table import Member, SegmentKind, fingerprint, layers_of

COPIES = 3  # copies of a segment in one file, if its output fits its input
_BASE, _RUNGS = 32, 32  # a ladder climbs from this many units to as many more, in powers of two
_LEAST = 1 / 8  # of a group's units
_POINTS = {0: 1, 1: 8, 2: 20, 3: 30, 4: 40}  # of a kind, by the number of its groups
_GRID = 16  # widths are multiples of 1/16 of a group's units, or of the step if that is coarser

Shape = tuple[Size, ...]


@dataclass(frozen=True)
class Piece:
    """One file to be timed.

    Attributes:
        name: of its file, without the suffix.
        role: a ``segment`` (``copies`` of it in a row), the two ``ends`` of such a piece, or a whole ``network``.
        subject: the kind, or the graph node whose tensor the ends are around.
        units: units kept by group; a group that is not named keeps all.
        shapes: of the tensors at which thin ends are attached.
        removed, held_out: of a whole network: its removed blocks, and whether it checks the model, not fits it.
    """

    name: str
    role: Literal["segment", "ends", "network"]
    subject: str
    units: Mapping[str, Size]
    copies: Size = 1
    shapes: tuple[Shape, ...] = ()
    removed: tuple[str, ...] = ()
    held_out: bool = False


class Survey:
    """A network and the pieces of it to measure.

    Attributes:
        kinds: the segment types, with steps of 1; ``representatives`` has the measured segment of each.
        members: every segment, with its type.
        groups, unit: units of each coupling group, and channels a unit.
        weights: bytes of the dense network's constants.

    Args:
        net: the trained, unpruned network.
    """

    def __init__(self, net: nn.Module, preprocess: Preprocess, target: TargetConfig) -> None:
        shape = preprocess.shape
        self.network = fingerprint(net, shape)
        traced = trace(net, shape)
        self.coupling: Coupling = groups_of(traced)
        self.segments = {segment.name: segment for segment in segments_of(traced, self.coupling)}
        marks = [mark for segment in self.segments.values() for mark in (segment.source, segment.result)]
        self.template: Template = make_template(net, preprocess, target.name, target.batch, marks)
        self.weights = sum(value.nbytes for value in self.template.constants.values())
        self.groups = {group.name: group.units for group in self.coupling}
        self.unit = {group.name: group.unit for group in self.coupling}
        self.representatives: dict[str, Segment] = {}
        self.kinds: dict[str, SegmentKind] = {}
        self.members: list[Member] = []
        self._removable = [name for name, segment in self.segments.items() if segment.removable]
        half = self.at({name: max(1, units // 2) for name, units in self.groups.items()})
        known: dict[object, str] = {}
        for name, segment in self.segments.items():
            units = tuple(self.groups[group] for group in segment.groups)
            kind = SegmentKind(name, units, (1,) * len(units), layers_of(net, self.coupling, segment))
            text = (kind.units, kind.layers, *(signature(fragment(at, segment)) for at in (self.template, half)))
            owner = known.setdefault(text, name)
            if owner == name:
                self.kinds[name], self.representatives[name] = kind, segment
            self.members.append(Member(name, owner, segment.groups, segment.removable))
        self._copies = {
            name: COPIES if all(repeats(at, segment) for at in (self.template, half)) else 1
            for name, segment in self.representatives.items()
        }

    def at(self, units: Mapping[str, int]) -> Template:
        """The network with the first units of each group."""
        kept = {name: range(count) for name, count in units.items() if count < self.groups[name]}
        return resized(self.template, self.coupling, kept)

    def build(self, piece: Piece) -> Template:
        """The graph of a piece."""
        template = self.at(piece.units)
        match piece.role:
            case "segment":
                return fragment(template, self.representatives[piece.subject], piece.copies)
            case "ends":
                return ends(template, piece.subject)
            case "network":
                return without(template, [self.segments[name] for name in piece.removed])

    def ladders(self) -> list[Piece]:
        """Widths that show the steps of each group of each segment type; the other groups have half of their units."""
        found = []
        for name, kind in self.kinds.items():
            found += [self._segment(name, units) for units in rungs(kind)]
        return list({piece.name: piece for piece in found}.values())

    def ends(self) -> list[Piece]:
        """The ends around every tensor at which a segment begins or ends, at four widths of the tensor."""
        found: dict[tuple[Shape, ...], Piece] = {}
        for segment in self.representatives.values():
            for part in (1 / 4, 1 / 2, 3 / 4, 1):
                units = {name: max(1, round(count * part)) for name, count in self.groups.items()}
                for mark, shape in self._ends_of(self.at(units), segment):
                    name = f"ends~{'x'.join(map(str, shape))}"
                    found.setdefault((shape,), Piece(name, "ends", mark, units, shapes=(shape,)))
        return list(found.values())

    def design(self, kinds: Sequence[SegmentKind]) -> list[Piece]:
        """Widths that are multiples of the steps: all corners (or half of them) and points that fill the space."""
        found = []
        for kind in kinds:
            grids = [_grid(full, step) for full, step in zip(kind.units, kind.step, strict=True)]
            count = _POINTS.get(len(grids), 50)
            points: dict[tuple[int, ...], None] = {}
            if grids:
                corners = list(itertools.product(*[(grid[0], grid[-1]) for grid in grids]))
                even = [c for c in corners if sum(u == g[0] for u, g in zip(c, grids, strict=True)) % 2 == 0]
                points = dict.fromkeys([tuple(kind.units), *(corners if len(grids) < 4 else even)])
                sequence = qmc.Sobol(len(grids), seed=0).random(1 << math.ceil(math.log2(4 * count)))
                for row in sequence:
                    if len(points) >= min(count, math.prod(map(len, grids))):
                        break
                    points[tuple(grid[int(x * len(grid))] for x, grid in zip(row, grids, strict=True))] = None
            else:
                points[()] = None
            found += [self._segment(kind.name, units) for units in points]
        return found

    def networks(self, kinds: Sequence[SegmentKind], fitted: int, held_out: int) -> list[Piece]:
        """The dense network, and networks of random widths; some lack some of the removable blocks."""
        steps: dict[str, int] = {}
        by_name = {kind.name: kind for kind in kinds}
        for member in self.members:
            for group, step in zip(member.groups, by_name[member.kind].step, strict=True):
                steps[group] = min(steps.get(group, step), step)
        grids = {name: _grid(full, steps.get(name, 1), least=1 / 4) for name, full in self.groups.items()}
        rng = np.random.default_rng(0)
        found = [Piece("network~dense", "network", "", {})]
        for index in range(1, fitted + held_out):
            level = rng.uniform(0.3, 0.95)
            share = {name: float(np.clip(level + rng.uniform(-0.3, 0.3), 0.25, 1)) for name in grids}
            units = {name: _nearest(grid, share[name] * self.groups[name]) for name, grid in grids.items()}
            removed = tuple(name for name in self._removable if rng.random() < 0.25) if index % 2 else ()
            held = index >= fitted
            found.append(Piece(f"network~{index}", "network", "", units, removed=removed, held_out=held))
        return found

    def _segment(self, kind: str, units: Sequence[int]) -> Piece:
        segment, copies = self.representatives[kind], self._copies[kind]
        name = f"{kind}~{'-'.join(map(str, units))}"
        kept = dict(zip(segment.groups, units, strict=True))
        shapes = tuple(shape for _, shape in self._ends_of(self.at(kept), segment))
        return Piece(name, "segment", kind, kept, copies, shapes)

    def _ends_of(self, template: Template, segment: Segment) -> Iterator[tuple[str, Shape]]:
        """Name and shape of the tensors to which thin ends are attached; the network's input and output have none."""
        tensors = template.tensors
        if tensors[segment.source] not in template.inputs:
            yield segment.source, template.shapes[tensors[segment.source]]
        if tensors[segment.result] not in template.outputs:
            yield segment.result, template.shapes[tensors[segment.result]]


def rungs(kind: SegmentKind) -> Iterator[tuple[int, ...]]:
    """The units at which a segment type's steps are measured: one axis varies, the others keep half of their units."""
    halves = [max(1, units // 2) for units in kind.units]
    for axis, full in enumerate(kind.units):
        for units in ladder(full)[1:]:
            yield (*halves[:axis], units, *halves[axis + 1 :])


def ladder(full: int) -> list[int]:
    """Widths whose times show the steps: a base, then the base plus powers of two.

    >>> ladder(64)
    [32, 33, 34, 36, 40, 48, 64]
    """
    base = min(_BASE, full // 2)
    return [base, *(base + rung for rung in powers(min(_RUNGS, full - base)))]


def powers(most: int) -> list[int]:
    """Powers of two up to ``most``, ascending.

    >>> powers(12)
    [1, 2, 4, 8]
    """
    return [1 << k for k in range(max(most, 0).bit_length())]


def _nearest(grid: Sequence[int], wanted: float) -> int:
    return min(grid, key=lambda units: abs(units - wanted))


def _grid(full: int, step: int, least: float = _LEAST) -> list[int]:
    """Multiples of a step, about a sixteenth of all units apart, and the full width."""
    apart = step * max(1, round(full / _GRID / step))
    inside = [units for units in range(apart, full, apart) if units >= least * full]
    return [*inside, full]


def check_measurable(survey: Survey) -> None:
    """Raise ModelError if the network has no channels that can be removed."""
    if not survey.groups:
        raise ModelError("the network has no channels that can be removed, so there is nothing to measure")
