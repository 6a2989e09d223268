"""The form of the INT8 files that each target's engine needs: one small TOML file per target.

``add`` makes a file of your own known; one that belongs to the package is added to this folder.

>>> profile("tensorrt").add
'skip'
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.errors import ConfigError
from compress.registry import load_plugins


class Profile(BaseModel):
    """Placement and form of the quantizers; ``docs/targets.md`` says why for each target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    engines: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="the engines that run such a file in INT8; the first is the one it is made for"
    )
    machines: tuple[str, ...] = Field(
        (), description="processors, as platform.machine() says, whose kernels it is made for; none: any"
    )
    default: bool = Field(False, description="whether its first engine uses this target if no target is named")
    activations: Literal["uint8", "int8"] = Field(description="integers of an activation")
    symmetric: bool = Field(description="activations have zero point 0; else any, so that the range fits closely")
    weights: Literal["per_channel", "per_tensor"] = Field(
        "per_channel", description="one symmetric int8 weight scale for each output channel, or for the layer"
    )
    pair_sums: Literal["int32", "int16"] = Field(
        "int32",
        description="type in which a processor of this target may add two products: int16 overflows, so weights "
        "are chosen whose pairs fit",
    )
    add: Literal["both", "skip"] = Field(
        description="quantize both inputs of a residual add, or the skip alone, so that conv + add + ReLU fuse"
    )
    float_output: bool = Field(
        description="an integer convolution may give a float result; else it must be quantized, or all runs in float"
    )
    keep_float: tuple[Literal["Conv2d", "Linear"], ...] = Field((), description="layer types that stay in float")
    integer_bias: bool = Field(description="fully connected layers carry an int32 bias; else a float one")
    float_type: Literal["float32", "float16"] = Field(
        "float32", description="type of what is not quantized; the file's inputs and outputs are float32 always"
    )
    opset: Annotated[int, Field(ge=13)] = Field(description="ONNX opset of the exported file")


_files = {f.name.removesuffix(".toml"): f for f in files(__name__).iterdir() if f.name.endswith(".toml")}


def add(path: Path) -> str:
    """Make a target of your own known: a TOML file, whose name without the suffix is the target's.

    Raises:
        ConfigError: the file is not there, or wrong.
    """
    if not path.is_file():
        raise ConfigError(f"there is no target file {path}")
    _files[path.stem] = path
    profile.cache_clear()
    profile(path.stem)
    return path.stem


def names() -> tuple[str, ...]:
    """The known targets, in alphabetical order."""
    load_plugins()
    return tuple(sorted(_files))


@cache
def profile(name: str) -> Profile:
    """The profile of a target.

    Raises:
        ConfigError: there is none of that name, or its file is wrong.
    """
    if name not in names():
        raise ConfigError(f"unknown target '{name}'", remedy=f"known: {', '.join(names())}")
    try:
        table = tomllib.loads(_files[name].read_text(encoding="utf-8"))
        return Profile.model_validate({**table, "name": name})
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError(f"the profile of target '{name}' is wrong: {error}") from None


def default_target(engine: str) -> str:
    """The target that an engine gets where none is named.

    >>> default_target("onnxruntime")
    'ort-x86'

    Raises:
        ConfigError: no profile says that it is the default of this engine.
    """
    for name in names():
        if profile(name).default and profile(name).engines[0] == engine:
            return name
    raise ConfigError(f"no default target for engine '{engine}'", remedy=f"known targets: {', '.join(names())}")


def named(name: str) -> str:
    """The target that a name stands for: its own, or that of an engine.

    >>> named("onnxruntime"), named("ort-arm")
    ('ort-x86', 'ort-arm')

    Raises:
        ConfigError: there is neither.
    """
    if name in names():
        return name
    engines = sorted({profile(target).engines[0] for target in names()})
    if name in engines:
        return default_target(name)
    known = ", ".join(dict.fromkeys((*names(), *engines)))
    raise ConfigError(f"'{name}' is neither a target nor an engine", remedy=f"known: {known}")
