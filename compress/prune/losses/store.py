"""Measure the losses of pruning once, and keep them in ``losses/`` of the run for any budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.sampler import calibration_sample
from calibration.split import Split, check_classes
from calibration.transforms import eval_transform
from compress.errors import DataError, PipelineError
from compress.files import write_json
from compress.graph.groups import Coupling
from compress.graph.structure import Structure
from compress.models.model import Model
from compress.parse import NonNegative, read
from compress.progress import SILENT, Progress
from compress.prune.importance.scores import Scores
from compress.prune.losses.curves import Curve, Images, Sensitivity

Labelled = tuple[Tensor, Tensor]
"""Images (N, C, H, W) and their classes (N,)."""

LOSSES = "losses.json"
_BATCH = 25
_SIXTEENTHS = (1, 2, 4, 6, 8, 10, 12, 13, 14, 15)  # of a group's units: the widths at which the loss is measured
# One batch in four measures the loss, but five batches at most; of images that are there besides, ten. They are the
# first: the sample draws from the classes in turn, so that its beginning has the most of them.
_JUDGES, _MOST_JUDGES = 4, 5
MOST_SPARE = 10 * _BATCH


@dataclass(frozen=True)
class Measured:
    """The loss of each group by its width, and of each removable block's removal."""

    curves: Mapping[str, Curve]
    removals: Mapping[str, NonNegative]


def measure_losses(
    model: Model,
    structure: Structure,
    images: Images,
    scores: Scores | None,
    out: Path,
    scratch: Path,
    progress: Progress = SILENT,
) -> None:
    """Write ``losses.json``. Groups that were measured before a kill are not measured again.

    Args:
        scores: the higher, the longer a unit stays; None: repair decides.
        out, scratch: folders for the file, and for what is done so far.

    Raises:
        ModelError: weights or outputs are not finite.
    """
    classifier = bool(model.classes)
    sensitivity = Sensitivity(model.net, structure, images, classifier=classifier, scores=scores, progress=progress)
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
    record = LossesFile({name: groups[name] for name in sorted(groups)}, sensitivity.removals())
    write_json(out / LOSSES, asdict(record))


def load_losses(folder: Path, structure: Structure | None = None) -> Measured:
    """Read what ``measure_losses`` wrote.

    Args:
        structure: of the network that they must be of, where there is one to hold them against.

    Raises:
        PipelineError: it is absent or damaged, or of another network.
    """
    remedy = f"delete the folder {folder}, and prune again"
    record = read(folder / LOSSES, LossesFile, remedy=remedy)
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
class LossesFile:
    """What ``losses.json`` holds.

    Attributes:
        groups: the loss of each group by its width.
        removals: the loss of taking out each block, by its name.
    """

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


def in_batches(sample: Split, preprocess: Preprocess) -> list[Tensor]:
    """A sample in batches (N, C, H, W): some even of few images, since some of them measure the loss."""
    loader = batches(sample, eval_transform(preprocess), min(_BATCH, -(-len(sample) // 8)))
    return [x.contiguous(memory_format=torch.channels_last) for x, _ in loader]


def solve_and_judge(sample: Sequence[Tensor], spare: int = 0) -> Images:
    """Batches to solve weights on, and others to measure the loss on; of a single batch both.

    Args:
        spare: how many of the images weights need not be solved on.
    """
    judges = max(min(max(1, len(sample) // _JUDGES), _MOST_JUDGES), min(spare, MOST_SPARE) // len(sample[0]))
    return Images(sample[judges:] or sample, sample[:judges])


def labelled(train: Split | None, model: Model, wanted: int, seed: int, progress: Progress) -> Iterable[Labelled]:
    """Labelled training images for a criterion, in batches: class-balanced, seeded.

    Raises:
        DataError: there are none, or their classes are not the network's.
    """
    if train is None:
        raise DataError(
            "this importance criterion needs labelled training images, and data.train is not set",
            remedy="set data.train, or prune.importance=obs",
        )
    check_classes(train, len(model.classes))
    if len(train) < wanted:
        progress.note(f"  scoring on all {len(train)} training images, fewer than prune.images={wanted}")
    chosen = calibration_sample(train, min(wanted, len(train)), seed=seed)
    loader = batches(train.subset(chosen, train.name), eval_transform(model.preprocess), _BATCH)
    return progress.track(loader, "scoring channels")
