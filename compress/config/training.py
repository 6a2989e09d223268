"""The training sections: baseline, fine-tuning after pruning, and quantization-aware training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from compress.config.section import Fraction, Positive, Section, also_called, known, plain
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
}


def _is_step(name: Any) -> Any:
    if isinstance(name, str) and (key := MEANT.get(plain(name))):
        raise ValueError(f"this is not a step on batches: set {key}")
    return name


class TrainConfig(Section):
    """Settings of the training loop; baseline, fine-tuning and QAT each have their own section."""

    epochs: Annotated[int, Field(ge=0)] | None = Field(None, description="passes over the training images")
    batch_size: Positive = Field(64, description="images a step")
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], also_called({})] = Field(
        "sgd", description="optimizer; sgd with momentum"
    )
    lr: Annotated[float, Field(gt=0)] = Field(0.05, description="peak learning rate")
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
    steps: tuple[Annotated[str, known(STEPS), BeforeValidator(_is_step)], ...] = Field(
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
