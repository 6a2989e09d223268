"""The built-in default data set: scikit-learn's handwritten digits (1797 real images, 8x8, ten classes), at 64x64.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
The files ship inside scikit-learn, so nothing is downloaded.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from calibration.split import ArraySource, Split, stratified

SIZE = 64
MEAN = (0.3096,) * 3  # of the upscaled training images, pixels in 0..1
STD = (0.3492,) * 3
_EVAL_SHARE = 0.25
_SPLIT_SEED = 0  # a constant, so that accuracies of different runs are measured on the same images


def digits() -> tuple[Split, Split]:
    """(train, eval): 1347 and 450 images, stratified by class; always the same images."""
    raw = load_digits()
    pixels = np.stack([_upscale(image) for image in raw.images])
    whole = ArraySource("digits", pixels).split("digits", [str(name) for name in raw.target_names], raw.target)
    train, held = stratified(whole.labels, _EVAL_SHARE, _SPLIT_SEED)
    return whole.subset(train, "train"), whole.subset(held, "eval")


def _upscale(image: np.ndarray) -> np.ndarray:
    """(8, 8) of 0..16 -> (64, 64) uint8."""
    grey = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    return np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
