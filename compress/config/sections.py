"""The sections of the configuration that do not train."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from calibration.preprocess import LARGEST
from compress import targets
from compress.config.budget import BUDGETS, Budget, parse_budget
from compress.config.section import Fraction, Positive, Section, also_called, known, sides
from compress.errors import ConfigError
from compress.registries import BACKENDS, CRITERIA, RANGES

Engine = Annotated[str, known(BACKENDS)]


class RunConfig(Section):
    dir: Path = Field(Path("runs/resnet18-digits"), description="folder that all stages read and write")
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = Field(
        None, description="prefix of the exported files; default: the architecture's name"
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="seed of initialisation, shuffling, augmentation and sampling"
    )
    plugins: tuple[str, ...] = Field((), description="modules of your own that add criteria, methods, engines or steps")


class ModelConfig(Section):
    arch: str = Field("resnet18", description="a built-in architecture, 'timm:NAME', or 'package.module:factory'")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for your own factory")
    weights: str | None = Field(
        None, description="checkpoint file; 'torchvision' or 'timm' downloads weights; none: train from scratch"
    )
    ema: bool = Field(True, description="take the averaged (EMA) weights of a checkpoint that has both")
    new_head: bool = Field(
        False, description="replace the classifier by a new one for the data's classes, fit it, and train"
    )


class DataConfig(Section):
    kind: Literal["digits", "imagefolder", "cifar10"] = Field("digits", description="where the images come from")
    train: Path | None = Field(None, description="folder of training images (imagefolder), or the CIFAR-10 root")
    eval: Path | None = Field(None, description="folder of evaluation images (imagefolder)")
    calibration: Path | None = Field(None, description="folder of calibration images; default: the training images")
    labels: Path | None = Field(
        None, description="CSV file (filename,label) for the images in train and eval; default: one folder per class"
    )
    classes: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict,
        description="class = number of the network's output that stands for it; default: the classes in alphabetical "
        "order",
    )
    skip_broken: bool = Field(False, description="leave out images that cannot be read; each stage says how many")
    download: bool = Field(False, description="let torchvision download CIFAR-10")
    input_size: Annotated[int | tuple[int, int], sides(1)] | None = Field(
        None, description="network input in pixels: one side, or [height, width]; default: that of data.kind"
    )
    resize: Annotated[int | tuple[int, int], sides(0)] | None = Field(
        None,
        description="before the centre crop: the shorter side, or exactly [height, width]; 0: no resize; default: that "
        "of data.kind",
    )
    crop: Annotated[int | tuple[int, int], sides(1)] | None = Field(
        None, description="centre crop: another name of input_size, as torchvision has it"
    )
    interpolation: (
        Annotated[Literal["nearest", "bilinear", "bicubic"], also_called({"cubic": "bicubic", "linear": "bilinear"})]
        | None
    ) = Field(None, description="how images are resized; default: bilinear")
    antialias: bool = Field(True, description="smooth images that are made smaller, as Pillow does")
    channels: Literal[1, 3, 4] = Field(3, description="input channels: 3 colours, 1 grey, 4 colours and alpha")
    channel_order: Annotated[Literal["rgb", "bgr"], also_called({})] = Field(
        "rgb", description="order of the colours in the network's input"
    )
    mean: tuple[float, ...] | None = Field(
        None, description="mean of pixels in 0..1: one value, or one per channel in the order of channel_order"
    )
    std: tuple[float, ...] | None = Field(None, description="standard deviation of pixels in 0..1, like mean")
    holdout: Fraction = Field(0.1, description="share of the training images held out to choose the best checkpoint")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="data loader processes")


class TensorrtConfig(Section):
    """How TensorRT builds; other engines ignore it."""

    workspace_mb: Positive = Field(2048, description="GPU memory that a kernel may use, at build and run time")
    optimization_level: Annotated[int, Field(ge=0, le=5)] = Field(
        3, description="0 builds fastest, 5 searches longest for the fastest engine"
    )
    version_compatible: bool = Field(False, description="the plan also runs on later TensorRT versions; may be slower")
    hardware_compatible: bool = Field(
        False, description="the plan runs on every GPU from Ampere on, not only on the same model; may be slower"
    )
    dla_core: Annotated[int, Field(ge=0)] | None = Field(
        None, description="run on this DLA core, and layers that it lacks on the GPU; none: all on the GPU"
    )


def _capability(given: Any) -> Any:
    """A compute capability as NVIDIA's tables write it.

    >>> _capability("sm_86"), _capability(8.9), _capability("120")
    ('8.6', '8.9', '12.0')
    """
    found = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", str(given), re.IGNORECASE)
    return f"{found[1]}.{found[2]}" if found else given


class TensorrtRtxConfig(Section):
    """How TensorRT for RTX builds; other engines ignore it."""

    capabilities: Annotated[
        tuple[Annotated[Literal["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"], BeforeValidator(_capability)], ...],
        BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given),  # as JSON has it
        AfterValidator(lambda given: tuple(dict.fromkeys(given))),
        Field(min_length=1),
    ] = Field(
        ("8.6", "8.9", "12.0"),
        description="compute capabilities of the GPUs that the plan runs on; default: RTX cards from Ampere on "
        "(RTX 30, 40 and 50)",
    )


class TargetConfig(Section):
    name: str = Field(
        "ort-x86", description="what the INT8 file is made for: ort-x86, ort-arm, openvino, tensorrt or tensorrt-rtx"
    )
    engine: Engine = Field("onnxruntime", description="the engine that ships; default: the target's own engine")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the engine runs")
    threads: Positive = Field(1, description="intra-op threads (CPU engines)")
    batch: Positive = Field(1, description="batch size that is built for and timed")
    tensorrt: TensorrtConfig = Field(TensorrtConfig(), description="how TensorRT builds")
    tensorrt_rtx: TensorrtRtxConfig = Field(TensorrtRtxConfig(), description="how TensorRT for RTX builds")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Fill in those of target, engine and device that are not given from those that are."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        try:
            if "name" in values:
                values.setdefault("engine", targets.profile(str(values["name"])).engines[0])
            elif values.get("engine") in BACKENDS:
                values["name"] = targets.default_target(values["engine"])
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if values.get("engine") in BACKENDS:
            values.setdefault("device", BACKENDS[values["engine"]].device)
        return values

    @model_validator(mode="after")
    def _fits(self) -> TargetConfig:
        if self.engine not in self.profile.engines:
            known = ", ".join(self.profile.engines)
            raise ValueError(f"a file for {self.name} runs in INT8 on {known}, not on {self.engine}")
        if BACKENDS[self.engine].device == "cuda" and self.device == "cpu":
            raise ValueError(f"{self.engine} runs on device 'cuda'")
        return self

    @property
    def profile(self) -> targets.Profile:
        """The form of this target's INT8 files."""
        return targets.profile(self.name)


