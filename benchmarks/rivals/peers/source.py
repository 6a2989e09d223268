"""The inputs of every rival: our exported FP32 file, and calibration images preprocessed as that file says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import Tensor

from calibration.datasets import Split
from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.transforms import eval_transform
from compress.engines.base import metadata_of
from compress.engines.metadata import Metadata
from compress.errors import EngineError, ModelError
from compress.export.lint import check_size
from compress.parse import brief


@dataclass(frozen=True, eq=False)
class Source:
    """An exported FP32 file, read.

    Attributes:
        path: the file.
        model: what is in it.
        metadata: what it says about itself.
    """

    path: Path
    model: onnx.ModelProto
    metadata: Metadata

    @property
    def input(self) -> str:
        """Name of the network's input."""
        return str(self.model.graph.input[0].name)

    def int8(self, target: str) -> Metadata:
        """What the INT8 version for ``target`` says about itself."""
        return replace(self.metadata, precision="int8", target=target)


def read(path: Path) -> Source:
    """Read an exported FP32 file.

    Raises:
        EngineError: there is no such file, it is not ONNX, not of this package, or quantized already.
    """
    try:
        check_size(path)
        model = onnx.load(path)
    except FileNotFoundError:
        raise EngineError(f"no such ONNX file: {path}", remedy="make it with `python -m compress export`") from None
    except (OSError, ModelError):
        raise
    except Exception as error:  # protobuf's own class, which has no type information
        raise EngineError(f"{path} is not a whole ONNX file ({brief(error)})", remedy="export it again") from None
    metadata = metadata_of({entry.key: entry.value for entry in model.metadata_props}, path)
    if metadata is None or metadata.precision != "fp32":
        raise EngineError(
            f"{path} is not an FP32 file of this package", remedy="give an `*_fp32.onnx` of `python -m compress export`"
        )
    return Source(path, model, metadata)


@dataclass(frozen=True)
class Images:
    """Calibration images in batches (N, C, H, W), float32, decoded anew at every iteration.

    >>> from calibration.datasets import load_data
    >>> images = Images(load_data("digits").train, Preprocess(64), batch_size=100)
    >>> next(iter(images)).shape
    torch.Size([100, 3, 64, 64])
    """

    sample: Split
    preprocess: Preprocess
    batch_size: int = 1

    def __len__(self) -> int:
        return -(-len(self.sample) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for x, _ in batches(self.sample, eval_transform(self.preprocess), self.batch_size):
            yield x


def with_metadata(model: onnx.ModelProto, metadata: Metadata) -> bytes:
    """A quantized model as the bytes of a file of ours: it can be opened, timed and evaluated beside ours."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata.to_props())
    return bytes(model.SerializeToString())
