"""A latency budget where there is no latency table, and no engine to measure one: its share is taken of the MACs."""

from __future__ import annotations

from pathlib import Path

from compress.config import PruneConfig, TargetConfig
from compress.errors import BackendAbsent
from compress.prune.latency.machine import absence
from compress.prune.latency.table import LatencyTable, Machine

_MEASURE = (
    "write a kit with `python -m benchmarks.latency_table --config FILE --emit-kit DIR`, run measure.py of that folder "
    "on the device, read its results with the same command and `--import-kit DIR`, and prune again"
)


def unmeasurable(settings: PruneConfig, target: TargetConfig, own_table: Path) -> BackendAbsent | None:
    """Why a latency budget has no latency table and this machine cannot measure one; None where that is not so.

    It is not so where the settings name a table: if that one is missing or of another target, the name is wrong.

    Args:
        own_table: where the table is, unless the settings name another.

    Raises:
        ConfigError: ``own_table`` is not a latency table.
    """
    if settings.latency is None or settings.table is not None:
        return None
    why = absence(target)
    if why is None or (own_table.exists() and _is_of(LatencyTable.read(own_table).place, target)):
        return None
    missing = f"there is no latency table for target {target.name} on engine {target.engine} at {own_table}"
    return BackendAbsent(f"{missing}, and this machine cannot measure one: {why.message}", remedy=why.remedy)


def _is_of(place: Machine, target: TargetConfig) -> bool:
    return (place.target, place.engine) == (target.name, target.engine)


def in_macs(settings: PruneConfig, full: int, why: BackendAbsent) -> tuple[PruneConfig, str]:
    """Take the share of the latency budget as one of the MACs, unless the settings ask for fewer MACs already.

    Args:
        full: MACs of the unpruned network.
        why: from ``unmeasurable``.

    Returns:
        the settings without a latency budget, and what to tell the user.

    Raises:
        BackendAbsent: the latency budget is in milliseconds, which cannot be translated.
    """
    budgets = {budget.kind: budget for budget in settings.budgets()}
    if budgets["latency"].fraction is None:
        raise BackendAbsent(
            f"a budget of {settings.latency} needs a latency table: {why.message}",
            remedy=f"{why.remedy}; or {_MEASURE}; or give a share, such as prune.latency=50%, taken of the MACs then",
        )
    shares = {
        kind: (budget.limit or 0) / full if budget.fraction is None else budget.fraction
        for kind, budget in budgets.items()
        if kind in ("latency", "macs")
    }
    macs = getattr(settings, min(shares, key=lambda kind: shares[kind]))
    told = (
        f"warning: pruning to prune.macs={macs} instead of prune.latency={settings.latency}; "
        "the latency of the result is not known",
        f"  why: {why.message}",
        f"  for a latency budget: {why.remedy}; or {_MEASURE}",
    )
    return settings.model_copy(update={"latency": None, "macs": macs}), "\n".join(told)
