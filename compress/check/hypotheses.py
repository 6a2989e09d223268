"""What a network may expect in place of the preprocessing that is configured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from calibration.preprocess import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocess, Sides, both

_SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 288)
_MOST_PIXELS = 1.7  # of a larger input than the configured one, as a multiple: more takes too long
_INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic")
_SHARES = (1.0, 0.95, 224 / 232, 0.875)  # of the shorter side that the crop takes, in published evaluations


@dataclass(frozen=True)
class Hypothesis:
    """A preprocessing that may be the right one.

    Attributes:
        changes: what is other than configured, in words; empty for the configuration.
    """

    preprocess: Preprocess
    changes: tuple[str, ...] = ()

    def and_also(self, change: str, preprocess: Preprocess) -> Hypothesis:
        return Hypothesis(preprocess, (*self.changes, change))


def value_hypotheses(base: Preprocess, mean: tuple[float, ...], std: tuple[float, ...]) -> Iterator[Hypothesis]:
    """Other ways to scale the pixels, and the other order of the colours.

    Args:
        mean, std: of the pixels of the images themselves, per channel (RGB), in 0..1.
    """
    channels, seen = base.channels, {base}
    colour = channels == 3
    scales: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
        "pixels in 0..1, without mean and std": ((0.0,) * channels, (1.0,) * channels),
        "pixels in 0..255": ((0.0,) * channels, (round(1 / 255, 6),) * channels),
        "pixels in -1..1": ((0.5,) * channels, (0.5,) * channels),
        "mean and std of these images": (mean, std),
    }
    if colour:
        scales["ImageNet's mean and std"] = (IMAGENET_MEAN, IMAGENET_STD)
        scales["pixels in 0..255 minus ImageNet's mean"] = (IMAGENET_MEAN, (round(1 / 255, 6),) * 3)
    start = [Hypothesis(base)]
    if colour:
        start.append(Hypothesis(base).and_also(*_other_order(base)))
    for order in start:
        if order.changes:
            seen.add(order.preprocess)
            yield order
        swapped = order.preprocess.channel_order == "bgr"
        for name, (new_mean, new_std) in scales.items():
            preprocess = replace(
                order.preprocess,
                mean=new_mean[::-1] if swapped else new_mean,
                std=new_std[::-1] if swapped else new_std,
            )
            if preprocess not in seen:
                seen.add(preprocess)
                yield order.and_also(name, preprocess)


def _other_order(base: Preprocess) -> tuple[str, Preprocess]:
    other = "rgb" if base.channel_order == "bgr" else "bgr"
    swapped = replace(base, channel_order="rgb" if other == "rgb" else "bgr", mean=base.mean[::-1], std=base.std[::-1])
    return f"{other.upper()} in place of {base.channel_order.upper()}", swapped


def geometry_hypotheses(start: Hypothesis, *, resizable: bool) -> Iterator[Hypothesis]:
    """Other sizes before and after the crop, and other interpolations.

    Args:
        resizable: the network takes inputs of any size.
    """
    base, seen = start.preprocess, {start.preprocess}
    height, width = base.sides
    side = max(base.sides)
    found = [(f"resize to {round(side / share)}", replace(base, resize=round(side / share))) for share in _SHARES]
    found.append((f"resize to exactly {[height, width]}", replace(base, resize=(height, width))))
    found += [
        (f"{name} interpolation", replace(base, interpolation=name, resize=base.resize or side))
        for name in _INTERPOLATIONS
    ]
    found.append(("resize without antialias", replace(base, antialias=not base.antialias, resize=base.resize or side)))
    if resizable and height == width:
        found += [
            (f"an input of {size} pixels", replace(base, size=size, resize=_scaled(base.resize, side, size)))
            for size in _SIZES
            if size != side and size * size <= _MOST_PIXELS * side * side
        ]
    for name, preprocess in found:
        if preprocess not in seen:
            seen.add(preprocess)
            yield start.and_also(name, preprocess)


def _scaled(resize: Sides, side: int, size: int) -> Sides:
    if resize == 0:
        return size
    scaled = [max(size, round(part * size / side)) for part in both(resize)]
    return scaled[0] if isinstance(resize, int) else (scaled[0], scaled[1])


def keys_of(wanted: Preprocess, base: Preprocess) -> dict[str, object]:
    """The keys of ``[data]`` that make ``wanted`` of ``base``.

    >>> keys_of(Preprocess(224, channel_order="bgr"), Preprocess(224))
    {'channel_order': 'bgr'}
    """
    names = {"size": "input_size"}
    old, new = base.to_json(), wanted.to_json()
    return {names.get(key, key): value for key, value in new.items() if value != old[key]}
