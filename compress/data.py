"""Open the images of a run, and find their preprocessing, from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from calibration.datasets import Data, listing, load_data
from calibration.digits import MEAN, SIZE, STD
from calibration.preprocess import Preprocess, Sides, both, fault_of
from calibration.sampler import calibration_sample
from calibration.scan import faults, files_of, read_known, stamps, to_bytes
from calibration.split import Split
from compress.config import DataConfig
from compress.errors import ConfigError, DataError
from compress.files import file_sha256, write_atomic
from compress.progress import SILENT, Progress
from compress.ranks import leads

# CIFAR networks are published with ImageNet's mean and std as often as with CIFAR's own.
_DEFAULTS = {
    "digits": Preprocess(size=SIZE, mean=MEAN, std=STD),
    "cifar10": Preprocess(size=32),
    "imagefolder": Preprocess(size=224, resize=256),
}


_KNOWN = ".images.npy"  # in the run's folder: the images that are known to be whole
_SHOWN = 3  # broken images that a message names


def open_data(data: DataConfig, seed: int, *, run: Path | None = None, progress: Progress = SILENT) -> Data:
    """The images that ``[data]`` names.

    Args:
        seed: the run's seed; it chooses the images that are held out.
        run: the run's folder: if it is given, every image is read once, and what is known to be whole is kept there.
            Without it, the images are read only if broken ones are to be left out (``data.skip_broken``).

    Raises:
        DataError: see ``load_data``; or an image is broken, and is not to be left out.
    """
    found = load_data(
        data.kind,
        train=data.train,
        eval=data.eval,
        calibration=data.calibration,
        labels=data.labels,
        classes=data.classes,
        download=data.download,
        holdout=data.holdout,
        seed=seed,
    )
    if run is None and not data.skip_broken:
        return found
    broken = broken_images(found, None if run is None else run / _KNOWN, progress)
    if not broken:
        return found
    named = "; ".join(f"{path}: {fault}" for path, fault in list(broken.items())[:_SHOWN])
    total = len(files_of(found.splits))
    what = f"{len(broken)} of {total} images cannot be read ({named}{'; ...' if len(broken) > _SHOWN else ''})"
    if not data.skip_broken:
        raise DataError(what, remedy="replace or remove them, or leave them out: data.skip_broken=true")
    progress.note(f"left out: {what}")
    return found.without(broken)


def broken_images(data: Data, known_file: Path | None = None, progress: Progress = SILENT) -> dict[Path, str]:
    """The images that cannot be read, and why; all images that are not known to be whole are read.

    Args:
        known_file: what is known, from an earlier call; it is brought up to date, also where this call is interrupted.
    """
    paths = files_of(data.splits)
    now = stamps(paths)
    known = np.empty(0, np.uint64) if known_file is None else read_known(known_file)
    unknown = np.flatnonzero(~np.isin(now, known))
    if not len(unknown):
        return {}
    broken: dict[Path, str] = {}
    whole = []
    asked = [paths[i] for i in unknown]
    try:
        for i, fault in zip(unknown, progress.track(faults(asked), "checking images", len(asked)), strict=True):
            if fault:
                broken[paths[i]] = fault
            else:
                whole.append(now[i])
    finally:
        if known_file is not None and whole and leads():
            with suppress(OSError):  # a disk that cannot be written costs the next run its time, no more
                write_atomic(known_file, to_bytes(np.union1d(known, np.array(whole, np.uint64))))
    return broken


class RunImages:
    """The images of a run for one stage, opened and checked once, when they are first needed.

    Args:
        run: the run's folder; see ``open_data``.
    """

    def __init__(self, data: DataConfig, seed: int, run: Path | None = None, progress: Progress = SILENT) -> None:
        self._config, self._seed, self._run, self._progress = data, seed, run, progress

    @cached_property
    def data(self) -> Data:
        """See ``open_data``."""
        return open_data(self._config, self._seed, run=self._run, progress=self._progress)

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
    settings = data.model_dump(exclude={"workers", "download", "skip_broken", "labels"})
    folders = {getattr(data, key) for key in ("train", "eval", "calibration")} - {None}
    table = {} if data.labels is None else {"labels": _content(data.labels)}
    return {**settings, **table, "listings": {str(folder): listing(folder) for folder in sorted(folders)}}


def _content(table: Path) -> str:
    try:
        return file_sha256(table)
    except OSError as error:
        raise DataError(f"cannot read data.labels={table}: {error.strerror}") from None


def preprocess_of(data: DataConfig, published: Mapping[str, Any] | None = None) -> Preprocess:
    """The preprocessing of ``data.kind``, with the values that ``[data]`` overrides.

    If a square ``input_size`` is given, resize scales with it in the default ratio (256 to 224 for image folders). An
    input that is not square takes the whole image, resized to it. A grey network without a mean and std of its own
    gets the average of the default over the three channels, one with alpha gets 0.5 for it.

    Args:
        published: the preprocessing that the architecture's weights were published with, by the keys of ``[data]``;
            it comes before the default of ``data.kind``.

    Raises:
        ConfigError: mean and std are impossible or have not one value per channel, or resize is below the input size.

    >>> from compress.config import load_config
    >>> preprocess_of(load_config(None, ["data.kind=imagefolder", "data.input_size=112"]).data).resize
    128
    """
    if published:
        data = _completed(data, published)
    default = _DEFAULTS[data.kind]
    size = _input_size(data) or default.size
    resize = _resize(size, default) if data.resize is None else data.resize
    if (isinstance(resize, int) and 0 < resize < max(both(size))) or (
        isinstance(resize, tuple) and any(have < want for have, want in zip(resize, both(size), strict=True))
    ):
        shown = size if isinstance(size, int) else list(size)
        raise ConfigError(
            f"data.resize={resize if isinstance(resize, int) else list(resize)} is smaller than the network's input of "
            f"{shown}",
            remedy=f"set data.resize to {shown} or more",
        )
    mean, std = (_per_channel(key, getattr(data, key), getattr(default, key), data) for key in ("mean", "std"))
    return Preprocess(
        size=size,
        resize=resize,
        mean=mean,
        std=std,
        channels=data.channels,
        interpolation=data.interpolation or default.interpolation,
        antialias=data.antialias,
        channel_order=data.channel_order,
    )


def _completed(data: DataConfig, published: Mapping[str, Any]) -> DataConfig:
    """``data`` with what is published for the keys that are not given."""
    given = {key: getattr(data, key) for key in data.model_fields_set}
    other = dict(published)
    if {"input_size", "crop"} & given.keys():  # the published resize goes with the published size
        other = {key: value for key, value in other.items() if key not in ("input_size", "resize")}
    if data.channels != other.get("channels", data.channels):
        other = {key: value for key, value in other.items() if key not in ("mean", "std")}
    return DataConfig.model_validate({**other, **given})


def _input_size(data: DataConfig) -> Sides | None:
    if data.crop is not None and data.input_size is not None and both(data.crop) != both(data.input_size):
        raise ConfigError(
            f"data.crop={data.crop} and data.input_size={data.input_size} are two names of the network's input, which "
            "is the centre crop",
            remedy="give one of them; the size before the crop is data.resize",
        )
    size = data.input_size if data.crop is None else data.crop
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


def _resize(size: Sides, default: Preprocess) -> Sides:
    """The resize that goes with an input size if none is given."""
    if size == default.size:
        return default.resize
    if isinstance(size, tuple):
        return size
    whole, crop = (max(both(side)) for side in (default.resize or default.size, default.size))
    return round(size * whole / crop)


def _per_channel(
    key: str, given: tuple[float, ...] | None, default: tuple[float, ...], data: DataConfig
) -> tuple[float, ...]:
    channels = data.channels
    if given is None:
        if channels == len(default) == 3:
            return default if data.channel_order == "rgb" else default[::-1]
        return (round(sum(default) / len(default), 4),) if channels == 1 else (*default[:3], 0.5)
    if len(given) == 1:
        given = given * channels
    if len(given) != channels:
        raise ConfigError(
            f"data.{key} has {len(given)} values, the input has {channels} channels",
            remedy=f"give {channels} values, or set data.channels to 1, 3 or 4",
        )
    if _is_of_bytes(key, given):
        raise ConfigError(
            f"data.{key}={list(given)} is for pixels of 0..255; here pixels are scaled to 0..1 first",
            remedy=f"divide by 255: {'; '.join(_scaled(data))}",
        )
    if fault := fault_of(key, given):
        raise ConfigError(f"data.{fault}", remedy=f"set data.{key} to what the network was trained with")
    return given


def _is_of_bytes(key: str, values: tuple[float, ...]) -> bool:
    """Whether these are a mean or a standard deviation of pixels in 0..255; in 0..1, both are at most 1."""
    return all(0 <= value <= 255 for value in values) and max(values) > 1


def _scaled(data: DataConfig) -> list[str]:
    """``mean`` and ``std`` in units of 0..1, as the configuration has them; those that already are stay out.

    A std of 1 beside a mean of 0..255 means that pixels of 0..255 are not divided further.
    """
    mean_of_bytes = data.mean is not None and _is_of_bytes("mean", data.mean)
    found = []
    for key, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and (_is_of_bytes(key, values) or (mean_of_bytes and min(values) >= 1)):
            found.append(f"data.{key} = [{', '.join(f'{value / 255:.4g}' for value in values)}]")
    return found
