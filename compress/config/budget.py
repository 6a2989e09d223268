"""Budgets of pruning: what the pruned network may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

BudgetKind = Literal["latency", "macs", "params", "ratio"]
BUDGETS: tuple[BudgetKind, ...] = get_args(BudgetKind)

_SUFFIX = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Budget:
    """What the pruned network may cost: a fraction of the unpruned network's cost, or an absolute limit.

    ``kind`` is ``macs``, ``params``, ``ratio`` (share of channels kept in every group) or ``latency``. Exactly one of
    ``fraction`` (0 to 1) and ``limit`` (MACs, parameters, or milliseconds) is set.
    """

    kind: BudgetKind
    fraction: float | None
    limit: float | None


def parse_budget(kind: BudgetKind, text: str) -> Budget:
    word = text.strip().lower()
    try:
        if word.endswith("%"):
            fraction = float(word[:-1]) / 100
        elif kind == "latency":
            if not word.endswith("ms"):
                raise ValueError
            return Budget(kind, None, _positive(float(word[:-2])))
        elif word[-1:] in _SUFFIX:
            return Budget(kind, None, _positive(float(word[:-1]) * _SUFFIX[word[-1]]))
        else:
            number = float(word)
            if number > 1 and kind != "ratio":
                return Budget(kind, None, number)
            fraction = number
        if not 0 < fraction <= 1:
            raise ValueError
    except ValueError:
        example = {"ratio": "'50%'", "latency": "'50%' or '4.0 ms'"}.get(kind, "'50%' or '900M'")
        raise ValueError(f"'{text}' is not a {kind} budget; write {example}") from None
    return Budget(kind, fraction, None)


def _positive(number: float) -> float:
    if not 0 < number < float("inf"):
        raise ValueError
    return number
