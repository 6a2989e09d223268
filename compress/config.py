"""The configuration: one TOML file, read, checked and frozen.

Every key has a default. ``--set prune.macs=40%`` overrides a key; an unknown key is an error that suggests the nearest
known key.

>>> load_config(None, ["prune.macs=40%", "target.threads=2"]).prune.budgets()
(Budget(kind='macs', fraction=0.4, limit=None),)
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from calibration.preprocess import LARGEST
from compress import targets
from compress.errors import ConfigError, PipelineError
from compress.parse import brief, read_bytes
from compress.registries import BACKENDS, CRITERIA, RANGES, STEPS
from compress.registry import Registry, load_plugins

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class _Known:
    """A validator that checks that a name is in a registry."""

    registry: Registry[Any]

    def __call__(self, name: str) -> str:
        try:
            return self.registry.known(name)
        except ConfigError as error:
            raise ValueError(f"{error.message}; {error.remedy}") from None


def _known(registry: Registry[Any]) -> AfterValidator:
    return AfterValidator(_Known(registry))


def _plain(name: str) -> str:
    """A name without capitals and punctuation.

    >>> _plain("One_Cycle"), _plain("RandomResizedCrop")
    ('onecycle', 'randomresizedcrop')
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _also_called(others: Mapping[str, str]) -> BeforeValidator:
    """A validator that takes a name in any spelling, by its other names, and with ``LR`` behind it as in PyTorch."""

    def canonical(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name = _plain(value).removesuffix("lr")
        return others.get(name, name)

    return BeforeValidator(canonical)


Engine = Annotated[str, _known(BACKENDS)]
BudgetKind = Literal["latency", "macs", "params", "ratio"]
BUDGETS: tuple[BudgetKind, ...] = get_args(BudgetKind)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:
        """Take a single value, or names between commas, where a key holds a list."""
        if not isinstance(values, Mapping):
            return values
        lists = {key for key, field in cls.model_fields.items() if _holds_list(field.annotation)}
        return {key: _listed(value) if key in lists else value for key, value in values.items()}


def _holds_list(annotation: Any) -> bool:
    return any(get_origin(part) is tuple for part in (annotation, *get_args(annotation)))


def _listed(value: Any) -> Any:
    """
    >>> _listed("layer4.*, layer3.0"), _listed(3), _listed(["a"])
    (['layer4.*', 'layer3.0'], [3], ['a'])
    """
    if isinstance(value, str):
        words = value.strip().removeprefix("[").removesuffix("]").split(",")
        return [word.strip(" '\"") for word in words if word.strip()]
    return [value] if isinstance(value, int | float) else value


@dataclass(frozen=True)
class Budget:
    """What the pruned network may cost: a fraction of the unpruned network's cost, or an absolute limit.

    ``kind`` is ``macs``, ``params``, ``ratio`` (share of channels kept in every group) or ``latency``. Exactly one of
    ``fraction`` (0 to 1) and ``limit`` (MACs, parameters, or milliseconds) is set.
    """

    kind: BudgetKind
    fraction: float | None
    limit: float | None


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
    new_head: bool = Field(False, description="replace the classifier by a new one for the data's classes, and train")


def _sides(least: int) -> BeforeValidator:
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
    input_size: Annotated[int | tuple[int, int], _sides(1)] | None = Field(
        None, description="network input in pixels: one side, or [height, width]; default: that of data.kind"
    )
    resize: Annotated[int | tuple[int, int], _sides(0)] | None = Field(
        None,
        description="before the centre crop: the shorter side, or exactly [height, width]; 0: no resize; default: that "
        "of data.kind",
    )
    crop: Annotated[int | tuple[int, int], _sides(1)] | None = Field(
        None, description="centre crop: another name of input_size, as torchvision has it"
    )
    interpolation: (
        Annotated[Literal["nearest", "bilinear", "bicubic"], _also_called({"cubic": "bicubic", "linear": "bilinear"})]
        | None
    ) = Field(None, description="how images are resized; default: bilinear")
    antialias: bool = Field(True, description="smooth images that are made smaller, as Pillow does")
    channels: Literal[1, 3, 4] = Field(3, description="input channels: 3 colours, 1 grey, 4 colours and alpha")
    channel_order: Annotated[Literal["rgb", "bgr"], _also_called({})] = Field(
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


# Keys of the training sections by the names that other tools have for them.
_MEANT = {
    "randomresizedcrop": "resized_crop",
    "randomcrop": "crop",
    "hflip": "flip",
    "horizontalflip": "flip",
    "randomhorizontalflip": "flip",
    "colorjitter": "jitter",
    "learningrate": "lr",
    "scheduler": "schedule",
    "lrscheduler": "schedule",
    "milestones": "step_epochs",
    "gamma": "step_gamma",
    "period": "cycle_epochs",
    "wd": "weight_decay",
}


def _is_step(name: Any) -> Any:
    if isinstance(name, str) and (key := _MEANT.get(_plain(name))):
        raise ValueError(f"this is not a step on batches: set {key}")
    return name


class TrainConfig(Section):
    """Settings of the training loop; baseline, fine-tuning and QAT each have their own section."""

    epochs: Annotated[int, Field(ge=0)] | None = Field(None, description="passes over the training images")
    batch_size: Positive = Field(64, description="images a step")
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], _also_called({})] = Field(
        "sgd", description="optimizer; sgd with momentum"
    )
    lr: Annotated[float, Field(gt=0)] = Field(0.05, description="peak learning rate")
    momentum: Fraction = Field(0.9, description="SGD momentum (Nesterov)")
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="on weights; not on BN and biases")
    schedule: Annotated[
        Literal["cosine", "step", "cyclical", "onecycle", "constant"],
        _also_called({"cosineannealing": "cosine", "multistep": "step", "cyclic": "cyclical"}),
    ] = Field("cosine", description="learning-rate schedule")
    warmup: Annotated[float, Field(ge=0)] = Field(0.0, description="epochs of linear warm-up (cosine, step, constant)")
    step_size: Positive | None = Field(
        None, description="'step' multiplies the rate by step_gamma every so many epochs"
    )
    step_epochs: tuple[Positive, ...] = Field((), description="or the epochs at which it does so")
    step_gamma: Fraction = Field(0.1, description="factor of the 'step' schedule")
    cycle_epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="epochs of one cycle of the 'cyclical' schedule; default: half of the training"
    )
    crop: Fraction = Field(0.125, description="random shift, as a share of the input size (pad and crop)")
    resized_crop: Fraction = Field(
        0.0, description="random resized crop in its place: the least share of the area, often 0.08; 0: none"
    )
    flip: bool = Field(True, description="random horizontal flip")
    jitter: Annotated[float, Field(ge=0)] = Field(0.0, description="colour jitter strength")
    steps: tuple[Annotated[str, _known(STEPS), BeforeValidator(_is_step)], ...] = Field(
        (), description="what is done to each batch before the forward pass, in this order"
    )
    label_smoothing: Fraction = Field(0.0, description="label smoothing of the cross-entropy")
    distill: Fraction = Field(0.0, description="weight of distillation from the unpruned net (KL); 1 - this on labels")
    temperature: Annotated[float, Field(gt=0)] = Field(4.0, description="distillation temperature")
    clip_norm: Annotated[float, Field(ge=0)] = Field(5.0, description="clip the gradient norm to this; 0: no clipping")
    amp: bool = Field(True, description="mixed precision on a GPU (no effect on CPU)")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")

    @model_validator(mode="after")
    def _schedulable(self) -> TrainConfig:
        """Refuse a schedule that cannot work before any stage begins."""
        if self.schedule in ("cyclical", "onecycle") and self.warmup:
            raise ValueError(f"schedule '{self.schedule}' rises by itself: leave warmup at 0")
        if self.schedule == "step":
            if not (self.step_size or self.step_epochs):
                raise ValueError("schedule 'step' needs step_size = 10 (every ten epochs) or step_epochs = [10, 15]")
            if self.step_size and self.step_epochs:
                raise ValueError("schedule 'step' takes step_size or step_epochs, not both")
            if min(self.step_epochs, default=self.step_size or 0) <= self.warmup:
                raise ValueError(f"the first step of the rate begins within warmup={self.warmup:g} epochs")
        if self.epochs:
            if self.warmup >= self.epochs:
                raise ValueError(f"warmup={self.warmup:g} epochs is not shorter than the training of {self.epochs}")
            if self.schedule == "cyclical" and (self.cycle_epochs or 0) > self.epochs:
                longer = f"cycle_epochs={self.cycle_epochs:g} is longer than the training of {self.epochs} epochs"
                raise ValueError(longer)
        return self


