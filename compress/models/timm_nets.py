"""Networks and weights of timm (PyTorch Image Models), an optional package: ``timm:resnet50d``.

Only names of timm's own list are built, and no argument can make timm read or download a file: weights are
downloaded where the configuration asks for them, and nowhere else.
"""

from __future__ import annotations

import difflib
import importlib
import math
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from compress.errors import CheckpointError, ModelError
from compress.parse import brief

PREFIX = "timm:"
_FILES = ("checkpoint_path", "cache_dir")  # arguments of timm.create_model that name files; so do all "pretrained..."


def factory(name: str) -> partial[nn.Module]:
    """What makes the network ``name``, with timm's own weights or without any.

    Args:
        name: such as ``resnet50d`` or, with the tag of its weights, ``resnet50d.ra2_in1k``.

    Raises:
        ModelError: timm is not installed, or has no such network.
    """
    timm = _timm()
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        close = difflib.get_close_matches(name.partition(".")[0], known, n=1)
        hint = f"did you mean '{PREFIX}{close[0]}'? " if close else ""
        raise ModelError(f"timm has no '{brief(name, 100)}'", remedy=f"{hint}`timm.list_models()` lists its networks")
    return partial(_create, name)


def _create(name: str, **arguments: Any) -> nn.Module:
    files = [key for key in arguments if key.startswith("pretrained") or key in _FILES]
    if files:
        raise ModelError(
            f"model.args.{files[0]}: a network of timm is built without weights",
            remedy="set model.weights to a file, or to 'timm' for timm's own weights",
        )
    net: nn.Module = _timm().create_model(name, pretrained=False, exportable=True, **arguments)
    return net


def download(name: str) -> dict[str, Tensor]:
    """The trained weights that timm offers for a network; only called when the configuration asks for them.

    Raises:
        CheckpointError: timm has none, or they cannot be downloaded.
        ModelError: see ``factory``.
    """
    factory(name)
    try:
        net: nn.Module = _timm().create_model(name, pretrained=True)
    except Exception as error:  # the hub's client has errors of its own
        raise CheckpointError(
            f"cannot get timm's weights for '{name}': {brief(error)}",
            remedy="download them on a machine with a network and set model.weights to the file",
        ) from None
    return net.state_dict()


def preprocessing(name: str) -> dict[str, Any] | None:
    """What timm's weights of this network expect, by the keys of ``[data]``; None where timm does not say.

    Raises:
        ModelError: see ``factory``.
    """
    factory(name)
    try:
        found = _timm().get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ModelError(
            f"timm: {brief(error)}", remedy=f"`timm.list_pretrained('{name.partition('.')[0]}*')`"
        ) from None
    if found is None:
        return None
    channels, height, width = found.input_size
    sides = [math.floor(side / found.crop_pct) for side in (height, width)]
    square = height == width
    return {
        "input_size": height if square else (height, width),
        "resize": sides[0] if square else tuple(sides),
        "channels": channels,
        "mean": tuple(found.mean),
        "std": tuple(found.std),
        "interpolation": found.interpolation,
    }


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ModelError(
            f"a network of timm was asked for, and timm cannot be imported: {error}",
            remedy='pip install "resnet-compress[timm]"',
        ) from None
