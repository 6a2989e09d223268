"""Print accuracies as tables."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results.accuracy import Accuracy, AccuracyResult
from benchmarks.results.fidelity import FidelityResult
from benchmarks.results.tables import interval, percent, points, show
from compress.console import Console


def report(result: AccuracyResult, console: Console, *, classes: bool) -> None:
    """Print the accuracies, the paired comparison and, with ``classes``, the accuracy of every class."""
    row = [Path(result.artifact.path).name, _percent(result.top1), _percent(result.top5), ""]
    rows = [row]
    if (paired := result.paired) is not None:
        row[-1] = points(paired.difference)
        rows.append([Path(paired.against.path).name, _percent(paired.top1), "", ""])
    show(
        console, f"accuracy on {result.images} images, 95% intervals", ["engine", "top-1 %", "top-5 %", "change"], rows
    )
    if paired is not None:
        ratio = "" if paired.ratio is None else f"; ratio {interval(paired.ratio, 4)}"
        console.print(
            f"same answer on {paired.agreement:.1%} of the images; right only here {paired.only_this}, "
            f"only there {paired.only_other} (McNemar p = {paired.mcnemar_p:.3g}){ratio}",
            soft_wrap=True,
        )
    if classes:
        console.print()
        _report_classes(result, console)
    for text in result.warnings:
        console.print(f"warning: {text}", soft_wrap=True)


def report_fidelity(result: FidelityResult, console: Console) -> None:
    """Print how near each output is to that of the other engine."""
    rows = [
        [one.name, "equal" if one.sqnr_db is None else f"{one.sqnr_db:.1f}", f"{one.cosine:.4f}"]
        for one in result.outputs
    ]
    this, other = (Path(one.path).name for one in (result.artifact, result.against))
    show(console, f"{this} against {other} on {result.images} images", ["output", "SQNR dB", "cosine"], rows)
    for text in result.warnings:
        console.print(f"warning: {text}", soft_wrap=True)


def _report_classes(result: AccuracyResult, console: Console) -> None:
    header, others = ["class", "images", "right", "%"], None
    if result.paired is not None:
        header.append("right there")
        others = {one.index: one.correct for one in result.paired.per_class}
    rows = []
    for one in result.per_class:
        cells = [one.name, str(one.images), str(one.correct), f"{100 * one.correct / one.images:.1f}"]
        rows.append(cells if others is None else [*cells, str(others[one.index])])
    show(console, "accuracy by class", header, rows)


def _percent(accuracy: Accuracy | None) -> str:
    return "" if accuracy is None else percent(accuracy.value)
