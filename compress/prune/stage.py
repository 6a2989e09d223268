"""Stage ``prune``: read the baseline and the latency table, write the pruned network and its plan.

With ``prune.rounds`` above 1 the budget is approached step by step; the networks between are kept in ``rounds/``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from calibration.datasets import Data
from calibration.sampler import calibration_sample
from calibration.split import Split
from compress.config import Config
from compress.data import RunImages
from compress.distributed import pick_device, run_stage
from compress.errors import BudgetError, ConfigError, DataError, ModelError
from compress.files import MANIFEST, tree_sha256, write_atomic, write_json
from compress.graph.plan import PLAN, WidthPlan
from compress.graph.structure import Structure
from compress.lead import lead_stage
from compress.models.batchnorm import enlarge
from compress.models.cost import count
from compress.models.model import Model, describe_model, load_model, save_model
from compress.progress import SILENT, Progress
from compress.prune.allocation.allocate import check_reachable
from compress.prune.importance.scores import Scored, Scores
from compress.prune.iterative import combined
from compress.prune.latency.confirm import ConfirmedFile, confirmed, on_engine
from compress.prune.latency.fallback import in_macs, unmeasurable
from compress.prune.losses.curves import Images
from compress.prune.losses.store import (
    MOST_SPARE,
    Labelled,
    in_batches,
    labelled,
    load_losses,
    measure_losses,
    solve_and_judge,
)
from compress.prune.planner import TABLE, Origin, Planner, RoundStart
from compress.prune.repair.layerwise import repair
from compress.prune.sizes import (
    JUDGED,
    SIZES,
    Judge,
    SizesFile,
    at_input_size,
    solved_on,
)
from compress.prune.surgery import cut, verify
from compress.ranks import processes
from compress.registries import CRITERIA
from compress.run import Run
from compress.train.stage import other_size
from compress.train.tune import tune

__all__ = ["CONFIRMED", "FRONT", "PLAN", "TABLE", "describe", "prune"]

FRONT = "front.json"
CONFIRMED = "confirmed.json"


def prune(config: Config, run: Run) -> Path:
    """Remove channels and blocks of the baseline within the budgets: the network, ``plan.json`` and ``front.json``.

    With ``prune.sizes`` this is done at each input size, and the network of least loss is taken (see ``Judge``);
    ``sizes.json`` has the loss of each.

    Raises:
        BackendAbsent: see ``in_macs``.
        BudgetError, ConfigError, ModelError: see ``Structure.of``, ``LatencyTable`` and ``allocate``.
        DataError: there are no images to look at, or they do not fit the network's classes.
    """
    baseline = run.need("baseline")
    own_table = run.directory / TABLE
    if why := unmeasurable(config.prune, config.target, own_table):
        dense = load_model(baseline, config.model.arch)
        full = count(dense.net, dense.preprocess.shape).macs
        settings, told = in_macs(config.prune, full, why)
        config = config.model_copy(update={"prune": settings})  # the record is of the budget that is met
        run.progress.note(told)
    images = RunImages(config.data, config.run.seed, run.directory, run.progress)
    if config.prune.sizes:
        return _best_size(config, run, images)
    origin = Origin.of(baseline, config.model.arch, config.prune, config.target, own_table)
    return _in_rounds(config, run, run, origin, images)


def _in_rounds(config: Config, run: Run, shared: Run, origin: Origin, images: RunImages) -> Path:
    """Prune a network to its budgets in as many rounds as are asked for.

    Args:
        run: where the stages are kept; ``shared`` is where the losses are.
    """
    if config.prune.rounds > 1 and config.prune.round_epochs and config.finetune.labels and images.data.train is None:
        raise DataError(
            "fine-tuning between rounds needs images, and data.train is not set",
            remedy="set finetune.labels=false, which makes do with the calibration images, or prune.round_epochs=0",
        )
    network = origin.folder
    between = Run(run.directory / "rounds", force=run.force, progress=run.progress)
    for number in range(1, config.prune.rounds):
        network = _round(config, shared, between, f"round{number}", origin, network, number, images)
    return _round(config, shared, run, "prune", origin, network, config.prune.rounds, images)


def resized(config: Config, run: Run, size: int, images: RunImages | None = None) -> Run:
    """The run of the same network at another input size, in ``sizes/``: its baseline, latency table and losses.

    Args:
        size: side of the square input, in pixels; for the baseline's own this is ``run`` itself.

    Raises:
        ConfigError: the network's own input is not square; see also ``Judge``.
        ModelError: see ``at_input_size``.
    """
    baseline = run.need("baseline")
    height, width = describe_model(baseline).preprocess.sides
    if height != width:
        raise ConfigError(
            f"prune.sizes are square, and the network's input is {width}x{height}", remedy="leave prune.sizes unset"
        )
    if height == size:
        return run
    images = images or RunImages(config.data, config.run.seed, run.directory, run.progress)
    other = other_size(run, size)

    def work(out: Path, scratch: Path) -> None:
        model = load_model(baseline, config.model.arch)
        sample = images.sample(config.prune.images, run.progress)
        new, loss = at_input_size(model, size, sample)
        run.progress.note(f"  unpruned at {size} pixels: cross-entropy {loss:.3f} with its classes at its own size")
        save_model(new, out)

    chosen = {"size": size, "images": config.prune.images, "judged": JUDGED}
    settings = {**chosen, "data": images.settings, "seed": config.run.seed}
    lead_stage(other, "baseline", work, settings=settings, parents=[baseline])
    return other


def _best_size(config: Config, run: Run, images: RunImages) -> Path:
    """Prune at every size of ``prune.sizes`` to the same budgets; stage ``prune`` is the network of least loss."""
    arch, settings, baseline = config.model.arch, config.prune, run.need("baseline")
    whole = Origin.of(baseline, arch, settings, config.target, run.directory / TABLE)
    limits = {kind: f"{limit!r} ms" if kind == "latency" else repr(limit) for kind, limit in whole.absolute().items()}
    one = config.model_copy(update={"prune": settings.model_copy(update={"sizes": (), **limits})})
    reference = (baseline, whole.full["latency"]) if "latency" in limits else None
    held_out = _held_out(config, images) if settings.rounds > 1 and settings.round_epochs else None
    runs = {size: resized(config, run, size, images) for size in settings.sizes}
    at: dict[int, tuple[Run, Origin]] = {}
    for size, shared in runs.items():  # all, so that a table that is missing is told before anything is pruned
        dense, table = shared.folder("baseline"), shared.directory / TABLE
        at[size] = shared, Origin.of(dense, arch, one.prune, config.target, table, reference)
    found: dict[int, tuple[Path, Path | None]] = {}
    for size, (shared, origin) in at.items():
        run.progress.note(f"at {size} pixels:")
        own = Run(run.directory / "candidates" / f"{size}px", force=run.force, progress=run.progress)
        measured = False
        try:
            origin.check_reachable(load_model(origin.folder, arch))
            measured = True
            found[size] = origin.folder, _in_rounds(one, own, shared, origin, images)
        except BudgetError as error:
            if len(at) == 1 or (measured and processes() > 1):  # other processes wait for what this one was measuring
                raise
            run.progress.note(f"  {error.message}")
            found[size] = origin.folder, None
    if not any(folder for _, folder in found.values()):
        raise BudgetError(
            "no input size of prune.sizes meets the budget", remedy="raise the budget, or add a smaller size"
        )

    def work(out: Path, scratch: Path) -> None:
        judge = Judge(load_model(baseline, arch), held_out or images.sample(settings.images, SILENT))

        def judged(folder: Path, origin: Origin, plan: WidthPlan) -> Tensor:
            model = load_model(folder, arch)
            if held_out is not None:
                return judge.losses(model.net, model.preprocess)
            solve = partial(solved_on, origin, plan, whole.net, settings.repair)
            return judge.cross_validated(solve, model.preprocess, SILENT if plan == origin.plan() else run.progress)

        plans = {size: WidthPlan.read(folder / PLAN) for size, (_, folder) in found.items() if folder is not None}
        record = SizesFile.of(
            {size: judged(dense, at[size][1], at[size][1].plan()) for size, (dense, _) in found.items()},
            {size: judged(folder, at[size][1], plans[size]) for size, (_, folder) in found.items() if folder},
            {size: plan.latency[1] for size, plan in plans.items() if plan.latency},
        )
        for one in record.tried:
            run.progress.note(f"  {one}{' <- taken' if one.size == record.taken else ''}")
        if alike := record.alike:
            run.progress.note(
                f"  note: the images do not tell {' and '.join(map(str, alike))} pixels from {record.taken}: "
                f"more images ({'prune.images' if held_out is None else 'data.holdout'}), or each size fine-tuned "
                "(pareto --each-size), would tell"
            )
        write_json(out / SIZES, asdict(record))
        _, chosen = found[record.taken]
        assert chosen is not None
        for path in chosen.iterdir():
            if path.name not in (MANIFEST, PLAN):
                write_atomic(out / path.name, path.read_bytes())
        plan = WidthPlan.read(chosen / PLAN)
        before = whole.plan()
        latency = plan.latency and before.latency and (before.latency[0], plan.latency[1])
        plan = replace(plan, before=before.before, latency=latency)  # from the network that the user has
        write_json(out / PLAN, plan.to_json())
        for line in describe(plan):
            run.progress.note(f"  {line}")

    chosen = settings.model_dump(mode="json", exclude={"table", "allow_foreign_table"})
    stage_settings = {"prune": chosen, "data": images.settings, "seed": config.run.seed, "judged": JUDGED}
    parents = [baseline, *(path for pair in found.values() for path in pair if path is not None)]
    parents += [table for table in (whole.table, *(origin.table for _, origin in at.values())) if table is not None]
    return lead_stage(run, "prune", work, settings=stage_settings, parents=list(dict.fromkeys(parents)))


def _held_out(config: Config, images: RunImages) -> Split:
    """Images that nothing was trained on, where candidates are fine-tuned between rounds."""
    holdout = images.data.holdout
    if holdout is None:
        raise DataError(
            "prune.sizes compares networks that are fine-tuned between rounds on held-out images, and there are none",
            remedy="set data.train (class folders are not needed) and a share data.holdout, or prune.round_epochs=0",
        )
    chosen = calibration_sample(holdout, min(config.prune.images, len(holdout)), seed=config.run.seed)
    return holdout.subset(chosen, holdout.name)


def _round(
    config: Config, run: Run, store: Run, name: str, origin: Origin, network: Path, number: int, images: RunImages
) -> Path:
    """Prune the network in the folder ``network`` to the budget of a round; stage ``name`` of ``store``."""
    settings, last = config.prune, number == config.prune.rounds
    first = network == origin.folder
    before = origin.plan() if first else origin.read(network / PLAN)
    model = load_model(network, config.model.arch)
    start = RoundStart.of(model, origin, before)
    budgets = origin.limits(number, settings.rounds)
    check_reachable(start.space, start.nothing_lost(), budgets)  # reported before the images are read
    losses = measured_losses(config, run, network, start.structure, images) if settings.repair else None

    def work(out: Path, scratch: Path) -> None:
        sample = in_batches(images.sample(settings.images, SILENT), model.preprocess) if losses else []
        measured = load_losses(losses, start.structure) if losses else None
        planner = start.planner(measured, budgets, partial(_scores, config, model, start.structure, images, run))
        if planner.front is not None:
            write_json(out / FRONT, planner.front.to_json())
        in_all = partial(combined, origin.structure.coupling, before, start.names)
        if last and settings.confirm and origin.measurable:
            plan = _confirmed(config, origin, planner, in_all, out, run.progress)
        else:
            plan = planner.plan()
        structure = start.structure
        solved = model.net
        if losses:
            solved = repair(model.net, structure, plan.kept, plan.removed, sample, progress=run.progress)
        removed = structure.named(plan.removed)
        net = cut(solved, structure.coupling, plan.kept, removed)
        verify(solved, net, structure.coupling, plan.kept, model.example(2), removed)
        if (cost := count(net, model.preprocess.shape)) != plan.after:
            raise ModelError(f"the plan promises {plan.after}, the pruned network costs {cost}")
        if losses:
            enlarge(net)  # what repair has solved has the batch norms' scale in its weights
        plan = in_all(plan)
        if not last and settings.round_epochs:
            _train(config, images.data, model.clone(net), origin.net, plan, scratch, run.progress)
        save_model(model.clone(net), out)
        write_json(out / PLAN, plan.to_json())
        for line in describe(plan):
            run.progress.note(f"  {line}")

    chosen = settings.model_dump(mode="json", exclude={"table", "allow_foreign_table"})
    stage_settings = {"prune": chosen, "data": images.settings, "seed": config.run.seed}
    if not last and settings.round_epochs:
        stage_settings["finetune"] = config.finetune.record()
    parents = [network, origin.folder, *filter(None, (losses, origin.table))]
    if origin.reference is not None:
        parents.append(origin.reference[0])
        stage_settings["reference_ms"] = origin.reference[1]
    parents = list(dict.fromkeys(parents))
    if "finetune" in stage_settings:
        device = pick_device(config.finetune.device)
        return run_stage(store, name, work, device=device, settings=stage_settings, parents=parents)
    return lead_stage(store, name, work, settings=stage_settings, parents=parents)


def measured_losses(config: Config, run: Run, network: Path, structure: Structure, images: RunImages) -> Path:
    """The folder with ``losses.json`` of the network in the folder ``network``; measured where it is not there yet.

    Raises:
        DataError: there are no images, or the criterion has no labelled ones that fit the network's classes.
        ModelError: the criterion does not go with a backbone, or weights are not finite.
    """
    settings = {
        "importance": config.prune.importance,
        "images": config.prune.images,
        "data": images.settings,
        "seed": config.run.seed,
    }

    def work(out: Path, scratch: Path) -> None:
        model = load_model(network, config.model.arch)
        halves = solving_and_judging(config, images, model, run.progress)
        scores = _criterion_scores(config, model, structure, images, run)
        measure_losses(model, structure, halves, scores, out, scratch, run.progress)

    text = json.dumps([settings, tree_sha256(network)], sort_keys=True, default=str)
    name = f"{config.prune.importance}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    store = Run(run.directory / "losses", force=run.force, progress=run.progress)
    return lead_stage(store, name, work, settings=settings, parents=[network])


def solving_and_judging(config: Config, images: RunImages, model: Model, progress: Progress) -> Images:
    """The images that pruning solves weights on, and those that it measures losses on: half as many more, where there
    are so many."""
    wanted = len(images.sample(config.prune.images, progress))
    sample = images.sample(wanted + min(wanted // 2, MOST_SPARE), SILENT)
    return solve_and_judge(in_batches(sample, model.preprocess), spare=len(sample) - wanted)


def _criterion_scores(config: Config, model: Model, structure: Structure, images: RunImages, run: Run) -> Scores | None:
    """The scores of the criterion that ``prune.importance`` names; None where it leaves the choice to repair."""
    seed, wanted = config.run.seed, config.prune.images

    def batches() -> Iterable[Labelled]:
        return labelled(images.data.train, model, wanted, seed, run.progress)

    scored = Scored(model.clone().net, structure.coupling, bool(model.classes), seed, batches)
    return CRITERIA[config.prune.importance](scored)


def _scores(config: Config, model: Model, structure: Structure, images: RunImages, run: Run) -> Scores:
    scores = _criterion_scores(config, model, structure, images, run)
    if scores is None:
        raise ConfigError(
            f"importance '{config.prune.importance}' gives no scores, which prune.repair=false needs",
            remedy="set prune.repair=true, or another prune.importance",
        )
    return scores


def _confirmed(
    config: Config,
    origin: Origin,
    planner: Planner,
    in_all: Callable[[WidthPlan], WidthPlan],
    out: Path,
    progress: Progress,
) -> WidthPlan:
    """The best plan that meets the latency budget as measured; ``confirmed.json`` says what was measured.

    Args:
        in_all: makes of a round's plan the one that leads there from the unpruned network.
    """
    first, (unpruned, _) = planner.budgets[0], origin.plan().latency or (0.0, 0.0)
    if first.kind != "latency" or first.limit is None:
        return planner.plan()
    limit = first.limit
    if origin.reference is not None and origin.reference[0] != origin.folder:
        limit = origin.absolute()["latency"]  # measured even if by this other table nothing need be pruned
    elif limit >= unpruned:
        return planner.plan()
    against, whole = origin.reference or (origin.folder, unpruned)
    ask = on_engine(origin.folder, config.target, None if against == origin.folder else against)
    progress.note("measuring the plans near the budget")
    best, tried = confirmed(planner.plan, limit, whole, lambda plans: ask([in_all(plan) for plan in plans]))
    for one in tried:
        progress.note(f"  {one}{' <- taken' if one is best else ''}")
    record = ConfirmedFile(limit, tuple(one.tried() for one in tried), tried.index(best))
    write_json(out / CONFIRMED, asdict(record))
    return best.plan


def describe(plan: WidthPlan) -> list[str]:
    """What a plan does, in lines to print."""
    lines = [f"{g.name} ({g.kind}): {g.before} -> {g.after} channels" for g in plan.groups if 0 < g.after < g.before]
    lines += [f"{name}: removed" for name in plan.removed]
    for what, before, after in (
        ("MACs", plan.before.macs, plan.after.macs),
        ("parameters", plan.before.params, plan.after.params),
    ):
        lines.append(f"{what}: {before:,} -> {after:,} ({after / before:.1%})")
    if plan.latency is not None:
        dense, pruned = plan.latency
        lines.append(f"INT8 latency, predicted: {dense:.3f} -> {pruned:.3f} ms ({pruned / dense:.1%})")
    return lines


def _train(
    config: Config, data: Data, pruned: Model, teacher: nn.Module, plan: WidthPlan, scratch: Path, progress: Progress
) -> None:
    tune(
        pruned.net,
        pruned,
        teacher if config.finetune.distill > 0 else None,
        data,
        config.finetune,
        epochs=config.prune.round_epochs,
        kept=plan.kept,
        seed=config.run.seed,
        workers=config.data.workers,
        scratch=scratch,
        progress=progress,
    )
