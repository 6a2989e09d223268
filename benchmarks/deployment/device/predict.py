#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run the engine file of this folder on images. Needs only what requirements.txt names, and Python 3.9 or later.

python predict.py IMAGE...     what the engine finds in each image
python predict.py --check      compare the answers to the images in samples/ with those in expected.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

RUNS = 10  # that the latency is the median of, after one more
MOST_VALUES = 4096  # of one output that are compared


class Network:
    """The engine file of a folder, with what its input and its outputs mean."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.engine, self.how, self.classes = (load(folder / f"{name}.json") for name in FILES)
        self.batch, self.threads = self.engine["batch"], threads or self.engine["threads"]
        self.runtime = RUNTIMES[self.engine["runtime"]](folder / self.engine["file"], self.threads)

    def input(self, image: Image.Image) -> np.ndarray:
        """The network's input (batch, channels, height, width) for an image."""
        return np.repeat(preprocess(image, self.how)[None], self.batch, axis=0)

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for one image, by name."""
        return {name: np.atleast_1d(array)[0] for name, array in self.runtime.run(x).items()}

    def answer(self, outputs: Mapping[str, np.ndarray], top: int) -> list[dict[str, Any]]:
        """What the outputs mean; see ``meaning``."""
        return meaning(outputs, self.classes, self.engine["returns"], top)


FILES = ("engine", "preprocess", "classes")


class OnnxRuntime:
    """An .onnx file."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads leave the processor alone
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.version = f"ONNX Runtime {onnxruntime.__version__}"

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, {self.session.get_inputs()[0].name: x})))  # noqa: B905


class OpenVino:
    """An .xml file with its .bin."""

    def __init__(self, path: Path, threads: int) -> None:
        os.environ.setdefault("CI", "true")  # otherwise the import sends telemetry
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        }
        self.model = openvino.Core().compile_model(str(path), "CPU", settings)
        self.version = f"OpenVINO {openvino.__version__}"

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        found = self.model(x)
        return {port.get_any_name(): found[port] for port in self.model.outputs}


RUNTIMES: dict[str, Any] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def decode(path: Path) -> Image.Image:
    """Read one image, upright, as 8-bit RGB, or RGBA if it has alpha; white is 65535 in 16 bits, and 1 in float."""
    with Image.open(path) as image:
        return in_8_bit(ImageOps.exif_transpose(image), image.format)


def in_8_bit(image: Image.Image, format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and format in ("PNG", "PPM")):
        return from_grey(np.asarray(image) / 257)
    if image.mode == "F":
        return from_grey(np.asarray(image) * 255)
    if image.mode == "I":
        raise ValueError("its pixels are 32-bit whole numbers, whose range is not known")
    alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    return image.convert("RGBA" if alpha else "RGB")


def from_grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8)).convert("RGB")


def preprocess(image: Image.Image, how: Mapping[str, Any]) -> np.ndarray:
    """The network's input (channels, height, width), float32, for an image; ``how`` is preprocess.json."""
    image = image.convert("RGBA" if how["channels"] == 4 else "RGB")
    by_pillow = how["antialias"] or how["resize"] is None
    if how["resize"] is not None:
        size = new_size(image.width, image.height, how["resize"])
        image = resized(image, size, how["interpolation"], by_pillow)
    if image.width < how["width"] or image.height < how["height"]:
        raise ValueError(f"the image is smaller than the network's input of {how['width']}x{how['height']}")
    left, top = round((image.width - how["width"]) / 2), round((image.height - how["height"]) / 2)
    image = image.crop((left, top, left + how["width"], top + how["height"]))
    pixels = grey(image, by_pillow) if how["channels"] == 1 else np.asarray(image)
    if how["channel_order"] == "bgr":
        pixels = np.concatenate([pixels[..., 2::-1], pixels[..., 3:]], axis=-1)
    mean, std = (np.array(how[name], np.float32)[:, None, None] for name in ("mean", "std"))
    scaled = pixels.transpose(2, 0, 1).astype(np.float32) * np.float32(1 / 255)
    prepared: np.ndarray = np.ascontiguousarray((scaled - mean) / std)
    return prepared


