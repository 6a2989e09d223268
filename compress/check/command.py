"""The command ``check``: does a network get the images and the classes that it was trained for?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from compress.commands import ConfigFile, Overrides
from compress.config import DataConfig, load_config
from compress.console import Console
from compress.errors import ConfigError, DataError
from compress.parse import brief
from compress.registries import BACKENDS

if TYPE_CHECKING:
    from calibration.split import Split
    from compress.check.network import Checked
    from compress.check.search import Finding

# The modules beside this one import torch, which takes seconds: each is imported when the command runs.

_SHOWN = 12  # rows of the table
_FRESH = 4  # as many other images as were sampled decide a close case
_GIVE = "give a checkpoint (with --arch), an engine file, a stage's folder, or a configuration"


def check(
    model: Annotated[Path | None, Parameter(name=("--model", "--weights", "--engine"), metavar="MODEL")] = None,
    data: Annotated[str | None, Parameter(metavar="DATA")] = None,
    *,
    arch: str | None = None,
    images: Annotated[int, Parameter(metavar="N", validator=Number(gte=10))] = 100,
    config: ConfigFile = None,
    overrides: Overrides | None = None,
) -> int:
    """Check on a few images that the preprocessing and the order of the classes are those of the network.

    Mean and std, RGB or BGR, sizes, interpolation, and the order of the classes are tried on the same images. If one
    is clearly better than what is configured, the lines of the configuration that set it are printed.

    The exit code is 1 if a hypothesis is clearly better, or if the network only guesses.

    Args:
        model: A checkpoint, an engine file, a stage's folder, or a TOML configuration; default: that of --config.
        data: A folder of labelled images, `digits`, or `cifar10:FOLDER`; default: that of --config.
        arch: Architecture of a checkpoint; default: that of --config.
        images: How many images the hypotheses are tried on, balanced over the classes.
    """
    from calibration.sampler import calibration_sample
    from compress.check.network import opened, published_top1
    from compress.check.search import search
    from compress.progress import Terminal

    if model is not None and model.suffix == ".toml":
        config, model = model, None
    settings = load_config(config, overrides or [])
    network, file = settings.model, _engine_file(model)
    if arch is not None:
        network = network.model_copy(update={"arch": arch})
    if file is None and model is not None:
        network = network.model_copy(update={"weights": str(model)})
    if file is None and network.weights is None:
        file = _trained(settings.run.dir)
    progress = Terminal()
    source = settings.data if data is None else _replaced(settings.data, data)
    split = _labelled(source, settings.run.seed)
    count = min(images, len(split))
    chosen = calibration_sample(split, min((1 + _FRESH) * count, len(split)), seed=settings.run.seed)
    sample, fresh = split.subset(chosen[:count], split.name), split.subset(chosen[count:], split.name)
    with opened(network, file, source, os.cpu_count() or 1, progress) as checked:
        finding = search(
            checked.predict,
            checked.preprocess,
            sample,
            fresh,
            outputs=checked.outputs,
            resizable=checked.resizable,
            workers=source.workers,
            progress=progress,
        )
    console = Console()
    _show(finding, console)
    if file is None and _looks_like_imagenet(split, checked.outputs) and (known := published_top1(network)):
        console.print(f"published: {known[0]} has {known[1]:.2f}% on ImageNet's validation images", soft_wrap=True)
    _tell(finding, checked, split, console)
    return 1 if finding.clear or finding.guesses else 0


def _engine_file(model: Path | None) -> Path | None:
    """The file that an engine opens; none for a checkpoint."""
    if model is None:
        return None
    if model.is_dir():
        found = [folder / "model.safetensors" for folder in (model, model / "baseline")]
        file = next((file for file in found if file.is_file()), None)
        if file is None:
            raise ConfigError(f"{model} has no model.safetensors", remedy=_GIVE)
        return file
    described = model.name == "model.safetensors" and (model.parent / "model.json").is_file()
    return model if described or model.suffix in {known.suffix for known in BACKENDS.values()} else None


def _trained(run: Path) -> Path:
    file = run / "baseline" / "model.safetensors"
    if not file.is_file():
        raise ConfigError("no network is given", remedy=_GIVE)
    return file


def _replaced(config: DataConfig, data: str) -> DataConfig:
    """``config`` with the evaluation images of ``data``."""
    kind, _, folder = data.partition(":")
    if kind not in ("digits", "cifar10"):
        kind, folder = "imagefolder", data
    other = {"kind": kind, "eval": Path(folder) if folder else None, "train": None, "calibration": None}
    return config.model_copy(update=other)


def _labelled(config: DataConfig, seed: int) -> Split:
    from compress.data import open_data

    found = open_data(config, seed)
    split = found.eval if found.eval is not None and found.eval.labelled else found.labelled
    if split is None:
        raise DataError(
            "there are no labelled images", remedy="give a folder with one folder per class, or data.labels"
        )
    return split


def _looks_like_imagenet(split: Split, outputs: int) -> bool:
    return outputs == 1000 and (split.indexed or len(split.classes) == 1000)


def _show(finding: Finding, console: Console) -> None:
    from rich.table import Table

    from compress.check.search import by_chance

    table = Table(box=None, pad_edge=False)
    for name, justify in (("hypothesis", "left"), ("top-1 %", "right"), ("points", "right"), ("by chance", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    base = finding.configured
    table.add_row("as configured", f"{100 * base.top1:.1f}", "", "")
    for one in finding.tried[:_SHOWN]:
        points, p = 100 * (one.top1 - base.top1), by_chance(one.right, base.right)
        table.add_row(" + ".join(one.changes), f"{100 * one.top1:.1f}", f"{points:+.1f}", f"{p:.1g}")
    console.print(table)
    left = len(finding.tried) - _SHOWN
    more = f"; {left} more are not better than these" if left > 0 else ""
    console.print(
        f"{len(base.right)} images; 'by chance' is the probability of so many more right answers (McNemar){more}",
        soft_wrap=True,
    )


def _tell(finding: Finding, checked: Checked, split: Split, console: Console) -> None:
    """The verdict, and the lines that fix it."""
    base, best = finding.configured, finding.best
    what = " + ".join(best.changes)
    on = f"{finding.fresh} other images" if finding.fresh else f"{len(base.right)} images"
    if finding.clear:
        console.print(
            f"WRONG: the network expects {what}: top-1 is {100 * best.top1:.1f}% with it, {100 * base.top1:.1f}% as "
            f"configured (p={finding.p:.1g} on {on})",
            soft_wrap=True,
        )
        where = "set this in the configuration, and make the file again:" if checked.in_file else "set this:"
        console.print(f"{where}\n{_toml(finding, checked, split)}", soft_wrap=True)
    elif finding.guesses:
        console.print(
            f"WRONG: top-1 is {100 * base.top1:.1f}%, as if the network guessed, and no hypothesis explains it: are "
            "these the weights, and the images, that you mean? More --images can find the order of many classes",
            soft_wrap=True,
        )
    elif best is not base:
        console.print(
            f"not clear: {what} looks better, but may not be (p={finding.p:.2g} on {on}); try with --images "
            f"{5 * len(base.right)}",
            soft_wrap=True,
        )
    else:
        console.print("fine: nothing is clearly better than what is configured", soft_wrap=True)


def _toml(finding: Finding, checked: Checked, split: Split) -> str:
    from compress.check.hypotheses import keys_of

    best = finding.best
    changes = keys_of(best.hypothesis.preprocess, checked.preprocess)
    lines = ["[data]", *(f"{key} = {_value(value)}" for key, value in changes.items())] if changes else []
    if best.order.name:
        present = sorted(set(split.labels.tolist()))
        lines += ["[data.classes]"]
        lines += [f"{json.dumps(brief(split.classes[i], 500))} = {best.order.outputs[i]}" for i in present]
    return "\n".join(lines)


def _value(value: Any) -> str:
    return f"[{', '.join(map(_value, value))}]" if isinstance(value, list | tuple) else json.dumps(value)
