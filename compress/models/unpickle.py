"""Unpickle the tensors and plain containers of a file, and nothing that could run.

torch's own unpickler is told to look up a number of well-known classes here: objects that training programs keep beside
the weights. What it finds is never the class itself but a stand-in that takes any content and keeps nothing, so that
nothing of the file is called or set. Any class or function that is not listed ends the reading.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals


class Ignored:
    """Stands for an object beside the weights, which is not read.

    >>> Ignored(1, 2).__setstate__({"code": "x"})
    """

    def __new__(cls, *_: object) -> Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _Dict:
    """Stands for a subclass of dict: its items are kept in an ordered dict."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _List:
    """Stands for a sequence: its items are kept in a list."""

    def __new__(cls, *_: object) -> list[Any]:  # type: ignore[misc]
        return []


_NUMPY = ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
_NUMPY_TYPES = (
    *("ndarray", "dtype", "bool_", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "str_", "random._pickle.__randomstate_ctor", "random._pickle.__generator_ctor"),
    *(f"dtypes.{kind}DType" for kind in ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32")),
    *(f"dtypes.{kind}DType" for kind in ("UInt64", "Float16", "Float32", "Float64", "Str", "Object")),
)
_PATHS = ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
_LIGHTNING = ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric")
_OMEGACONF = (
    *("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "base.SCMode"),
    *("nodes.AnyNode", "nodes.StringNode", "nodes.IntegerNode", "nodes.FloatNode", "nodes.BooleanNode"),
    *("nodes.PathNode", "nodes.EnumNode", "nodes.BytesNode", "nodes.InterpolationResultNode"),
)
_IGNORED = (
    *("argparse.Namespace", "types.SimpleNamespace", "typing.Any", "uuid.UUID", "decimal.Decimal"),
    *("fractions.Fraction", "builtins.range", "builtins.slice", "builtins.frozenset"),
    *(f"builtins.{kind}" for kind in ("int", "float", "str", "bool", "bytes", "dict", "list", "tuple", "object")),
    *(f"datetime.{kind}" for kind in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"pathlib.{kind}" for kind in _PATHS),
    *(f"pathlib._local.{kind}" for kind in _PATHS),
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in _NUMPY),
    *(f"numpy.{name}" for name in _NUMPY_TYPES),
    *(f"omegaconf.{name}" for name in _OMEGACONF),
    *(f"{package}.callbacks.model_checkpoint.ModelCheckpoint" for package in _LIGHTNING),
    *(f"{package}.callbacks.early_stopping.EarlyStopping" for package in _LIGHTNING),
    *(f"{package}.utilities.enums.{kind}" for package in _LIGHTNING for kind in ("PrecisionType", "LightningEnum")),
    "torchvision.transforms.functional.InterpolationMode",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "ultralytics.utils.IterableSimpleNamespace",
)
_DICTS = (
    "collections.defaultdict",
    *(f"{package}.utilities.parsing.AttributeDict" for package in _LIGHTNING),
    *(f"{package}.utilities.data.AttributeDict" for package in _LIGHTNING),
    *("easydict.EasyDict", "addict.addict.Dict", "yacs.config.CfgNode", "mmengine.config.config.ConfigDict"),
)
_LISTS = ("collections.deque",)

STAND_INS: dict[str, type] = {
    **dict.fromkeys(_IGNORED, Ignored),
    **dict.fromkeys(_DICTS, _Dict),
    **dict.fromkeys(_LISTS, _List),
}
"""What stands for the known classes, by ``module.name``."""


def unpickle(path: Path) -> Any:
    """The content of a file of ``torch.save``, on the CPU: tensors, plain containers, and ``Ignored`` for the rest.

    Raises:
        Exception: of nearly any type, where the file is damaged or names something that is not known.
    """
    known: list[Any] = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    with path.open("rb") as file, safe_globals(known), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on protocols, and advises on what to do about it
        return torch.load(file, map_location="cpu", weights_only=True)  # a path would be judged by its name