class FinetuneConfig(TrainConfig):
    epochs: Annotated[int, Field(ge=0)] | None = Field(5, description="passes over the training images")
    lr: Annotated[float, Field(gt=0)] = Field(0.02, description="peak learning rate; a tenth of it without logits")
    distill: Fraction = Field(
        0.5,
        description="weight of distillation from the unpruned net (KL); 1 - this on labels; without logits: "
        "above 0, the error of the outputs alone",
    )


class QatConfig(TrainConfig):
    epochs: Annotated[int, Field(ge=0)] | None = Field(2, description="passes over the training images")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="peak learning rate")
    distill: Fraction = Field(0.5, description="weight of distillation from the unquantized net (KL)")
    scales: Literal["frozen", "learned"] = Field("learned", description="whether QAT trains the scales too")


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
    importance: Annotated[str, _known(CRITERIA)] = Field(
        "obs", description="how channels are chosen: Optimal Brain Surgeon, or by a score"
    )
    repair: bool = Field(True, description="solve the remaining weights again; widths are chosen by the loss after it")
    images: Annotated[int, Field(ge=2)] = Field(300, description="training images that pruning uses")
    rounds: Positive = Field(1, description="pruning steps from the unpruned network to the budget, each scored again")
    round_epochs: Annotated[int, Field(ge=0)] = Field(1, description="epochs of fine-tuning between rounds")
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
        if not self.repair and self.importance == "obs":
            raise ValueError("importance 'obs' needs prune.repair=true: set that, or choose another importance")
        if not self.repair and self.latency is not None:
            raise ValueError("a latency budget needs prune.repair=true, which measures comparable losses")
        return self

    def budgets(self) -> tuple[Budget, ...]:
        """The budgets that were given; all must be met, and the first is spent. Default: half of the MACs."""
        texts = {kind: getattr(self, kind) for kind in BUDGETS}
        given = tuple(_parse_budget(kind, text) for kind, text in texts.items() if text is not None)
        return given or (Budget("macs", 0.5, None),)


