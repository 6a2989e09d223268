"""Names and values of the training sections: what is accepted, and what is refused before any stage begins."""

import pytest
from PIL import Image
from torch import nn

from calibration.preprocess import Preprocess
from calibration.transforms import train_transform
from compress.config import TrainConfig, describe_config, load_config
from compress.errors import ConfigError
from compress.train.optimizer import make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.optimizer=adam", "optimizer", "adam"),
        ("train.optimizer=AdamW", "optimizer", "adamw"),
        ("train.optimizer=SGD", "optimizer", "sgd"),
        ("train.schedule=cyclic", "schedule", "cyclical"),
        ("train.schedule=CyclicLR", "schedule", "cyclical"),
        ("train.schedule=one_cycle", "schedule", "onecycle"),
        ("train.schedule=OneCycleLR", "schedule", "onecycle"),
        ("train.schedule=CosineAnnealingLR", "schedule", "cosine"),
    ],
)
def test_names_are_accepted_as_people_write_them(override: str, key: str, value: str) -> None:
    assert getattr(load_config(None, [override]).train, key) == value


@pytest.mark.parametrize("name", ["multistep", "MultiStepLR", "step", "StepLR"])
def test_a_step_schedule_has_a_period_or_milestones(name: str) -> None:
    assert load_config(None, [f"train.schedule={name}", "train.step_size=30"]).train.schedule == "step"
    assert load_config(None, [f"train.schedule={name}", "train.step_epochs=10"]).train.step_epochs == (10,)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.schedule=step"], r"finetune: schedule 'step' needs step_size .* or step_epochs"),
        (["train.schedule=step", "train.step_size=3", "train.step_epochs=[2]"], "step_size or step_epochs, not both"),
        (["train.schedule=step", "train.step_epochs=[1]", "train.warmup=2"], "begins within warmup=2 epochs"),
        (["train.schedule=onecycle", "train.warmup=1"], "'onecycle' rises by itself: leave warmup at 0"),
        (["train.schedule=cyclical", "train.warmup=1"], "'cyclical' rises by itself: leave warmup at 0"),
        (["finetune.warmup=5"], "warmup=5 epochs is not shorter than the training of 5"),
        (["qat.schedule=cyclical", "qat.cycle_epochs=3"], "cycle_epochs=3 is longer than the training of 2 epochs"),
        (["train.schedule=linear"], "'sgd', 'adam'|'cosine', 'step', 'cyclical', 'onecycle' or 'constant'"),
        (["train.RandomResizedCrop=0.08"], "unknown key 'train.RandomResizedCrop'; did you mean 'resized_crop'"),
        (["train.learning_rate=0.1"], "did you mean 'lr'"),
        (["train.milestones=[3]"], "did you mean 'step_epochs'"),
        (["train.steps=RandomResizedCrop"], "this is not a step on batches: set resized_crop"),
        (["train.resized_crop=1.5"], "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_read(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, overrides)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("prune.keep=layer4.*", ("layer4.*",)),
        ("prune.keep=layer4.*,layer3.0", ("layer4.*", "layer3.0")),
        ("prune.keep=[layer4.*, 'layer3.0']", ("layer4.*", "layer3.0")),
        ("prune.keep=['layer4.*']", ("layer4.*",)),
        ("prune.keep=", ()),
    ],
)
def test_one_name_is_a_list_of_one(override: str, value: tuple[str, ...]) -> None:
    assert load_config(None, [override]).prune.keep == value


def test_the_printed_configuration_lists_the_allowed_values() -> None:
    lines = {line.partition(" =")[0].lstrip("# "): line for line in describe_config(load_config(None)).splitlines()}
    assert lines["optimizer"].endswith("(sgd, adam, adamw)")
    assert lines["schedule"].endswith("(cosine, step, cyclical, onecycle, constant)")
    assert lines["importance"].endswith("(obs, taylor, norm, random)")
    assert lines["mode"].endswith("(ptq, qat)")
    assert lines["steps"].endswith("(mixup, cutmix)")


def rates(epochs: int = 4, steps: int = 10, **settings: object) -> list[float]:
    config = TrainConfig.model_validate({"lr": 1.0, **settings})
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    schedule = make_schedule(optimizer, config, epochs, steps)
    found = []
    for _ in range(epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_cyclical_rates_are_triangles(optimizer: str) -> None:
    two = rates(schedule="cyclical", optimizer=optimizer)  # by default two cycles
    assert two[:20] == pytest.approx(two[20:])
    assert max(two) == two[10] == pytest.approx(1.0)
    assert two[0] == pytest.approx(0.25)  # Smith's rule: a quarter of the peak
    assert two[1] - two[0] == pytest.approx(two[5] - two[4])
    four = rates(schedule="cyclical", cycle_epochs=1.0, optimizer=optimizer)
    assert [i for i, rate in enumerate(four) if rate == pytest.approx(1.0)] == [5, 15, 25, 35]


def test_a_step_every_few_epochs() -> None:
    assert rates(schedule="step", step_size=2) == pytest.approx([1.0] * 20 + [0.1] * 20)
    assert rates(schedule="step", step_size=2) == pytest.approx(rates(schedule="step", step_epochs=(2,)))
    warm = rates(schedule="step", step_size=2, warmup=1.0)
    assert warm[19:21] == pytest.approx([1.0, 0.1])  # counted from the beginning of the training


def test_a_random_resized_crop() -> None:
    preprocess = Preprocess(size=16, resize=20, mean=(0.5,) * 3, std=(0.5,) * 3)
    half = Image.new("RGB", (40, 20), "white")
    half.paste("black", (0, 0, 20, 20))
    cropped = train_transform(preprocess, crop=0.125, flip=False, jitter=0.0, resized_crop=0.08)
    seen = [cropped(half) for _ in range(40)]
    assert {tuple(x.shape) for x in seen} == {(3, 16, 16)}
    assert any((x < 0).all() for x in seen)  # small crops of the black half, which a centre crop always straddles
    assert any((x > 0).all() for x in seen)
