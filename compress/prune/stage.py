"""The stage ``prune``: reads the baseline, writes the cut network and the width plan."""

from __future__ import annotations

from pathlib import Path

import torch

from calibration.loader import batches
from calibration.sampler import calibration_sample
from calibration.split import check_classes
from calibration.transforms import eval_transform
from compress.config import Config
from compress.data import data_settings, open_data
from compress.errors import DataError, ModelError
from compress.models.cost import count
from compress.models.model import Model, load_model, save_model
from compress.progress import Progress
from compress.prune import importance
from compress.prune.allocate import Constraints, allocate
from compress.prune.coupling import Coupling, couple
from compress.prune.importance import Scores
from compress.prune.surgery import cut, verify
from compress.prune.width_cost import WidthCost
from compress.run import Run, write_json

_BATCH = 16


def prune(config: Config, run: Run) -> Path:
    """Remove channels of the baseline within the budget: ``model.safetensors``, ``model.json`` and ``plan.json``.

    BN statistics stay as they are: a checkpoint may carry folded ones, which measuring anew would destroy.

    Raises:
        BudgetError, ConfigError, ModelError: see ``couple`` and ``allocate``.
        DataError: Taylor importance, and no labelled training images that fit the network's classes.
    """
    baseline = run.need("baseline")
    settings = config.prune

    def work(out: Path, scratch: Path) -> None:
        model = load_model(baseline)
        shape = model.preprocess.shape
        coupling = couple(model.net, shape)
        constraints = Constraints(settings.multiple, settings.min_width, settings.keep)
        cost = WidthCost(model.net, coupling, shape)
        # Random scores cost nothing, and a budget that cannot be met is told before the images are looked at.
        allocate(coupling, importance.random(coupling, 0), cost, settings.budget(), constraints)
        scores = _scores(config, model, coupling, run.progress)
        plan = allocate(coupling, scores, cost, settings.budget(), constraints)
        net = cut(model.net, coupling, plan.kept)
        verify(model.net, net, coupling, plan.kept, model.example(2))
        if count(net, shape) != plan.after:
            raise ModelError(f"the plan promises {plan.after}, the pruned network costs {count(net, shape)}")
        save_model(model.clone(net), out)
        write_json(out / "plan.json", plan.to_json())
        for what, before, after in (
            ("MACs", plan.before.macs, plan.after.macs),
            ("parameters", plan.before.params, plan.after.params),
        ):
            run.progress.note(f"  {what}: {before:,} -> {after:,} ({after / before:.1%})")
        for layer, reason in coupling.frozen.items():
            run.progress.note(f"  not cut: {layer} ({reason})")

    return run.stage(
        "prune",
        work,
        settings={
            "prune": settings.model_dump(mode="json"),
            "data": data_settings(config),
            "seed": config.run.seed,
        },
        parents=[baseline],
    )


def _scores(config: Config, model: Model, coupling: Coupling, progress: Progress) -> Scores:
    settings, seed = config.prune, config.run.seed
    if settings.importance == "random":
        return importance.random(coupling, seed)
    if settings.importance == "norm":
        return importance.norm(model.net, coupling)
    if not model.classes:
        raise ModelError(
            "Taylor importance needs a classifier: a backbone has no loss", remedy="set prune.importance=norm"
        )
    train = open_data(config).train
    if train is None:
        raise DataError(
            "Taylor importance looks at labelled training images, and data.train is not set",
            remedy="set data.train, or prune.importance=norm",
        )
    check_classes(train, len(model.classes))
    if len(train) < settings.images:
        progress.note(f"  scoring on all {len(train)} training images, fewer than prune.images={settings.images}")
    chosen = calibration_sample(train, min(settings.images, len(train)), seed=seed)
    loader = batches(train.subset(chosen, train.name), eval_transform(model.preprocess), _BATCH)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_device = ((x.to(device), labels.to(device)) for x, labels in progress.track(loader, "scoring channels"))
    return importance.taylor(model.clone().net.to(device), coupling, on_device)