class QuantizeConfig(Section):
    mode: Literal["ptq", "qat"] = Field("ptq", description="ptq: calibrate only; qat: also train with quantization")
    calibration_images: Positive = Field(300, description="number of calibration images, balanced over the classes")
    batch_size: Positive = Field(16, description="calibration batch")
    method: Annotated[str, _known(RANGES)] = Field("mse", description="how a tensor's range follows from its values")
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


class Config(Section):
    """The whole configuration: one section per stage."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    target: TargetConfig = TargetConfig()
    train: TrainConfig = TrainConfig()
    prune: PruneConfig = PruneConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    qat: QatConfig = QatConfig()

    @field_validator("*", mode="before")
    @classmethod
    def _is_table(cls, value: Any) -> Any:
        if not isinstance(value, Mapping | Section):
            raise ValueError("must be a table of keys")
        return value

    @property
    def name(self) -> str:
        """The prefix of exported files: ``resnet18`` in ``resnet18_int8.onnx``."""
        place, _, name = self.model.arch.rpartition(":")
        return self.run.name or (name.partition(".")[0] if place == "timm" else name.rpartition(".")[2])


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` (TOML; None means all defaults) and apply ``section.key=value`` overrides.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is out of range.
    """
    table: dict[str, Any] = {}
    where = "the command line"
    if path is not None:
        where = str(path)
        try:
            text = read_bytes(path, remedy=_GIVE, most=_MOST_BYTES, error=ConfigError).decode("utf-8-sig")
            if max(line.count(".") for line in f"{text}\n".splitlines()) > _MOST_DOTS:
                raise ValueError(f"a line has more than {_MOST_DOTS} dots")
            table = tomllib.loads(text)
        except ConfigError:
            raise
        except PipelineError as error:
            raise ConfigError(error.message, remedy=error.remedy) from None
        except (ValueError, RecursionError) as error:  # raised for too long numbers and for deep nesting too
            raise ConfigError(f"{path} is not valid TOML: {brief(error)}", remedy=_GIVE) from None
    _drop_budgets(table, overrides)
    _drop_target(table, overrides)
    for override in overrides:
        _override(table, override)
    _load_plugins(table)
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


