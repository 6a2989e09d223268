"""Networks of every family, untrained, as small test objects for the export and the builder of a target."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress.config import TargetConfig
from compress.engines.base import build_engine
from compress.engines.metadata import Metadata
from compress.engines.sidecar import read_sidecar
from compress.errors import EngineError
from compress.export.lint import enforce
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.frontend.raising import raised
from compress.graph.structure import Structure
from compress.models.registry import build
from compress.progress import SILENT, Progress
from compress.prune.surgery import cut
from compress.quantize.calibrate import calibrate
from compress.quantize.quantizable import in_float

CLASSES = 10


@dataclass(frozen=True)
class Built:
    """What became of one network.

    Attributes:
        layers: of the parsed network.
        convolutions, int8: how many there are, and how many run in INT8.
        bytes: of the plan.
        seconds: that reading, checking and building the file took.
    """

    name: str
    layers: int
    convolutions: int
    int8: int
    bytes: int
    seconds: float


class Maps(nn.Module):
    """A ResNet without its classifier that returns the results of its stages."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x, maps = self.stem(x), {}
        for index, stage in enumerate(self.stages):
            x = maps[f"stage{index}"] = stage(x)
        return maps


def grey(arch: str) -> nn.Module:
    """A network that takes grey images."""
    net: Any = build(arch, CLASSES)
    net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return net  # type: ignore[no-any-return]


def pruned(arch: str, shape: tuple[int, int, int], *, blocks: bool = False) -> nn.Module:
    """A network with odd widths, about two thirds of each group; or without its removable blocks of even number."""
    net = raised(build(arch, CLASSES).eval(), shape)
    structure = Structure.of(net, shape)
    if blocks:
        return cut(net, structure.coupling, {}, [s for s in structure.segments if s.removable][::2])
    kept = {group.name: range(max(1, group.units * 2 // 3) | 1) for group in structure.coupling if group.units > 1}
    return cut(net, structure.coupling, kept)


def families(size: int) -> Mapping[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]]:
    """A factory and the input's shape (C, H, W) of each network, by name.

    Args:
        size: height and width of the input; networks for CIFAR take 32.
    """
    shape, small = (3, size, size), (3, 32, 32)
    names = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2")
    return {
        **{name: (partial(build, name, CLASSES), shape) for name in names},
        "cifar_resnet20": (partial(build, "cifar_resnet20", CLASSES), small),
        "cifar_resnet56_b": (partial(build, "cifar_resnet56_b", CLASSES), small),
        "resnet18, odd widths": (partial(pruned, "resnet18", shape), shape),
        "resnet50, odd widths": (partial(pruned, "resnet50", shape), shape),
        "resnet34, blocks removed": (partial(pruned, "resnet34", shape, blocks=True), shape),
        "resnet18, four outputs": (lambda: Maps(build("resnet18", CLASSES)), shape),
        "resnet18, grey": (partial(grey, "resnet18"), (1, size, size)),
    }


def build_families(
    target: TargetConfig, folder: Path, size: int, only: str = "", progress: Progress = SILENT
) -> Iterator[Built]:
    """Quantize, export, check and build each network for a target.

    Args:
        folder: where the files go.
        only: of the networks whose name contains this.

    Raises:
        ModelError, EngineError: one of them does not suit the target, or cannot be built.
        BackendAbsent: the target's engine cannot be built on this machine.
    """
    for name, (make, shape) in families(size).items():
        if only not in name:
            continue
        torch.manual_seed(0)
        net = raised(_lively(make()).eval(), shape)
        path = folder / f"{name.replace(', ', '-').replace(' ', '_')}_int8.onnx"
        progress.note(f"{name}: quantizing and exporting")
        _export(net, shape, target, path)
        start = time.perf_counter()
        engine = build_engine(target.engine, path, folder, target, progress=progress)
        seconds = time.perf_counter() - start
        record = read_sidecar(engine)
        if record is None:
            raise EngineError(f"{engine} has no sidecar")
        counts = record.layers
        layers, convolutions, int8 = sum(counts["parsed"].values()), counts["convolutions"], counts["int8_convolutions"]
        yield Built(name, layers, convolutions, int8, engine.stat().st_size, seconds)


def _export(net: nn.Module, shape: tuple[int, int, int], target: TargetConfig, path: Path) -> None:
    images = [torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))]
    calibrated = calibrate(net, images, target.name, method="minmax", correction="none")
    channels = shape[0]
    preprocess = Preprocess(shape[1], mean=(0.5,) * channels, std=(0.5,) * channels, channels=channels)
    floats = in_float(calibrated.net, calibrated.quantizers)
    about = Metadata(path.stem, "int8", preprocess, (), 0, 0, target.name, "", floats)
    profile = target.profile
    lowered = lower(calibrated.net, calibrated.quantizers)
    export_onnx(lowered, path, about, profile.opset, half=profile.float_type == "float16")
    enforce(path, target.name, floats)


def _lively(net: nn.Module) -> nn.Module:
    """Give the batch norms values as training leaves them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 0.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return net
