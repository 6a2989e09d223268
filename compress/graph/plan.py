"""A plan: which units every group keeps, and what that costs. Plain values, stored as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import PipelineError
from compress.models.cost import Cost
from compress.parse import Count, Finite, Positive, read

if TYPE_CHECKING:  # a plan is also read where nothing is traced
    from compress.graph.groups import Coupling

PLAN = "plan.json"


@dataclass(frozen=True)
class GroupPlan:
    """One group's share of the plan.

    Attributes:
        name, kind: the group's.
        before, after: channels; none after if all blocks that it sits in are removed.
        kept: indices of the units that stay, ascending.
    """

    name: str
    kind: str
    before: Count
    after: Count
    kept: tuple[Count, ...]

    def __post_init__(self) -> None:
        unit = self.after // max(1, len(self.kept))
        fits = unit > 0 and self.before % unit == 0 and self.kept[-1] < self.before // unit if self.kept else True
        if not fits or self.after != unit * len(self.kept) or list(self.kept) != sorted(set(self.kept)):
            raise ValueError(f"'{self.name}' keeps {self.after} of {self.before} channels, or not as many units")


@dataclass(frozen=True)
class WidthPlan:
    """The result of allocation, which surgery carries out.

    Attributes:
        before, after: cost of the unpruned and of the pruned network.
        removed: names of the blocks that go as a whole.
        latency: predicted for both, in ms; None without a latency table.
    """

    groups: tuple[GroupPlan, ...]
    before: Cost
    after: Cost
    removed: tuple[str, ...] = ()
    latency: tuple[Positive, Finite] | None = None

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names) or not self.before.macs or not self.before.params:
            raise ValueError("a group occurs twice, or the unpruned network costs nothing")

    @property
    def kept(self) -> Mapping[str, Sequence[int]]:
        """Unit indices by group name: what ``cut`` and ``masked`` take. A group that is gone is not named."""
        return {group.name: group.kept for group in self.groups if group.kept}

    def begins_with(self, coupling: Coupling) -> bool:
        """Whether it is a plan of the network of these groups."""
        units = {group.name: (group.width, group.unit) for group in coupling}
        mine = {
            g.name: (g.before, g.after // len(g.kept) if g.kept else units.get(g.name, (0, 0))[1]) for g in self.groups
        }
        return mine == units

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, path: Path, *, error: type[PipelineError] = PipelineError) -> WidthPlan:
        """Read a ``plan.json``.

        Raises:
            PipelineError: (or ``error``) it is absent, or no plan.
        """
        return read(path, cls, remedy="give a plan that stage prune has written: RUN/prune/plan.json", error=error)
