"""Open the images of a run, and find their preprocessing, from the configuration."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from calibration.datasets import Data, listing, load_data
from calibration.digits import MEAN, SIZE, STD
from calibration.preprocess import Preprocess, fault_of
from calibration.sampler import calibration_sample
from calibration.split import Split
from compress.config import DataConfig
from compress.errors import ConfigError, DataError
from compress.progress import Progress

# CIFAR networks are published with ImageNet's mean and std as often as with CIFAR's own.
_DEFAULTS = {
    "digits": Preprocess(size=SIZE, mean=MEAN, std=STD),
    "cifar10": Preprocess(size=32),
    "imagefolder": Preprocess(size=224, resize=256),
}


def open_data(data: DataConfig, seed: int) -> Data:
    """The images that ``[data]`` names.

    Args:
        seed: the run's seed; it chooses the images that are held out.

    Raises:
        DataError: see ``load_data``.
    """
    return load_data(
        data.kind,
        train=data.train,
        eval=data.eval,
        calibration=data.calibration,
        download=data.download,
        holdout=data.holdout,
        seed=seed,
    )


class RunImages:
    """The images of a run for one stage, opened once, when they are first needed."""

    def __init__(self, data: DataConfig, seed: int) -> None:
        self._config, self._seed = data, seed

    @cached_property
    def data(self) -> Data:
        """See ``open_data``."""
        return open_data(self._config, self._seed)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What a stage's output depends on: ``[data]`` without how images are read, and its folders' contents."""
        return data_settings(self._config)

    def sample(self, wanted: int, progress: Progress) -> Split:
        """Up to ``wanted`` calibration images: seeded, class-balanced, none of them in the evaluation split.

        Raises:
            DataError: there are no images to calibrate on.
        """
        data = self.data
        if data.calibration is None:
            raise DataError("there are no images to calibrate on", remedy="set data.calibration or data.train")
        count = min(wanted, len(data.calibration))
        if count < wanted:
            progress.note(f"  using all {count} calibration images; {wanted} were asked for")
        chosen = calibration_sample(data.calibration, count, seed=self._seed, exclude=data.eval)
        return data.calibration.subset(chosen, "calibration")


def data_settings(data: DataConfig) -> dict[str, Any]:
    """What a stage's output depends on: ``[data]`` without how images are read, and its folders' contents."""
    settings = data.model_dump(mode="json", exclude={"workers", "download"})
    folders = {getattr(data, key) for key in ("train", "eval", "calibration")} - {None}
    return {**settings, "listings": {str(folder): listing(folder) for folder in sorted(folders)}}


def preprocess_of(data: DataConfig) -> Preprocess:
    """The preprocessing of ``data.kind``, with the values that ``[data]`` overrides.

    If ``input_size`` is given, resize scales with it in the default ratio (256 to 224 for image folders). A grey
    network without a mean and std of its own gets the average of the default over the three channels.

    Raises:
        ConfigError: mean and std are impossible or have not one value per channel, or resize is below the input size.

    >>> from compress.config import load_config
    >>> preprocess_of(load_config(None, ["data.kind=imagefolder", "data.input_size=112"]).data).resize
    128
    """
    default = _DEFAULTS[data.kind]
    size = data.input_size or default.size
    if data.resize is not None:
        resize = data.resize
    elif size == default.size:
        resize = default.resize
    else:
        resize = round(size * (default.resize or default.size) / default.size)
    if 0 < resize < size:
        raise ConfigError(
            f"data.resize={resize} is smaller than the network's input of {size}",
            remedy=f"set data.resize to {size} or more",
        )
    return Preprocess(
        size=size,
        resize=resize,
        mean=_per_channel("mean", data.mean, default.mean, data.channels),
        std=_per_channel("std", data.std, default.std, data.channels),
        channels=data.channels,
    )


def _per_channel(
    key: str, given: tuple[float, ...] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    if given is None:
        return default if len(default) == channels else (round(sum(default) / len(default), 4),) * channels
    if len(given) != channels:
        raise ConfigError(
            f"data.{key} has {len(given)} values, the input has {channels} channels",
            remedy=f"give {channels} values, or set data.channels to 1 or 3",
        )
    if fault := fault_of(key, given):
        raise ConfigError(f"data.{fault}", remedy=f"set data.{key} to what the network was trained with")
    return given