def _load_plugins(table: Mapping[str, Any]) -> None:
    """Import the modules that ``run.plugins`` names, before the names that they add are looked up."""
    section = table.get("run")
    plugins = _listed(section.get("plugins")) if isinstance(section, dict) else None
    if isinstance(plugins, list) and all(isinstance(name, str) for name in plugins):
        load_plugins(plugins)


def _drop_budgets(table: dict[str, Any], overrides: Sequence[str]) -> None:
    """Drop the file's budgets if an override gives a budget of any kind."""
    section = table.get("prune")
    if isinstance(section, dict) and any(o.split("=")[0].strip().removeprefix("prune.") in BUDGETS for o in overrides):
        for kind in BUDGETS:
            section.pop(kind, None)


def _drop_target(table: dict[str, Any], overrides: Sequence[str]) -> None:
    """Drop the file's target, engine and device if an override gives a target or an engine."""
    section = table.get("target")
    if isinstance(section, dict) and {o.split("=")[0].strip() for o in overrides} & {"target.name", "target.engine"}:
        for key in ("name", "engine", "device"):
            section.pop(key, None)


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, name = (part.strip() for part in key.split("."))
    if not (equals and sections and all(sections) and name):
        raise ConfigError(
            f"--set {brief(override, 100)}: expected section.key=value", remedy="for example --set prune.macs=40%"
        )
    try:  # numbers, booleans and arrays read as TOML does; anything else is a string
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {brief(override, 100)}: '{section}' is a value in the config, not a section")
    if isinstance(value, int | float) and not isinstance(value, bool):
        known = _fields(sections).get(name)
        if known is not None and known.annotation in (str, str | None):
            value = text.strip()
    table[name] = value


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        key = ".".join(location)
        if problem["type"] == "extra_forbidden":
            known = list(_fields(location[:-1]))
            meant = [key for key in known if key == _MEANT.get(_plain(location[-1]))]
            close = meant or difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            lines.append(f"unknown key '{key}'; {hint}")
        else:
            what = brief(problem["msg"].removeprefix("Value error, "))
            lines.append(f"{key}: {what} (got {brief(repr(problem['input']), 100)})")
    return f"{where}: " + "; ".join(lines)


def _fields(path: Sequence[str]) -> Mapping[str, FieldInfo]:
    """The keys of a section, given the section's path; none if there is no such section."""
    fields: Mapping[str, FieldInfo] = Config.model_fields
    for name in path:
        fields = getattr(fields[name].annotation, "model_fields", {}) if name in fields else {}
    return fields


_GIVE = "give a TOML file such as `python -m compress config` prints"
_MOST_BYTES = 1 << 20
_MOST_DOTS = 1000  # per line: the parser's time grows with the square of the parts of a key
_SUFFIX = {"k": 1e3, "m": 1e6, "g": 1e9}


def _parse_budget(kind: BudgetKind, text: str) -> Budget:
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


def describe_config(config: Config) -> str:
    """The configuration as TOML, each key with its meaning: what ``python -m compress config`` prints."""
    return "\n\n".join(line for name in Config.model_fields for line in _describe(name, getattr(config, name)))


def _describe(name: str, section: Section) -> Iterator[str]:
    """A section, then the sections within it."""
    lines = [f"[{name}]"]
    inner = []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            inner.append((f"{name}.{key}", value))
        else:
            text = f"{key} = {_toml(value)}" if value is not None else f"# {key} ="
            allowed = f" ({', '.join(names)})" if (names := _choices(field)) else ""
            lines.append(f"{text:<44}  # {field.description}{allowed}")
    yield "\n".join(lines)
    for path, value in inner:
        yield from _describe(path, value)


def _choices(field: FieldInfo) -> list[str]:
    """The values that a key can have, where they are few; those of a list are the values of its items."""
    found: list[str] = []
    parts: list[Any] = [field.annotation, *field.metadata]
    while parts:
        part = parts.pop(0)
        if get_origin(part) is Literal:
            found += map(str, get_args(part))
        elif isinstance(known := getattr(part, "func", None), _Known):
            found += known.registry
        else:
            parts += get_args(part)
    return found


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case Mapping():
            return f"{{{', '.join(f'{k} = {_toml(v)}' for k, v in value.items())}}}"
        case _:
            return json.dumps(str(value))
