"""The training sections: baseline, fine-tuning after pruning, and quantization-aware training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from compress.config.recipes import Recipe, filled
from compress.config.section import Fraction, Positive, Section, also_called, known, plain, sides
from compress.errors import ConfigError
from compress.registries import STEPS

# Keys of the training sections by the names that other tools have for them.
MEANT = {
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
    "autoaugment": "augment",
    "randaugment": "augment",
    "trivialaugment": "augment",
    "trivialaugmentwide": "augment",
    "randomerasing": "erasing",
    "modelema": "ema",
    "gradaccumsteps": "accumulate",
    "accumulategradbatches": "accumulate",
    "earlystopping": "patience",
}


_MOST_RELATIVE = 0.05


def _is_step(name: Any) -> Any:
    if isinstance(name, str) and (key := MEANT.get(plain(name))):
        raise ValueError(f"this is not a step on batches: set {key}")
    return name


class TrainConfig(Section):
    """Settings of the training loop; baseline, fine-tuning and QAT each have their own section."""

    section: ClassVar[str] = "train"

    recipe: Recipe | None = Field(None, description="settings by name; each key that is given beside it goes before it")
    epochs: Annotated[int, Field(ge=0)] | None = Field(None, description="passes over the training images")
    steps_per_epoch: Positive | None = Field(
        None, description="steps that make an epoch; default: one pass over the images"
    )
    patience: Positive | None = Field(
        None, description="stop after so many epochs that brought no gain on held-out images; default: never"
    )
    batch_size: Positive = Field(64, description="images in a batch")
    accumulate: Positive = Field(
        1, description="batches whose gradients make one step, as one batch of so many times the size would"
    )
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], also_called({})] = Field(
        "sgd", description="optimizer; sgd with momentum"
    )
    lr: Annotated[float, Field(gt=0)] = Field(0.05, description="peak learning rate")
    relative_lr: bool = Field(
        False, description="the rate is a share of the size of each tensor's values (with adam and adamw, often 0.003)"
    )
    momentum: Fraction = Field(0.9, description="SGD momentum (Nesterov)")
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="on weights; not on BN and biases")
    schedule: Annotated[
        Literal["cosine", "step", "cyclical", "onecycle", "constant"],
        also_called({"cosineannealing": "cosine", "multistep": "step", "cyclic": "cyclical"}),
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
    augment: Annotated[
        Literal["none", "randaugment", "trivialaugment"], also_called({"trivialaugmentwide": "trivialaugment"})
    ] = Field("none", description="torchvision's random changes of colour and shape")
    erasing: Fraction = Field(0.0, description="share of the images in which a random rectangle is erased")
    size: Annotated[int | tuple[int, int], sides(1)] | None = Field(
        None, description="input size in training, in pixels, often below data.input_size; default: the same"
    )
    steps: tuple[Annotated[str, known(STEPS), BeforeValidator(_is_step)], ...] = Field(
        (), description="what is done to each batch before the forward pass, in this order"
    )
    label_smoothing: Fraction = Field(0.0, description="label smoothing of the cross-entropy")
    distill: Fraction = Field(0.0, description="weight of distillation from the unpruned net (KL); 1 - this on labels")
    temperature: Annotated[float, Field(gt=0)] = Field(4.0, description="distillation temperature")
    clip_norm: Annotated[float, Field(ge=0)] = Field(5.0, description="clip the gradient norm to this; 0: no clipping")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="decay of an average of the weights over the steps, which is then kept; often 0.999; 0: none"
    )
    amp: bool = Field(True, description="mixed precision, on a GPU and on a CPU with AVX512-BF16 or AMX")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, values: Any) -> Any:
        """Take what the recipe says for the keys that are not given."""
        return filled(cls.section, values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _schedulable(self) -> TrainConfig:
        """Refuse a schedule that cannot work before any stage begins."""
        if self.relative_lr and self.lr > _MOST_RELATIVE:
            raise ValueError(
                f"with relative_lr, lr={self.lr:g} changes a weight by that share of it at every step: leave lr unset, "
                f"or give at most {_MOST_RELATIVE:g}"
            )
        if self.relative_lr and self.optimizer == "sgd":
            raise ValueError("relative_lr = true goes with optimizer = 'adam' or 'adamw', whose steps are of one size")
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


class TaughtConfig(TrainConfig):
    """Settings of a training that has a teacher."""

    labels: bool = Field(
        True, description="false: learn the teacher's features instead, from images that need no labels"
    )

    @model_validator(mode="after")
    def _has_a_teacher(self) -> TaughtConfig:
        if not self.labels and self.distill == 0:
            raise ValueError("labels = false learns from a teacher: leave distill above 0")
        if not self.labels and self.recipe not in (None, "mimic"):
            raise ValueError(f"recipe '{self.recipe}' learns from labels: with labels = false set recipe = 'mimic'")
        return self

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, values: Any) -> Any:
        """Take what the recipe says for the keys that are not given; without labels that is ``mimic``."""
        if not isinstance(values, Mapping):
            return values
        without = str(values.get("labels")).lower() == "false" and values.get("recipe") is None
        return filled(cls.section, {**values, "recipe": "mimic"} if without else values)

    def without_labels(self) -> TaughtConfig:
        """The settings where there is nothing but the teacher to learn from: the recipe ``mimic``, and what is given.

        Raises:
            ConfigError: a recipe that needs labels is asked for, or what is given does not go with ``mimic``.

        >>> FinetuneConfig(batch_size=16).without_labels().optimizer
        'adam'
        """
        if not self.labels:
            return self
        if self.recipe is not None and self.recipe != "mimic":
            raise ConfigError(
                f"{self.section}.recipe={self.recipe} learns from labels, and there are none",
                remedy=f"set {self.section}.recipe=mimic, or leave it unset",
            )
        given = {key: getattr(self, key) for key in self.model_fields_set - {"labels"}}
        try:
            return type(self).model_validate({**given, "labels": False})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(
                f"[{self.section}] for training without labels: {reason}",
                remedy=f"give the keys that the recipe needs, see `config --set {self.section}.recipe=mimic`",
            ) from None

    def record(self) -> dict[str, Any]:
        """All that a training depends on: also what the keys that are not given become without labels."""
        found = self.model_dump(mode="json")
        with suppress(ConfigError):
            found["without_labels"] = self.without_labels().model_dump(mode="json")
        return found


class FinetuneConfig(TaughtConfig):
    section: ClassVar[str] = "finetune"

    epochs: Annotated[int, Field(ge=0)] | None = Field(5, description="passes over the training images")
    lr: Annotated[float, Field(gt=0)] = Field(0.02, description="peak learning rate")
    distill: Fraction = Field(
        0.5,
        description="weight of distillation from the unpruned net (KL); 1 - this on labels; without labels: above 0",
    )


class QatConfig(TaughtConfig):
    section: ClassVar[str] = "qat"

    epochs: Annotated[int, Field(ge=0)] | None = Field(2, description="passes over the training images")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="peak learning rate")
    distill: Fraction = Field(0.5, description="weight of distillation from the unquantized net (KL)")
    scales: Literal["frozen", "learned"] = Field("learned", description="whether QAT trains the scales too")
