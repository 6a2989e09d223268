"""Compare a run of the whole pipeline with the figures and predictions of an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnx

from benchmarks.cli import INVALID
from benchmarks.evaluation.baseline import Baseline, Check, Quantity, Source, judge
from benchmarks.evaluation.images import evaluation_split
from benchmarks.evaluation.pairing import compare, result_of
from benchmarks.evaluation.predictions import Predictions, load_predictions, predict, save_predictions
from benchmarks.results.base import Bounds
from benchmarks.statistics import intervals
from benchmarks.timing.machine import host
from calibration.datasets import Split
from compress.config import Config
from compress.engines.sidecar import read_sidecar
from compress.engines.stage import build
from compress.errors import PipelineError
from compress.export.stage import export
from compress.graph.plan import WidthPlan
from compress.progress import SILENT, Progress
from compress.prune.stage import PLAN, prune
from compress.quantize.stage import quantize
from compress.registries import BACKENDS
from compress.run import Run, versions
from compress.train.stage import baseline, finetune

DENSE, INT8 = "dense FP32 top-1", "pruned INT8 top-1"
_KEPT = {DENSE: "dense_fp32.npz", INT8: "int8.npz"}  # predictions, beside the baseline file

# The quantities of a new baseline. The tolerances suit the embedded digits; edit them and their reasons in the file.
_RETRAINED = (
    "450 images: the paired interval reaches 0.9 points down where no answer has changed; a network that is trained "
    "anew on another processor changes some, and a net loss of 7 images fails"
)
RULES: Mapping[str, Quantity] = {
    DENSE: Quantity(value=0, bound="least", tolerance=0.03, why=_RETRAINED),
    INT8: Quantity(value=0, bound="least", tolerance=0.03, why=_RETRAINED),
    "INT8 minus dense top-1": Quantity(
        value=0, bound="least", tolerance=0.025, why="450 images, paired within one run: a net loss of 5 of them fails"
    ),
    "INT8 answers as before quantization": Quantity(
        value=0, bound="least", tolerance=0.03, why="450 images: by Wilson's interval, 7 other answers fail"
    ),
    "MACs kept": Quantity(
        value=0,
        bound="both",
        tolerance=0.06,
        why="plans of nearly the same loss differ: two runs on one machine, at one budget, kept 0.40 and 0.42",
    ),
    "parameters kept": Quantity(
        value=0, bound="both", tolerance=0.2, why="as MACs, but the last stage alone decides: 0.40 and 0.56"
    ),
    "file size kept": Quantity(value=0, bound="both", tolerance=0.05, why="a quarter of the parameters', in INT8"),
    "predicted latency kept": Quantity(
        value=0, bound="most", tolerance=0.005, why="by the table of the configuration, so that the budget is exact"
    ),
    "convolutions in INT8": Quantity(value=0, bound="both", tolerance=0, why="which layers fuse depends on no weight"),
    "conversions in the INT8 engine": Quantity(
        value=0, bound="most", tolerance=0, why="one more is a place where the engine has left INT8"
    ),
}


@dataclass(frozen=True)
class Answers:
    """The predictions of a run's networks for the evaluation images.

    Attributes:
        dense: the network before compression.
        pruned: after pruning and fine-tuning, before quantization.
        int8: the engine that was built.
    """

    dense: Predictions
    pruned: Predictions
    int8: Predictions

    @property
    def judged(self) -> dict[str, Predictions]:
        """The predictions that are paired with the baseline's, by the name of the quantity."""
        return {DENSE: self.dense, INT8: self.int8}


def run_stages(config: Config, run: Run) -> None:
    """Run every stage, from the dense network to the engine, unless it is up to date.

    Raises:
        PipelineError: the error of a stage.
    """
    for stage in (baseline, prune, finetune, quantize, export, build):
        stage(config, run)


def answers(config: Config, run: Run, split: Split, progress: Progress = SILENT) -> Answers:
    """Predict the images with the exported networks and with the engine that was built."""
    folder, engine = run.need("export"), _engine(config, run)
    paths = (folder / f"{config.name}_dense_fp32.onnx", folder / f"{config.name}_fp32.onnx", engine)
    return Answers(*(predict(path, split, threads=config.target.threads, progress=progress) for path in paths))


def accuracies(now: Answers, before: Mapping[str, Predictions]) -> dict[str, Bounds]:
    """The accuracies of a run, each with the interval that is compared with the tolerance.

    Args:
        before: predictions of the baseline by quantity, on the same images. The interval of a top-1 is the baseline's
            top-1 plus the paired interval of the change: if the retrained network predicts nearly as the old one did,
            it is half as wide as the interval of the top-1 alone.
    """
    found = {name: _changed(one, before.get(name, one)) for name, one in now.judged.items()}
    found["INT8 minus dense top-1"] = compare(now.int8, now.dense).difference
    same = now.int8.ranked[:, 0] == now.pruned.ranked[:, 0]
    found["INT8 answers as before quantization"] = Bounds.of(intervals.wilson(int(same.sum()), len(same)))
    return found


