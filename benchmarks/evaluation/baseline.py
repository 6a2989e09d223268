"""The committed baseline of ``benchmarks.regression``: earlier results, each with a tolerance and the reason for it.

``python -m benchmarks.regression --update`` writes the values; people edit the tolerances and reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.results.base import Bounds
from compress.config import Config, load_config
from compress.errors import ConfigError
from compress.files import write_atomic
from compress.parse import Finite, NonNegative, read

Bound = Literal["least", "most", "both"]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Quantity(Part):
    """One value of the baseline, with its tolerance.

    Attributes:
        value: the value when the baseline was made.
        bound: ``least``: a later value must not be lower; ``most``: not higher; ``both``: neither.
        tolerance: how much lower or higher it may be, in the unit of ``value``.
        why: the reason for the tolerance.
    """

    value: Finite
    bound: Bound
    tolerance: NonNegative
    why: Annotated[str, Field(min_length=1)]

    def allows(self, found: Bounds) -> bool:
        """Whether the whole interval of ``found`` is within the tolerance; the interval of a plain figure is a point.

        >>> quantity = Quantity(value=0.99, bound="least", tolerance=0.02, why="450 images")
        >>> quantity.allows(Bounds(value=0.98, lo=0.972, hi=0.99)), quantity.allows(Bounds(value=0.98, lo=0.96, hi=1))
        (True, False)
        """
        slack = self.tolerance + 1e-9  # for rounding errors
        low_enough = self.bound == "least" or found.hi <= self.value + slack
        return low_enough and (self.bound == "most" or found.lo >= self.value - slack)

    @property
    def limits(self) -> str:
        """The allowed values, in words."""
        low, high = f"{self.value - self.tolerance:.4g}", f"{self.value + self.tolerance:.4g}"
        return {"least": f"at least {low}", "most": f"at most {high}", "both": f"{low} to {high}"}[self.bound]


class Source(Part):
    """The configuration of the pipeline; paths are relative to the working directory.

    Attributes:
        config: TOML file; None: the defaults.
        overrides: ``section.key=value`` on top of it.
    """

    config: str | None = None
    overrides: tuple[str, ...] = ()

    def changed(self, config: Path | None, overrides: Sequence[str]) -> Source:
        """The same source with another file, if one is given, and with more overrides.

        >>> Source(config="a.toml", overrides=("run.seed=1",)).changed(None, ["data.workers=2"]).overrides
        ('run.seed=1', 'data.workers=2')
        """
        file = self.config if config is None else config.as_posix()
        return Source(config=file, overrides=tuple(dict.fromkeys([*self.overrides, *overrides])))

    def load(self) -> Config:
        """
        Raises:
            ConfigError: see ``load_config``.
        """
        return load_config(None if self.config is None else Path(self.config), self.overrides)


class Baseline(Part):
    """The committed file.

    Attributes:
        source: the configuration.
        made: date, versions and processor, for people to read.
        quantities: by name.
    """

    schema_version: Literal[1] = 1
    source: Source
    made: dict[str, Any]
    quantities: dict[str, Quantity]

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """
        Raises:
            ConfigError: there is no such file, or it is not a baseline of this schema version.
        """
        if not path.is_file():
            raise ConfigError(
                f"there is no baseline at {path}",
                remedy=f"make one: python -m benchmarks.regression --baseline {path} --config FILE --update",
            )
        return read(path, cls, remedy="correct the field, or make the file again with --update", error=ConfigError)

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all; ``read`` gives it back."""
        write_atomic(path, self.model_dump_json(indent=2) + "\n")  # in the order of the fields


@dataclass(frozen=True)
class Check:
    """One quantity of a baseline, compared with its present value.

    Attributes:
        found: the present value; None if there is none, which fails.
    """

    name: str
    quantity: Quantity
    found: Bounds | None

    @property
    def passed(self) -> bool:
        return self.found is not None and self.quantity.allows(self.found)

    def __str__(self) -> str:
        found = "not found" if self.found is None else _cell(self.found)
        return f"{self.name}: {found}; {self.quantity.limits} is allowed ({self.quantity.why})"

    def cells(self) -> list[str]:
        """name, baseline, now, allowed, verdict."""
        found = "" if self.found is None else _cell(self.found)
        verdict = "ok" if self.passed else "REGRESSION"
        return [self.name, f"{self.quantity.value:.4g}", found, self.quantity.limits, verdict]


HEADER = ["quantity", "baseline", "now", "allowed", "verdict"]


def judge(quantities: Mapping[str, Quantity], found: Mapping[str, Bounds]) -> list[Check]:
    """Compare every quantity of a baseline with the present value; ignore values that the baseline does not list."""
    return [Check(name, quantity, found.get(name)) for name, quantity in quantities.items()]


def _cell(found: Bounds) -> str:
    if found.lo == found.hi:
        return f"{found.value:.4g}"
    return f"{found.value:.4g} [{found.lo:.4g}, {found.hi:.4g}]"