class PruneConfig(Section):
    latency: str | None = Field(
        None, description="budget: '50%' or '4.0 ms' of the target's INT8 engine, by its latency table"
    )
    macs: str | None = Field(None, description="budget: '50%' of the MACs, or an absolute number such as '900M'")
    params: str | None = Field(None, description="budget: '50%' of the parameters, or an absolute number")
    ratio: str | None = Field(None, description="budget: share of channels kept in every group, '50%'")
    table: Path | None = Field(None, description="latency table; default: latency_table.json in the run's folder")
    allow_foreign_table: bool = Field(False, description="accept a table of another device, version or thread count")
    confirm: bool = Field(True, description="measure the plans near a latency budget and take the best that meets it")
    importance: Annotated[str, known(CRITERIA)] = Field(
        "obs", description="how channels are chosen: Optimal Brain Surgeon, or by a score"
    )
    repair: bool = Field(True, description="solve the remaining weights again; widths are chosen by the loss after it")
    images: Annotated[int, Field(ge=2)] = Field(
        300,
        description="training images that pruning solves weights on, and compares sizes on; half as many others "
        "measure losses, or else a quarter of these",
    )
    rounds: Positive = Field(1, description="pruning steps from the unpruned network to the budget, each scored again")
    round_epochs: Annotated[int, Field(ge=0)] = Field(1, description="epochs of fine-tuning between rounds")
    sizes: tuple[Annotated[int, Field(ge=8, le=LARGEST)], ...] = Field(
        (), description="input sizes in pixels to choose from; data.input_size is one of them only if it is listed"
    )
    depth: bool = Field(True, description="also remove whole residual blocks (needs prune.repair)")
    multiple: Positive | None = Field(
        None, description="kept widths are multiples of this; default: 8, or 1 with a latency table"
    )
    min_width: Positive = Field(8, description="smallest width of a group, in channels")
    max_ratio: Fraction = Field(1.0, description="largest share of a group's channels that may be removed")
    keep: tuple[str, ...] = Field(
        (), description="layers whose channels all stay, and blocks that are not removed; names or 'layer1.*'"
    )

    @model_validator(mode="after")
    def _budgets(self) -> PruneConfig:
        given = [budget.kind for budget in self.budgets()]
        if "ratio" in given and len(given) > 1:
            raise ValueError(f"prune.ratio fixes every width: give it alone, not with {', '.join(given[:-1])}")
        if "ratio" in given and self.rounds > 1:
            raise ValueError("several rounds need a budget of latency, MACs or parameters: with a ratio, set rounds=1")
        if self.sizes and "ratio" in given:
            raise ValueError("a ratio is met at every size: with prune.sizes give a latency, MACs or parameters")
        if self.sizes and self.table is not None:
            raise ValueError(
                "each of prune.sizes has a latency table of its own, in RUN/sizes: leave prune.table unset"
            )
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("prune.sizes names a size twice")
        if not self.repair and self.importance == "obs":
            raise ValueError("importance 'obs' needs prune.repair=true: set that, or choose another importance")
        if not self.repair and self.latency is not None:
            raise ValueError("a latency budget needs prune.repair=true, which measures comparable losses")
        return self

    def budgets(self) -> tuple[Budget, ...]:
        """The budgets that were given; all must be met, and the first is spent. Default: half of the MACs."""
        texts = {kind: getattr(self, kind) for kind in BUDGETS}
        given = tuple(parse_budget(kind, text) for kind, text in texts.items() if text is not None)
        return given or (Budget("macs", 0.5, None),)


class QuantizeConfig(Section):
    mode: Literal["ptq", "qat"] = Field("ptq", description="ptq: calibrate only; qat: also train with quantization")
    calibration_images: Positive = Field(300, description="number of calibration images, balanced over the classes")
    batch_size: Positive = Field(16, description="calibration batch")
    method: Annotated[str, known(RANGES)] = Field("mse", description="how a tensor's range follows from its values")
    correction: Literal["gptq", "bias", "none"] = Field(
        "gptq", description="rounding errors: cancel in a layer's output (gptq), remove from its bias (bias), or none"
    )
    equalization: bool = Field(False, description="equalize channel ranges across layers, if that lowers the error")
    max_drop: Annotated[float, Field(ge=0)] | None = Field(
        None, description="leave the costliest layers in float until the top-1 drop (points) is at most this"
    )
    sensitivity_images: Positive = Field(32, description="images on which the error of each layer is measured")

    @model_validator(mode="after")
    def _fits(self) -> QuantizeConfig:
        if self.max_drop is not None and self.mode == "qat":
            raise ValueError("max_drop needs mode = 'ptq': QAT recovers the accuracy by training")
        return self
