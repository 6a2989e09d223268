"""``python -m benchmarks.plan_latency --model RUN/baseline --plan PLAN.json ...``: how fast would these plans be?

Each plan's network is cut out of the exported INT8 file of the unpruned one, without pruning any weights, and timed
against it in one interleaved run. ``python -m compress prune`` asks this of the plans near its budget.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.latency import count
from benchmarks.profiling import kit
from benchmarks.profiling.kit import Effort
from benchmarks.profiling.survey import Piece, Survey
from benchmarks.results.schema import Bounds
from benchmarks.results.tables import interval, show
from benchmarks.statistics.intervals import Rounds, ratio_interval
from compress import targets
from compress.commands import run_command
from compress.config import TargetConfig
from compress.console import Console
from compress.errors import ConfigError
from compress.files import write_json
from compress.models.model import ANY, TRUST, load_model
from compress.prune.allocation.plan import WidthPlan

EFFORT = Effort(rounds=32, round_s=0.03)
DENSE = Piece("dense", "network", "", {})
_HEADER = ["plan", "predicted ms", "latency / unpruned, predicted", "measured"]


def ratios(survey: Survey, plans: Sequence[WidthPlan], target: TargetConfig, effort: Effort = EFFORT) -> list[Bounds]:
    """Latency of each plan's network over the unpruned one's, with 95% intervals.

    Raises:
        EngineError: the engine cannot run one.
    """
    pieces = [piece_of(f"plan{index}", plan) for index, plan in enumerate(plans)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kit.write_files(folder, [DENSE, *pieces], survey.build)
        kit.write_manifest(folder, target, [DENSE, *pieces], survey.weights, effort, {})
        for _ in kit.run_guest(folder):
            pass
        rows = {row.name: row for row in kit.results(folder)}
    found = []
    for piece in pieces:
        row = rows[piece.name]
        ratio = ratio_interval(_medians(row.rounds), _medians(row.reference))
        found.append(Bounds(value=ratio.value, lo=ratio.low, hi=ratio.high))
    return found


def piece_of(name: str, plan: WidthPlan) -> Piece:
    """A plan's network: as many of the first units of each group, as it keeps."""
    return Piece(name, "network", "", {name: len(kept) for name, kept in plan.kept.items()}, removed=plan.removed)


def _medians(rounds: Sequence[Sequence[float]]) -> Rounds:
    return [np.array([median]) for _, median in rounds]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.plan_latency", description=__doc__)
    p.add_argument("--model", type=Path, required=True, metavar="DIR", help="the unpruned network: RUN/baseline")
    p.add_argument("--trust", action="store_true", help=TRUST)
    p.add_argument("--plan", type=Path, nargs="+", required=True, metavar="FILE", help="such as RUN/prune/plan.json")
    p.add_argument("--target", default="ort-x86", choices=targets.names(), help="the INT8 file's (ort-x86)")
    p.add_argument("--engine", help="the one that runs it (the target's own)")
    p.add_argument("--threads", type=count, default=1, help="of the engine (1)")
    p.add_argument("--batch", type=count, default=1, help="batch size (1)")
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: the engine's own")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the answer there")
    return p


def _command(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    given = {"engine": args.engine, "device": args.device}
    chosen = {"name": args.target, "threads": args.threads, "batch": args.batch}
    target = TargetConfig(**chosen, **{key: value for key, value in given.items() if value is not None})
    plans = [WidthPlan.read(path, error=ConfigError) for path in args.plan]
    model = load_model(args.model, ANY if args.trust else "")
    survey = Survey(model.net, model.preprocess, target)
    for path, plan in zip(args.plan, plans, strict=True):
        if not plan.begins_with(survey.coupling) or not survey.segments.keys() >= set(plan.removed):
            raise ConfigError(
                f"{path} is the plan of another network than {args.model}", remedy="give the unpruned one: RUN/baseline"
            )
    found = ratios(survey, plans, target)
    rows = []
    for path, plan, ratio in zip(args.plan, plans, found, strict=True):
        dense, predicted = plan.latency or (0.0, 0.0)
        known = [f"{predicted:.3f}", f"{predicted / dense:.3f}"] if dense else ["", ""]
        rows.append([str(path), *known, interval(ratio, 3)])
    title = f"{target.name} on {target.engine}, {target.threads} thread(s), batch {target.batch}; 95% intervals"
    show(Console(), title, _HEADER, rows)
    if args.json is not None:
        record = {"schema_version": 1, "target": target.model_dump(mode="json"), "effort": asdict(EFFORT)}
        answers = [
            {"plan": str(path), "ratio": ratio.model_dump(mode="json")}
            for path, ratio in zip(args.plan, found, strict=True)
        ]
        write_json(args.json, {**record, "plans": answers})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 error, 2 usage, 5 the engine is absent."""
    return run_command(lambda: _command(argv))


if __name__ == "__main__":
    sys.exit(main())
