"""Names and values of the training sections: what is accepted, and what is refused before any stage begins."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from calibration.preprocess import LARGEST, Preprocess
from calibration.transforms import at_size, train_transform
from compress.config import TrainConfig, describe_config, load_config
from compress.errors import ConfigError, DataError
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
        (["train.recipe=mimic"], "recipe 'mimic' learns from the unpruned network"),
        (["train.recipe=torchvision"], "'torchvision-v2', 'transfer', 'mimic' or 'none'"),
        (
            ["finetune.labels=false", "finetune.distill=0"],
            "labels = false learns from a teacher: leave distill above 0",
        ),
        (["train.labels=false"], "unknown key 'train.labels'"),
        (["train.TrivialAugmentWide=true"], "did you mean 'augment'"),
        (["train.accumulate_grad_batches=2"], "did you mean 'accumulate'"),
        (["train.ema=1"], "less than 1"),
        (["finetune.labels=false", "finetune.recipe=transfer"], "recipe 'transfer' learns from labels"),
        (["finetune.recipe=mimic", "finetune.lr=0.1"], "changes a weight by that share of it at every step"),
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
    assert lines["steps"].endswith("(mixup, cutmix, mixup_or_cutmix)")
    assert lines["augment"].endswith("(none, randaugment, trivialaugment)")


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


def test_a_recipe_fills_in_what_is_not_given() -> None:
    config = load_config(None, ["train.recipe=torchvision-v2", "train.epochs=90", "finetune.recipe=none"])
    assert (config.train.epochs, config.train.augment, config.train.steps) == (
        90,
        "trivialaugment",
        ("mixup_or_cutmix",),
    )
    assert (config.finetune.flip, config.finetune.crop, config.finetune.lr) == (False, 0.0, 0.02)
    mimic = load_config(None, ["finetune.recipe=mimic"]).finetune
    assert (mimic.labels, mimic.optimizer, mimic.steps_per_epoch) == (False, "adam", 25)
    assert load_config(None, ["finetune.recipe=mimic", "finetune.labels=true"]).finetune.labels


def test_labels_that_are_false_are_the_recipe_mimic() -> None:
    said, chosen = (load_config(None, [f"finetune.{key}"]).finetune for key in ("labels=false", "recipe=mimic"))
    assert said == chosen
    flat = load_config(None, ["finetune.batch_size=16"]).finetune.without_labels()
    assert flat == load_config(None, ["finetune.recipe=mimic", "finetune.batch_size=16"]).finetune
    assert chosen.without_labels() is chosen


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.recipe=transfer"], "recipe=transfer learns from labels, and there are none"),
        (["finetune.lr=0.5"], r"\[finetune\] for training without labels: with relative_lr, lr=0.5"),
    ],
)
def test_what_does_not_go_without_labels_is_told(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides).finetune.without_labels()


@pytest.mark.parametrize("key", ["optimizer=sgd", "schedule=onecycle", "epochs=1", "lr=0.002"])
def test_keys_that_are_given_stay_without_labels(key: str) -> None:
    given = load_config(None, [f"finetune.{key}"]).finetune
    name = key.partition("=")[0]
    assert getattr(given.without_labels(), name) == getattr(given, name)


def test_the_record_tells_a_given_default_from_one_that_the_recipe_would_fill() -> None:
    silent, given = (load_config(None, keys).finetune for keys in ([], ["finetune.batch_size=64"]))
    assert silent.model_dump() == given.model_dump()
    assert silent.record() != given.record()


def test_a_recipe_on_the_command_line_goes_before_the_files_rate_and_not_before_its_flips(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[finetune]\nlr = 0.02\nepochs = 30\nflip = false\nclip_norm = 1.0\n")
    found = load_config(file, ["finetune.recipe=mimic", "finetune.epochs=7"]).finetune
    assert (found.lr, found.epochs, found.flip, found.clip_norm) == (0.003, 7, False, 1.0)
    assert load_config(file, ["qat.recipe=mimic"]).finetune.epochs == 30


@pytest.mark.parametrize("override", ["train.recipe=[1]", "train.batch_size=inf", "train.epochs=many"])
def test_a_recipe_beside_values_that_are_none(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, ["train.recipe=transfer", override] if "recipe" not in override else [override])


def test_names_in_other_spellings_count_for_a_recipe_too() -> None:
    assert load_config(None, ["train.recipe=transfer", "train.schedule=OneCycleLR"]).train.warmup == 0
    config = load_config(None, ["train.recipe=transfer", "train.optimizer=SGD", "train.batch_size=128"])
    assert config.train.lr == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("overrides", "warmup"),
    [([], 2.0), (["finetune.epochs=2"], 0.5), (["finetune.warmup=1"], 1.0), (["finetune.schedule=onecycle"], 0.0)],
)
def test_the_warm_up_of_a_recipe_fits_into_the_training(overrides: list[str], warmup: float) -> None:
    assert load_config(None, ["finetune.recipe=mimic", *overrides]).finetune.warmup == warmup


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        ([], 0.5),
        (["train.batch_size=256"], 0.125),
        (["train.batch_size=256", "train.accumulate=4"], 0.5),
        (["train.batch_size=256", "train.lr=0.3"], 0.3),
        (["train.batch_size=256", "train.optimizer=adamw"], 0.5),
    ],
)
def test_the_rate_of_a_recipe_goes_with_the_batch(overrides: list[str], rate: float) -> None:
    assert load_config(None, ["train.recipe=torchvision-v2", *overrides]).train.lr == pytest.approx(rate)


@pytest.mark.parametrize("augment", ["randaugment", "trivialaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_and_shapes_change_and_rectangles_are_erased(augment: Literal["randaugment"], channels: int) -> None:
    values = (0.5,) * channels
    preprocess = Preprocess(size=16, resize=20, mean=values, std=values, channels=channels)
    half = Image.new("RGB", (40, 20), "white")
    half.paste("red", (0, 0, 20, 20))
    changed = train_transform(preprocess, crop=0.0, flip=False, jitter=0.0, augment=augment, erasing=0.5)
    plain = train_transform(preprocess, crop=0.0, flip=False, jitter=0.0)
    seen = [changed(half) for _ in range(40)]
    assert {tuple(x.shape) for x in seen} == {(channels, 16, 16)}
    assert sum(not x.equal(plain(half)) for x in seen) > 20
    alpha = Preprocess(size=16, mean=(0.5,) * 4, std=(0.5,) * 4, channels=4)
    with pytest.raises(DataError, match=r"augment='randaugment' changes colours, and .* 4 channels"):
        train_transform(alpha, crop=0.0, flip=False, jitter=0.0, augment="randaugment")


@given(size=st.integers(1, 512), resize=st.integers(0, 512), to=st.integers(1, 600))
def test_another_training_size_keeps_the_share_of_the_crop(size: int, resize: int, to: int) -> None:
    preprocess = Preprocess(size=size, resize=max(size, resize) if resize else 0)
    other = at_size(preprocess, to)
    assert other.size == to
    if not preprocess.resize:
        assert other.resize == (to if to != size else 0)
    else:
        assert other.resize >= to
        assert other.resize == pytest.approx(min(LARGEST, preprocess.resize * to / size), abs=1)
    assert at_size(preprocess, None) is preprocess
