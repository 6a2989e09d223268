"""No layer is turned away: every convolution of these networks runs in integers, or stays in float on purpose."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress.engines.base import OpenOptions
from compress.engines.convolutions import check_convolutions
from compress.engines.metadata import Metadata
from compress.engines.onnxruntime import float_convolutions, operator_counts, optimized_graph
from compress.export.lint import lint
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.export.parity import INT8_ERROR, Reference, check, runner_for
from compress.quantize.calibrate import calibrate
from compress.quantize.quantizable import check_quantizable, in_float
from compress.targets import names, profile

SHAPE = (3, 16, 16)


class Around(nn.Module):
    """A convolution, something behind it, a second convolution, a residual addition and a classifier."""

    def __init__(self, middle: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.middle, self.last = middle or nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        self.head = head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.last(self.middle(self.conv(x))))
        result: Tensor = self.head(x)
        return result


class Scale(nn.Module):
    """ReZero with one number, layer scale with one a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * F.relu(x)


class TwoNorms(nn.Module):
    """Two BNs read one convolution, and a third their concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.join = (
            nn.BatchNorm2d(8),
            nn.BatchNorm2d(8),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.one(x)), self.two(x)], 1)
        result: Tensor = self.join(F.relu(self.three(both)))
        return result


class Gate(nn.Module):
    """Squeeze-and-excite by 1x1 convolutions."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.squeeze, self.excite, self.gate = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return x * gate


class Blur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.full((8, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filter, groups=8)  # type: ignore[arg-type]


class Dense(nn.Module):
    """A segmentation head: its output is a map, as large as the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(F.max_pool2d(x, 2)), scale_factor=2.0, mode="bilinear")


def padded(mode: Literal["reflect", "replicate", "circular"]) -> nn.Module:
    return nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)


def activated(name: str) -> nn.Module:
    return Around(getattr(nn, name)())


NETS: dict[str, Callable[[], nn.Module]] = {
    **{act: partial(activated, act) for act in ("SiLU", "Hardswish", "LeakyReLU", "PReLU", "Mish")},
    **{act: partial(activated, act) for act in ("GELU", "ELU", "ReLU6", "Hardtanh", "Tanh")},
    "ReZero": lambda: Around(Scale(1)),
    "layer scale": lambda: Around(Scale(8)),
    "two norms": lambda: Around(TwoNorms()),
    "pre-activation": lambda: Around(nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())),
    "sigmoid gate": lambda: Around(Gate(nn.Sigmoid())),
    "hard sigmoid gate": lambda: Around(Gate(nn.Hardsigmoid())),
    "blur": lambda: Around(Blur()),
    "reflect": lambda: Around(padded("reflect")),
    "replicate": lambda: Around(padded("replicate")),
    "circular": lambda: Around(padded("circular")),
    "pooled to 3": lambda: Around(head=nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 4))),
    "ends in a convolution": lambda: Around(head=nn.Conv2d(8, 4, 1)),
    "ends in a block": lambda: Around(head=nn.Identity()),
    "segmentation": lambda: Around(head=Dense()),
    "convolution as classifier": lambda: Around(
        head=nn.Sequential(nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ),
}


def lively(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3)):
                nn.init.uniform_(tensor, low, high)
            assert module.running_mean is not None
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
    return net.eval()


def deploy(net: nn.Module, path: Path, target: str = "ort-x86") -> tuple[dict[str, int], Metadata]:
    """Quantize and export; the operators that ONNX Runtime runs."""
    images = [torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))]
    calibrated = calibrate(net, images, target, method="minmax", correction="none")
    floats, want = in_float(calibrated.net, calibrated.quantizers), profile(target)
    metadata = Metadata("net", "int8", Preprocess(SHAPE[1]), (), 1, 1, target, "0.1.0", floats)
    lowered = lower(calibrated.net, calibrated.quantizers)
    export_onnx(lowered, path, metadata, want.opset, half=want.float_type == "float16")
    check(path, Reference("torch", calibrated.fake(), INT8_ERROR), images[0], runner_for(want))
    assert [f for f in lint(path, target, floats) if f.severity == "error"] == []
    if want.engines[0] != "onnxruntime":
        return {}, metadata
    graph = optimized_graph(path, OpenOptions())
    if target == "ort-x86":
        check_convolutions(path, metadata, float_convolutions(graph), lambda conv, _: "in float")
    return operator_counts(graph), metadata


def convolutions(net: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d | Blur) for module in net.modules())


FAST = ("SiLU", "layer scale", "two norms", "sigmoid gate", "reflect", "segmentation")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NETS])
def test_every_convolution_runs_in_integers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = lively(NETS[name]())
    counts, metadata = deploy(net, tmp_path / "net.onnx")
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())  # none of these can be folded
    assert counts["QLinearConv"] == convolutions(net) + norms
    assert not {"Conv", "FusedConv", "NhwcFusedConv", "BatchNormalization"} & counts.keys()
    assert metadata.float_layers == ()
    assert check_quantizable(net, "ort-x86", SHAPE) == ()


@pytest.mark.slow
@pytest.mark.parametrize("target", [name for name in names() if name != "ort-x86"])
@pytest.mark.parametrize("name", FAST)
def test_files_for_other_targets_have_no_errors(name: str, target: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    deploy(lively(NETS[name]()), tmp_path / "net.onnx", target)


def test_a_layer_that_cannot_be_int8_stays_in_float_and_is_told_with_its_price(tmp_path: Path) -> None:
    torch.manual_seed(0)
    up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 4, 3, padding=1))
    net = Around(head=up).eval()
    (told,) = check_quantizable(net, "ort-x86", SHAPE)
    assert told.layer == "head.0"
    assert "'head.0' stays in float (9.2% of the multiply-accumulates): layers of type ConvTranspose2d" in str(told)
    counts, metadata = deploy(net, tmp_path / "net.onnx")
    assert metadata.float_layers == ("head.0",)
    assert (counts["QLinearConv"], counts["ConvTranspose"]) == (4, 1)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "view": lambda: Reshaped(lambda x: x.view(x.size(0), -1)),
    "slice": lambda: Reshaped(lambda x: x[:, :, 0, 0]),
    "squeeze": lambda: Reshaped(lambda x: x.squeeze(-1).squeeze(-1)),
    "dropout": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 4)),
    "mean": lambda: Reshaped(lambda x: x.flatten(1), lambda x: x.mean((2, 3))),
    "layers": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(8, 4),
    ),
    "two linears": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    ),
}


class Reshaped(nn.Module):
    def __init__(
        self,
        how: Callable[[Tensor], Tensor],
        pool: Callable[[Tensor], Tensor] = lambda x: F.avg_pool2d(x, x.shape[-1]),
    ) -> None:
        super().__init__()
        self.how, self.pool, self.fc = how, pool, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.how(self.pool(x)))
        return result


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("mean", "layers") else pytest.mark.slow) for n in HEADS]
)
def test_every_linear_layer_of_a_head_runs_as_a_qgemm(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = lively(Around(head=HEADS[name]()))
    counts, _ = deploy(net, tmp_path / "net.onnx")
    assert counts["QGemm"] == sum(isinstance(module, nn.Linear) for module in net.modules())
    assert not {"Gemm", "MatMul", "ReduceMean", "GlobalAveragePool", "BatchNormalization"} & counts.keys()