def costs(config: Config, run: Run) -> dict[str, Bounds]:
    """The network's cost after compression and the engine's operator counts: figures that no machine changes."""
    folder, engine = run.need("export"), _engine(config, run)
    plan = WidthPlan.read(run.need("prune") / PLAN)
    dense = folder / f"{config.name}_dense_fp32.onnx"
    found = {
        "MACs kept": plan.after.macs / plan.before.macs,
        "parameters kept": plan.after.params / plan.before.params,
        "file size kept": engine.stat().st_size / dense.stat().st_size,
    }
    if plan.latency is not None:
        found["predicted latency kept"] = plan.latency[1] / plan.latency[0]
    record = read_sidecar(engine)
    if record is not None and record.engine == "onnxruntime":
        nodes = onnx.load(folder / f"{config.name}_fp32.onnx", load_external_data=False).graph.node
        convolutions = sum(node.op_type == "Conv" for node in nodes)
        found["convolutions in INT8"] = record.operators.get("QLinearConv", 0) / convolutions
        conversions = ("QuantizeLinear", "DequantizeLinear")
        found["conversions in the INT8 engine"] = float(sum(record.operators.get(name, 0) for name in conversions))
    return {name: Bounds(value=value, lo=value, hi=value) for name, value in found.items()}


def kept(path: Path, split: Split) -> dict[str, Predictions]:
    """Read the predictions beside the baseline file ``path``, by quantity.

    Raises:
        DataError: a file is missing, damaged, or of other images.
    """
    return {name: load_predictions(path.parent / file, split) for name, file in _KEPT.items()}


def check(path: Path, config: Config, run: Run, progress: Progress = SILENT) -> list[Check]:
    """Compress with ``config`` in ``run`` and compare the results with the baseline file ``path``.

    Raises:
        PipelineError: a stage fails, the baseline is damaged, or outputs are NaN or infinite.
    """
    known = Baseline.read(path)
    split = evaluation_split(None, config)
    before = kept(path, split)  # fails before hours of training
    run_stages(config, run)
    now = answers(config, run, split, progress)
    _check_finite(now)
    return judge(known.quantities, {**accuracies(now, before), **costs(config, run)})


def update(path: Path, config: Config, run: Run, source: Source, progress: Progress = SILENT) -> list[list[str]]:
    """Compress, and write the results and predictions as the baseline file ``path``.

    A new file has the quantities of ``RULES``; an existing one keeps its quantities, tolerances and reasons.

    Args:
        source: the source of ``config``, to be stored in the file.

    Returns:
        rows of the changes: quantity, before, now, change.
    """
    old = Baseline.read(path).quantities if path.exists() else {}
    run_stages(config, run)
    split = evaluation_split(None, config)
    now = answers(config, run, split, progress)
    _check_finite(now)
    found = {**accuracies(now, {}), **costs(config, run)}
    rules = old or {name: rule for name, rule in RULES.items() if name in found}
    new = {name: rule.model_copy(update={"value": found[name].value}) for name, rule in rules.items() if name in found}
    for name, one in now.judged.items():
        save_predictions(one, split, path.parent / _KEPT[name])
    made = {"date": datetime.now(UTC).date().isoformat(), "processor": host().cpu, "versions": versions()}
    Baseline(source=source, made=made, quantities=new).write(path)
    return [_difference(name, old.get(name), new.get(name)) for name in {**old, **new}]


def _changed(now: Predictions, before: Predictions) -> Bounds:
    """Top-1 now; its interval is the earlier top-1 plus the paired interval of the change."""
    change, top1 = compare(now, before).difference, float(before.right.mean())
    return Bounds(value=top1 + change.value, lo=max(top1 + change.lo, 0.0), hi=min(top1 + change.hi, 1.0))


def _difference(name: str, old: Quantity | None, new: Quantity | None) -> list[str]:
    if old is None or new is None:
        return [name, "" if old is None else f"{old.value:.4g}", "" if new is None else f"{new.value:.4g}", ""]
    return [name, f"{old.value:.4g}", f"{new.value:.4g}", f"{new.value - old.value:+.4g}"]


def _check_finite(now: Answers) -> None:
    for one in (now.dense, now.pruned, now.int8):
        if reasons := result_of(one).verdict.reasons:
            raise NonFiniteError(reasons[0], remedy="check the loss of the last stage that trained: its history.json")


class NonFiniteError(PipelineError):
    """The outputs of a network are NaN or infinite."""

    exit_code = INVALID


def _engine(config: Config, run: Run) -> Path:
    return run.need("build") / f"{config.name}_int8{BACKENDS[config.target.engine].suffix}"