def new_size(width: int, height: int, resize: Mapping[str, int]) -> tuple[int, int]:
    """(width, height) after the resize: exact, or the longer side in proportion, without its fraction."""
    if "shorter_side" not in resize:
        return resize["width"], resize["height"]
    side = resize["shorter_side"]
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def resized(image: Image.Image, size: tuple[int, int], interpolation: str, by_pillow: bool) -> Image.Image:
    """Resize as torchvision does: an image by Pillow; without antialias a tensor, between its neighbouring pixels."""
    if by_pillow:
        return image.resize(size, Image.Resampling[interpolation.upper()])
    pixels = np.asarray(image)
    for axis, wanted in ((1, size[0]), (0, size[1])):  # first the rows, then the columns
        if wanted != pixels.shape[axis]:
            shares = neighbours(pixels.shape[axis], wanted, interpolation)
            sums = np.moveaxis(np.tensordot(shares, pixels, axes=(1, axis)), 0, axis)
            pixels = np.clip(np.floor(sums + 0.5), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def neighbours(length: int, wanted: int, interpolation: str) -> np.ndarray:
    """The share (wanted, length) of each old pixel in each new one; beyond the edge the last pixel is repeated."""
    rows, shares = np.arange(wanted), np.zeros((wanted, length))
    if interpolation == "nearest":
        shares[rows, np.minimum(rows.astype(np.float32) * np.float32(length / wanted), length - 1).astype(int)] = 1
        return shares
    centre = (rows + 0.5) * length / wanted - 0.5
    if interpolation == "bilinear":
        centre = np.maximum(centre, 0)
    for step in (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2):
        pixel = np.floor(centre).astype(int) + step
        far = np.abs(pixel - centre)
        near = ((1.25 * far - 2.25) * far * far + 1, ((-0.75 * far + 3.75) * far - 6) * far + 3)  # Keys, a = -0.75
        share = np.maximum(1 - far, 0) if interpolation == "bilinear" else np.where(far < 1, *near)
        np.add.at(shares, (rows, np.clip(pixel, 0, length - 1)), share)
    return shares


def grey(image: Image.Image, by_pillow: bool) -> np.ndarray:
    """The brightness (height, width, 1), rounded as Pillow does, or cut off as torchvision does for a tensor."""
    if by_pillow:
        return np.asarray(image.convert("L"))[..., None]
    r, g, b = (np.asarray(channel, np.float32) for channel in image.split())
    bright: np.ndarray = r * np.float32(0.2989) + g * np.float32(0.587) + b * np.float32(0.114)
    return bright.astype(np.uint8)[..., None]


def meaning(outputs: Mapping[str, np.ndarray], classes: Sequence[str], returns: str, top: int) -> list[dict[str, Any]]:
    """The best classes of one image with their probabilities; for another network than a classifier, its numbers.

    Args:
        outputs: of one image, by name.
        returns: what they are: ``logits``, ``probabilities`` or ``numbers``.
        top: how many classes.
    """
    if returns == "numbers":
        return [numbers(name, array) for name, array in outputs.items()]
    shares = probabilities(next(iter(outputs.values())).ravel(), len(classes), returns)
    best = np.argsort(-shares, kind="stable")[:top]
    return [{"name": classes[i], "index": int(i), "probability": float(shares[i])} for i in best]


def probabilities(row: np.ndarray, classes: int, returns: str) -> np.ndarray:
    """The probability of each class; a single output is of the second of two classes."""
    row = row.astype(np.float64)
    if len(row) == 1:
        second = row if returns == "probabilities" else 1 / (1 + np.exp(-row))
        return np.concatenate([1 - second, second])[-classes:]
    if returns == "probabilities":
        return row
    powers = np.exp(row - row.max())
    shares: np.ndarray = powers / powers.sum()
    return shares


def numbers(name: str, array: np.ndarray) -> dict[str, Any]:
    """The shape and some statistics of an output."""
    found = {key: float(getattr(array, key)()) for key in ("min", "mean", "max", "std")} if array.size else {}
    return {"name": name, "shape": list(array.shape), **found}


def lines(answer: Sequence[Mapping[str, Any]]) -> list[str]:
    """An answer as text, a line for each class or output."""
    return [
        f"  {one['probability']:7.2%}  {one['name']}"
        if "probability" in one
        else f"  {one['name']}: {' '.join(map(str, one['shape']))}; "
        + ", ".join(f"{key} {one[key]:.6g}" for key in ("min", "mean", "max") if key in one)
        for one in answer
    ]


def median_ms(run: Callable[[], Any]) -> float:
    """Milliseconds that a call takes."""
    run()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def samples(array: np.ndarray) -> list[float]:
    """Evenly spaced values of an output, or all of them if they are few."""
    step = max(1, -(-array.size // MOST_VALUES))
    return [float(value) for value in array.ravel()[::step]]


def check(network: Network, folder: Path) -> bool:
    """Compare the answers to the sample images with the expected ones, print the differences; True if they agree."""
    expected = load(folder / "expected.json")
    tolerance, right = expected["tolerance"], True
    for sample in expected["samples"]:
        x = network.input(decode(folder / sample["file"]))
        outputs = network.run(x)
        error = max(relative(values, samples(outputs[name])) for name, values in sample["outputs"].items())
        same = hashlib.sha256(x[0].tobytes()).hexdigest() == sample["input_sha256"]
        right &= error <= tolerance
        say(
            f"{sample['file']}: {'as expected' if error <= tolerance else 'DIFFERENT'}; relative error {error:.1e}, "
            f"the input is {'' if same else 'not '}the same bit for bit"
        )
    say(f"{'PASS' if right else 'FAIL'}: {len(expected['samples'])} images, tolerance {tolerance}")
    return right


def relative(expected: Sequence[float], found: Sequence[float]) -> float:
    """Root of the summed squared differences, divided by that of the expected values; infinite if they do not fit."""
    a, b = np.array(expected), np.array(found)
    if a.shape != b.shape or not np.isfinite(b).all():
        return float("inf")
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(a), np.finfo(np.float64).tiny))


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> int:
    options = argparse.ArgumentParser(description="Run the engine file of this folder on images; see README.md.")
    options.add_argument("images", nargs="*", type=Path, metavar="IMAGE")
    options.add_argument("--check", action="store_true", help="compare the sample images' answers with expected.json")
    options.add_argument("--top", type=int, default=5, metavar="N", help="number of classes to print")
    options.add_argument("--threads", type=int, metavar="N", help="threads; default: as many as in engine.json")
    given = options.parse_args()
    if not given.images and not given.check:
        options.error("give images, or --check")
    folder = Path(__file__).resolve().parent
    network = Network(folder, given.threads)
    code = 0 if not given.check or check(network, folder) else 1
    x = None
    for path in given.images:
        try:
            x = network.input(decode(path))
        except Exception as error:  # on a damaged file decoders raise nearly any exception
            sys.stderr.write(f"error: {path}: {error}\n")
            code = 1
            continue
        say(str(path))
        for line in lines(network.answer(network.run(x), given.top)):
            say(line)
    if x is not None:
        ms, threads = median_ms(lambda: network.run(x)), network.threads
        many = "thread" if threads == 1 else "threads"
        say(f"{ms:.2f} ms a run (median of {RUNS}, {threads} {many}, {network.runtime.version}); not a benchmark")
    return code


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly where `| head` has read enough
    sys.exit(main())
