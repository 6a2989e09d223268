"""What pruning a network would lose, measured once and kept in ``losses/`` of the run: budgets come and go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from calibration.loader import batches
from calibration.sampler import calibration_sample
from calibration.split import check_classes
from calibration.transforms import eval_transform
from compress.config import Config
from compress.data import data_settings, open_data, training_sample
from compress.errors import DataError, ModelError, PipelineError
from compress.files import tree_sha256, write_json
from compress.graph.groups import Coupling
from compress.graph.structure import Structure
from compress.lead import lead_stage
from compress.models.model import Model, load_model
from compress.parse import NonNegative, read
from compress.progress import Progress
from compress.prune.importance.norm import weight_norm
from compress.prune.importance.random import random_scores
from compress.prune.importance.scores import Scores
from compress.prune.importance.taylor import taylor
from compress.prune.losses.curves import Curve, Images, Sensitivity
from compress.run import Run

LOSSES = "losses.json"
_BATCH = 25
_SIXTEENTHS = (1, 2, 4, 6, 8, 10, 12, 13, 14, 15)  # of a group's units: the widths at which the loss is measured
# One batch in four measures the loss, but five batches at most; weights are solved on the others. They are the first:
# the sample draws from the classes in turn, so that its beginning has the most of them.
_JUDGES, _MOST_JUDGES = 4, 5


@dataclass(frozen=True)
class Measured:
    """The loss of each group by its width, and of each removable block's removal."""

    curves: Mapping[str, Curve]
    removals: Mapping[str, NonNegative]


def measured_losses(config: Config, run: Run, network: Path, structure: Structure) -> Path:
    """The folder with ``losses.json`` of the network in the folder ``network``; measured where it is not there yet.

    Groups that were measured before a kill are not measured again.

    Raises:
        DataError: there are no images, or Taylor importance has no labelled ones that fit the network's classes.
        ModelError: Taylor importance of a backbone, or weights that are not finite.
    """
    settings = {
        "importance": config.prune.importance,
        "images": config.prune.images,
        "data": data_settings(config),
        "seed": config.run.seed,
    }

    def work(out: Path, scratch: Path) -> None:
        model = load_model(network, config.model.arch)
        sample = pruning_images(config, model, run.progress)
        images = solve_and_judge(sample)
        scores = None
        if config.prune.importance != "obs":
            scores = channel_scores(config, model, structure.coupling, run.progress)
        classifier = bool(model.classes)
        sensitivity = Sensitivity(
            model.net, structure, images, classifier=classifier, scores=scores, progress=run.progress
        )
        kept = scratch / LOSSES
        groups = _before_a_kill(kept, structure.coupling)
        wanted = {
            group.name: sorted({max(1, group.units * share // 16) for share in _SIXTEENTHS} - {group.units})
            for group in structure.coupling
            if group.name not in groups
        }
        for name, curve in sensitivity.curves(wanted):
            groups[name] = curve
            write_json(kept, {name: asdict(curve) for name, curve in groups.items()})
        record = _File({name: groups[name] for name in sorted(groups)}, sensitivity.removals())
        write_json(out / LOSSES, asdict(record))

    text = json.dumps([settings, tree_sha256(network)], sort_keys=True, default=str)
    name = f"{config.prune.importance}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    store = Run(run.directory / "losses", force=run.force, progress=run.progress)
    return lead_stage(store, name, work, settings=settings, parents=[network])


def load_losses(folder: Path, structure: Structure | None = None) -> Measured:
    """Read what ``measured_losses`` made.

    Args:
        structure: of the network that they must be of, where there is one to hold them against.

    Raises:
        PipelineError: it is absent or damaged, or of another network.
    """
    remedy = f"delete the folder {folder}, and prune again"
    record = read(folder / LOSSES, _File, remedy=remedy)
    if structure is not None:
        units = {group.name: group.units for group in structure.coupling}
        blocks = {segment.name for segment in structure.segments if segment.removable}
        if _units(record.groups) != units or record.removals.keys() != blocks:
            raise PipelineError(f"{folder / LOSSES} has other groups or blocks than the network", remedy=remedy)
    return Measured(record.groups, record.removals)


def _units(curves: Mapping[str, Curve]) -> dict[str, int]:
    """All units of each group."""
    return {name: curve.units[-1] for name, curve in curves.items()}


@dataclass(frozen=True)
class _File:
    """What ``losses.json`` holds."""

    groups: Mapping[str, Curve]
    removals: Mapping[str, NonNegative]


def _before_a_kill(path: Path, coupling: Coupling) -> dict[str, Curve]:
    """The curves of the network's groups that were kept; none where there is no such file, or it is damaged."""
    try:
        kept = read(path, dict[str, Curve], remedy="")
    except PipelineError:
        return {}
    units = _units(kept)
    return {group.name: kept[group.name] for group in coupling if units.get(group.name) == group.units}


def pruning_images(config: Config, model: Model, progress: Progress) -> list[Tensor]:
    """Batches (N, C, H, W) of ``training_sample``.

    Raises:
        DataError: there are no images.
    """
    sample = training_sample(config, config.prune.images, progress)
    # Some batches even of few images: one in four judges, one in five is held out.
    loader = batches(sample, eval_transform(model.preprocess), min(_BATCH, -(-len(sample) // 8)))
    return [x.contiguous(memory_format=torch.channels_last) for x, _ in loader]


def solve_and_judge(sample: Sequence[Tensor]) -> Images:
    """Batches to solve weights on, and others to measure the loss on; of a single batch both."""
    judges = min(max(1, len(sample) // _JUDGES), _MOST_JUDGES)
    return Images(sample[judges:] or sample, sample[:judges])


def channel_scores(config: Config, model: Model, coupling: Coupling, progress: Progress) -> Scores:
    """Scores of the kind that ``prune.importance`` names.

    Raises:
        ModelError: Taylor importance of a backbone.
        DataError: Taylor importance, and no labelled training images that fit the network's classes.
    """
    settings, seed = config.prune, config.run.seed
    if settings.importance == "random":
        return random_scores(coupling, seed)
    if settings.importance == "norm":
        return weight_norm(model.net, coupling)
    if not model.classes:
        raise ModelError(
            "Taylor importance needs a classifier: a backbone has no loss", remedy="set prune.importance=obs"
        )
    train = open_data(config).train
    if train is None:
        raise DataError(
            "Taylor importance looks at labelled training images, and data.train is not set",
            remedy="set data.train, or prune.importance=obs",
        )
    check_classes(train, len(model.classes))
    if len(train) < settings.images:
        progress.note(f"  scoring on all {len(train)} training images, fewer than prune.images={settings.images}")
    chosen = calibration_sample(train, min(settings.images, len(train)), seed=seed)
    loader = batches(train.subset(chosen, train.name), eval_transform(model.preprocess), _BATCH)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_device = ((x.to(device), labels.to(device)) for x, labels in progress.track(loader, "scoring channels"))
    return taylor(model.clone().net.to(device), coupling, on_device)
