"""Prune with Torch-Pruning: try all settings, then fit the best ones of each budget to the latency.

The first pass prunes with every setting to each budget, as a share of the MACs, and evaluates some images. It only
chooses the settings that are then fitted to the measured latency of the INT8 engine. Each result is a stage of its own,
which is made once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from benchmarks.results.rivals import Rough
from benchmarks.rivals.peers.source import Images
from benchmarks.rivals.peers.torch_pruning import Criterion, Evidence, Setting, evidence, prune, recalibrate
from benchmarks.rivals.pruning_nets import Make, Probe, fitted, identity, macs_share, widest
from calibration.loader import batches
from calibration.split import Split
from calibration.transforms import eval_transform
from compress.config import TargetConfig
from compress.errors import BudgetError
from compress.files import write_atomic, write_json
from compress.models.model import Model, load_model, save_model
from compress.parse import read
from compress.run import Run
from compress.train.evaluate import evaluate

RECORD = "peer.json"
_BATCH = 32
_ROUGH_IMAGES = 100


@dataclass(frozen=True)
class _Took:
    seconds: float


@dataclass(frozen=True)
class Made:
    """``peer.json`` beside a network: with which ratio Torch-Pruning made it, for what share of ``of``.

    Attributes:
        tried: ratio and share of each try.
        seconds: that gradients, pruning and BN took.
    """

    setting: str
    budget: float
    of: str
    ratio: float
    share: float
    tried: tuple[tuple[float, float], ...]
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Pruner:
    """Torch-Pruning on one network.

    Attributes:
        folder: of the dense network (``model.json`` and ``model.safetensors``).
        sample: labelled images that it looks at, and that BN is measured on.
        run: where its stages go.
        factory: see ``load_model``.
    """

    folder: Path
    sample: Split
    run: Run
    factory: str = ""

    def rough(self, setting: Setting, budget: float, eval: Split) -> Rough:
        """Prune with ``setting`` to a share of the MACs, and evaluate on some images of ``eval``.

        Raises:
            BackendAbsent, ModelError: see ``prune``.
        """
        judges = eval.subset(range(0, len(eval), max(1, len(eval) // _ROUGH_IMAGES)), "some of eval")

        def work(out: Path, scratch: Path) -> None:
            model = load_model(self.folder, self.factory)
            weighed, _ = self._evidence(model, setting.criterion)
            found = widest(_make(model, setting, weighed), macs_share(model), budget)
            top1 = 0.0
            if found is not None:
                recalibrate(found.net, self._images(model, _ROUGH_IMAGES))
                top1 = evaluate(found.net, judges, model.preprocess).top1
            ratio, macs = (None, None) if found is None else (found.ratio, found.share)
            write_json(out / RECORD, asdict(Rough(str(setting), budget, ratio, macs, top1)))

        folder = self._stage(f"rough/{setting}-{budget:g}", work, {"judges": identity(judges)})
        return read(folder / RECORD, Rough, remedy=f"delete the folder {folder}")

    def fitted(self, setting: Setting, budget: float, target: TargetConfig | None) -> Path:
        """The widest network of ``setting`` within a share of the dense INT8 engine's latency, as a model folder.

        Beside it ``peer.json`` says with which ratio, and how many seconds went into gradients, pruning and BN.

        Args:
            target: whose engine is timed; none: the budget is a share of the MACs.

        Raises:
            BudgetError: no ratio that was tried keeps within the budget.
            BackendAbsent, ModelError, EngineError: see ``prune`` and ``Probe``.
        """
        what = "MACs" if target is None else "INT8 latency"

        def work(out: Path, scratch: Path) -> None:
            model = load_model(self.folder, self.factory)
            weighed, seconds = self._evidence(model, setting.criterion)
            make, macs = _make(model, setting, weighed), macs_share(model)
            tried: list[tuple[float, float]] = []
            if target is None:
                found = widest(make, macs, budget, slack=0.005)
            else:
                found, tried = fitted(make, macs, Probe(model, self.sample, target, scratch), budget)
            if found is None:
                raise BudgetError(
                    f"Torch-Pruning ({setting}) found no net within {100 * budget:g}% of the dense one's {what}",
                    remedy="give a larger budget",
                )
            start = time.perf_counter()
            net = make(found.ratio)
            pruned = time.perf_counter()
            recalibrate(net, self._images(model, len(self.sample)))
            took = {"gradients": seconds, "pruning": pruned - start, "bn": time.perf_counter() - pruned}
            save_model(model.clone(net), out)
            made = Made(str(setting), budget, what, found.ratio, found.share, tuple(tried), took)
            write_json(out / RECORD, asdict(made))

        settings = {"target": None if target is None else target.model_dump(mode="json")}
        return self._stage(f"nets/{setting}-{budget:g}{'-macs' * (target is None)}", work, settings)

    def _evidence(self, model: Model, criterion: Criterion) -> tuple[Evidence, float]:
        """What the criterion needs to know of the dense network, and the seconds that it took to learn it."""

        def work(out: Path, scratch: Path) -> None:
            start = time.perf_counter()
            loader = batches(self.sample, eval_transform(model.preprocess), _BATCH)
            found = evidence(model.net, criterion, self.run.progress.track(loader, f"gradients for {criterion}"))
            write_json(out / RECORD, asdict(_Took(time.perf_counter() - start)))
            write_atomic(out / "evidence.safetensors", save(dict(found)))

        if criterion == "l2":
            return {}, 0.0
        folder = self._stage(f"evidence/{criterion}", work, {})
        took = read(folder / RECORD, _Took, remedy=f"delete the folder {folder}")
        return load_file(folder / "evidence.safetensors"), took.seconds

    def _images(self, model: Model, count: int) -> Images:
        return Images(self.sample.subset(range(min(count, len(self.sample))), "bn"), model.preprocess, _BATCH)

    def _stage(self, name: str, work: Any, settings: dict[str, Any]) -> Path:
        group, _, stage = name.partition("/")
        run = Run(self.run.directory / group, force=self.run.force, progress=self.run.progress)
        return run.stage(stage, work, settings={"sample": identity(self.sample), **settings}, parents=[self.folder])


def finalists(roughs: Sequence[Rough], count: int) -> list[tuple[Setting, float]]:
    """The ``count`` settings with the best top-1 of the first pass at each budget.

    >>> finalists([Rough("local-l2-8", 0.5, 0.3, 0.5, 0.1), Rough("local-obd-8", 0.5, 0.3, 0.5, 0.2)], 1)
    [(Setting(scope='local', criterion='obd', round_to=8), 0.5)]
    """
    chosen = []
    for budget in sorted({rough.budget for rough in roughs}, reverse=True):
        reached = [rough for rough in roughs if rough.budget == budget and rough.ratio is not None]
        best = sorted(reached, key=lambda rough: -rough.top1)[:count]
        chosen += [(Setting.parse(rough.setting), budget) for rough in best]
    return chosen


def _make(model: Model, setting: Setting, weighed: Evidence) -> Make:
    return lambda ratio: prune(model.net, model.preprocess.shape, setting, ratio, weighed)
