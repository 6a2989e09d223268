"""A width plan: which units every group keeps, and what that costs. Plain values; JSON either way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compress.models.cost import Cost


@dataclass(frozen=True)
class GroupPlan:
    """One group's share of the plan.

    Attributes:
        name, kind: the group's.
        before, after: channels; none after, where all blocks that it sits in are removed.
        kept: indices of the units that stay, ascending.
    """

    name: str
    kind: str
    before: int
    after: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class WidthPlan:
    """What allocation decides and surgery carries out.

    Attributes:
        before, after: cost of the unpruned and of the pruned network.
        removed: names of the blocks that go as a whole.
        latency: predicted for both, in ms; None without a latency table.
    """

    groups: tuple[GroupPlan, ...]
    before: Cost
    after: Cost
    removed: tuple[str, ...] = ()
    latency: tuple[float, float] | None = None

    @property
    def kept(self) -> Mapping[str, Sequence[int]]:
        """Unit indices by group name: what ``cut`` and ``masked`` take. A group that is gone is not named."""
        return {group.name: group.kept for group in self.groups if group.kept}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> WidthPlan:
        groups = (GroupPlan(**{**group, "kept": tuple(group["kept"])}) for group in value["groups"])
        latency = value.get("latency")
        return cls(
            tuple(groups),
            Cost(**value["before"]),
            Cost(**value["after"]),
            removed=tuple(value.get("removed", ())),
            latency=None if latency is None else (latency[0], latency[1]),
        )
