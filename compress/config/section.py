"""What all sections of the configuration are made of: their base class, and validators of single keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from calibration.preprocess import LARGEST
from compress.errors import ConfigError
from compress.registry import Registry

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Known:
    """A validator that checks that a name is in a registry."""

    registry: Registry[Any]

    def __call__(self, name: str) -> str:
        try:
            return self.registry.known(name)
        except ConfigError as error:
            raise ValueError(f"{error.message}; {error.remedy}") from None


def known(registry: Registry[Any]) -> AfterValidator:
    return AfterValidator(Known(registry))


def plain(name: str) -> str:
    """A name without capitals and punctuation.

    >>> plain("One_Cycle"), plain("RandomResizedCrop")
    ('onecycle', 'randomresizedcrop')
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


def also_called(others: Mapping[str, str]) -> BeforeValidator:
    """A validator that takes a name in any spelling, by its other names, and with ``LR`` behind it as in PyTorch."""

    def canonical(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name = plain(value).removesuffix("lr")
        return others.get(name, name)

    return BeforeValidator(canonical)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:
        """Take a single value, or names between commas, where a key holds a list."""
        if not isinstance(values, Mapping):
            return values
        lists = {key for key, field in cls.model_fields.items() if _holds_list(field.annotation)}
        return {key: listed(value) if key in lists else value for key, value in values.items()}


def _holds_list(annotation: Any) -> bool:
    return any(get_origin(part) is tuple for part in (annotation, *get_args(annotation)))


def listed(value: Any) -> Any:
    """
    >>> listed("layer4.*, layer3.0"), listed(3), listed(["a"])
    (['layer4.*', 'layer3.0'], [3], ['a'])
    """
    if isinstance(value, str):
        words = value.strip().removeprefix("[").removesuffix("]").split(",")
        return [word.strip(" '\"") for word in words if word.strip()]
    return [value] if isinstance(value, int | float) else value


def sides(least: int) -> BeforeValidator:
    """A validator of ``224``, ``[32, 64]`` and ``"32x64"`` (height, width), in pixels."""

    def sides(value: Any) -> int | tuple[int, int]:
        if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*([x,]\s*\d+\s*)?", value):
            value = [int(part) for part in re.split("[x,]", value)]
        found = value if isinstance(value, list | tuple) else [value]
        whole = all(isinstance(side, int) and not isinstance(side, bool) for side in found)
        if not whole or len(found) not in (1, 2) or not all(max(least, len(found) - 1) <= n <= LARGEST for n in found):
            raise ValueError(f"write one number of pixels, or [height, width], from {least} to {LARGEST}")
        return found[0] if len(found) == 1 else (found[0], found[1])

    return BeforeValidator(sides)
