"""Training recipes: settings by name, for each of the training sections.

A rate goes with a batch, so that it grows and shrinks with the batch where that is given and the rate is not (Goyal et
al. 2017, arXiv:1706.02677, section 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from compress.config.section import plain

Recipe = Literal["torchvision-v2", "transfer", "mimic", "none"]

_PLAIN = {
    "crop": 0.0,
    "resized_crop": 0.0,
    "flip": False,
    "jitter": 0.0,
    "augment": "none",
    "erasing": 0.0,
    "steps": (),
    "label_smoothing": 0.0,
    "ema": 0.0,
}
# The second weights of torchvision: references/classification, "V2" of ResNet-50. Its average takes one step in 32, of
# (1 - 0.99998) * batch * 32 / epochs; the decays below are that at every step, for 600 and for 60 epochs.
_TORCHVISION = {
    "resized_crop": 0.08,
    "flip": True,
    "augment": "trivialaugment",
    "erasing": 0.1,
    "steps": ("mixup_or_cutmix",),
    "label_smoothing": 0.1,
    "weight_decay": 2e-5,
    "schedule": "cosine",
}
_TRANSFER = {
    "resized_crop": 0.25,
    "flip": True,
    "augment": "trivialaugment",
    "label_smoothing": 0.1,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "ema": 0.99,
}
_MIMIC = {
    "labels": False,
    "optimizer": "adam",
    "lr": 3e-3,
    "relative_lr": True,
    "batch_size": 32,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "resized_crop": 0.5,
    "flip": True,
    "epochs": 20,
    "steps_per_epoch": 25,
    "warmup": 2.0,
    "patience": 8,
}

RECIPES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "none": dict.fromkeys(("train", "finetune", "qat"), _PLAIN),
    "torchvision-v2": {
        "train": {**_TORCHVISION, "epochs": 600, "batch_size": 1024, "lr": 0.5, "warmup": 5.0, "ema": 0.99997},
        "finetune": {**_TORCHVISION, "epochs": 60, "batch_size": 1024, "lr": 0.1, "warmup": 1.0, "ema": 0.9997},
        "qat": {**_TORCHVISION, "epochs": 10, "batch_size": 1024, "lr": 0.005},
    },
    "transfer": {
        "train": {**_TRANSFER, "epochs": 30, "batch_size": 64, "lr": 0.02, "warmup": 1.0},
        "finetune": {**_TRANSFER, "epochs": 30, "batch_size": 64, "lr": 0.02, "warmup": 1.0},
        "qat": {**_TRANSFER, "epochs": 5, "batch_size": 64, "lr": 5e-4, "ema": 0.0},
    },
    "mimic": {"finetune": _MIMIC, "qat": {**_MIMIC, "lr": 1e-3, "epochs": 10, "warmup": 1.0}},
}

_LONGEST_WARMUP = 0.25  # of the epochs, where a training is shorter than the recipe's


def filled(section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given for a training section, completed by the recipe that it names.

    Args:
        section: ``train``, ``finetune`` or ``qat``.

    Raises:
        ValueError: the recipe is not for this section.

    >>> filled("finetune", {"recipe": "transfer", "batch_size": 128})["lr"]
    0.04
    """
    name = given.get("recipe")
    if not isinstance(name, str) or name not in RECIPES:
        return dict(given)
    if section not in RECIPES[name]:
        raise ValueError(f"recipe '{name}' learns from the unpruned network, and {section} makes that: choose another")
    recipe = RECIPES[name][section]
    chosen = {**recipe, **given}
    sgd = plain(str(chosen.get("optimizer", "sgd"))) == "sgd"
    if sgd and "relative_lr" not in given:
        chosen.pop("relative_lr", None)
    with suppress(TypeError, ValueError, OverflowError):  # of a value that is no number: said when it is validated
        if "lr" in recipe and "lr" not in given and sgd:
            chosen["lr"] *= int(chosen["batch_size"]) * int(chosen.get("accumulate", 1)) / recipe["batch_size"]
        if "warmup" in recipe and "warmup" not in given:
            rises = plain(str(chosen.get("schedule"))).removesuffix("lr") in ("cosine", "cosineannealing", "constant")
            chosen["warmup"] = min(recipe["warmup"], int(chosen["epochs"]) * _LONGEST_WARMUP) if rises else 0.0
    return chosen


def learning_keys(section: str, name: str) -> frozenset[str]:
    """The keys of a recipe that say how is learned, not how images are changed."""
    return frozenset(RECIPES.get(name, {}).get(section, {})) - _PLAIN.keys()
