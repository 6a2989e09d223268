"""The constraints on a plan besides its budget, and the widths and blocks that they allow."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.errors import ConfigError
from compress.graph.groups import Coupling, Group
from compress.graph.segments import Segment


@dataclass(frozen=True)
class Constraints:
    """The constraints on a plan besides the budget.

    Attributes:
        multiple: a group that gets narrower ends at a multiple of this many channels.
        min_width: and at no fewer than this many; a group that starts narrower can only stay whole.
        keep: layers whose output channels all stay, and blocks that are not removed; names or patterns such as
            ``layer1.*``.
        max_ratio: at most this share of a group's units may go.
        depth: whether whole blocks may go.
    """

    multiple: int = 1
    min_width: int = 1
    keep: tuple[str, ...] = ()
    max_ratio: float = 1.0
    depth: bool = True

    def __str__(self) -> str:
        listed = (
            f"prune.multiple={self.multiple}",
            f"prune.min_width={self.min_width}",
            f"prune.max_ratio={self.max_ratio:g}",
            f"prune.depth={str(self.depth).lower()}",
            f"prune.keep={list(self.keep)}",
        )
        return ", ".join(listed)

    def relaxed(self) -> dict[str, Constraints]:
        """Looser constraints to suggest, by the settings that ask for them."""
        looser = {
            "prune.keep=[]": replace(self, keep=()),
            "prune.depth=true": replace(self, depth=True),
            "prune.max_ratio=1": replace(self, max_ratio=1.0),
            f"prune.min_width={self.multiple}": replace(self, min_width=min(self.multiple, self.min_width)),
            "prune.multiple=1": replace(self, multiple=1),
            "prune.multiple=1 and prune.min_width=1": replace(self, multiple=1, min_width=1),
        }
        return {what: constraints for what, constraints in looser.items() if constraints != self}


def widths(coupling: Coupling, constraints: Constraints, segments: Sequence[Segment] = ()) -> list[list[int]]:
    """The numbers of units that each group may keep, ascending; all of them is always one.

    Raises:
        ConfigError: a keep pattern matches no layer and no segment.
    """
    kept = kept_groups(coupling, constraints, segments)
    share = 1 - constraints.max_ratio

    def allowed(group: Group, units: int) -> bool:
        width = units * group.unit
        return units == group.units or (width >= constraints.min_width and width % constraints.multiple == 0)

    def choices(group: Group) -> list[int]:
        if group.name in kept:
            return [group.units]
        fewest = max(1, math.ceil(share * group.units - 1e-9))
        return [units for units in range(fewest, group.units + 1) if allowed(group, units)]

    return [choices(group) for group in coupling]


def kept_groups(coupling: Coupling, constraints: Constraints, segments: Sequence[Segment] = ()) -> set[str]:
    """Names of the groups that a kept layer writes or normalises.

    Raises:
        ConfigError: a keep pattern matches no layer and no segment.
    """
    layers = _kept(coupling, constraints, segments)
    return {group.name for group in coupling if any(s.layer in layers for s in (*group.writers, *group.norms))}


def removable(coupling: Coupling, constraints: Constraints, segments: Sequence[Segment]) -> set[str]:
    """Names of the segments that may be removed: neither they nor a layer of theirs is kept.

    Raises:
        ConfigError: a keep pattern matches no layer and no segment.
    """
    kept = _kept(coupling, constraints, segments)
    free = (s for s in segments if s.removable and s.name not in kept and kept.isdisjoint(s.layers))
    return {segment.name for segment in free} if constraints.depth else set()


def _kept(coupling: Coupling, constraints: Constraints, segments: Sequence[Segment]) -> set[str]:
    """Names of the layers and segments that a keep pattern matches."""
    names = list(dict.fromkeys((*coupling.layers, *(segment.name for segment in segments))))
    found: set[str] = set()
    for pattern in constraints.keep:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            inside = any(name.startswith(f"{pattern}.") for name in names)
            close = [f"{pattern}.*"] if inside else difflib.get_close_matches(pattern, names, n=1, cutoff=0.5)
            raise ConfigError(
                f"prune.keep: no layer is called '{pattern}'",
                remedy=f"did you mean '{close[0]}'?" if close else f"layers: {', '.join(coupling.layers)}",
            )
        found.update(matches)
    return found
