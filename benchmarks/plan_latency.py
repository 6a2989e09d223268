"""``python -m benchmarks.plan_latency --model RUN/baseline --plan PLAN.json ...``: measure the latency of plans."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from benchmarks.cli import OUTPUT, SCENARIO, Count, Device, Folder, Target, TrustFactory, run
from compress.commands import command_line
from compress.console import Console
from compress.errors import ConfigError

_HEADER = ["plan", "predicted ms", "latency / unpruned, predicted", "measured"]


def plan_latency(
    *,
    model: Folder,
    plans: Annotated[list[Path], Parameter(name="--plan", metavar="FILE", consume_multiple=1)],
    against: Folder | None = None,
    trust: TrustFactory = False,
    target: Annotated[Target, Parameter(group=SCENARIO)] = "ort-x86",
    engine: Annotated[str | None, Parameter(group=SCENARIO)] = None,
    threads: Annotated[Count, Parameter(group=SCENARIO)] = 1,
    batch: Annotated[Count, Parameter(group=SCENARIO)] = 1,
    device: Annotated[Device | None, Parameter(group=SCENARIO)] = None,
    json: Annotated[Path | None, Parameter(metavar="FILE", group=OUTPUT)] = None,
) -> int:
    """Measure the latency of pruning plans, without pruning a network.

    The network of each plan is cut out of the unpruned network's exported INT8 file and timed against it in one
    interleaved run. The stage prune runs this command for the plans near its budget.

    Exit code: 0, 1 error, 2 usage, 5 engine absent.

    Args:
        model: Folder of the unpruned network: RUN/baseline.
        plans: Plan files, such as RUN/prune/plan.json.
        against: Folder of another network to time the plans against: the same one at another input size.
        engine: The engine that runs the file; default: the target's own.
        threads: Intra-op threads.
        batch: Batch size.
        device: Default: the engine's own.
        json: Write the result as JSON.
    """
    from benchmarks.profiling.plans import EFFORT, ratios
    from benchmarks.profiling.survey import Survey
    from benchmarks.results.plans import PlanLatencyFile, PlanRatio
    from benchmarks.results.tables import interval, show
    from compress.config import TargetConfig
    from compress.graph.plan import WidthPlan
    from compress.models.model import ANY, load_model

    given = {"engine": engine, "device": device}
    chosen = {"name": target, "threads": threads, "batch": batch}
    profile = TargetConfig(**chosen, **{key: value for key, value in given.items() if value is not None})
    read = [WidthPlan.read(path, error=ConfigError) for path in plans]
    network = load_model(model, ANY if trust else "")
    survey = Survey(network.net, network.preprocess, profile)
    for path, plan in zip(plans, read, strict=True):
        if not plan.begins_with(survey.coupling) or not survey.segments.keys() >= set(plan.removed):
            raise ConfigError(
                f"{path} is the plan of another network than {model}",
                remedy="give the folder of the unpruned network with --model: RUN/baseline",
            )
    other = None
    if against is not None:
        unpruned = load_model(against, ANY if trust else "")
        other = Survey(unpruned.net, unpruned.preprocess, profile)
    found = ratios(survey, read, profile, against=other)
    rows = []
    for path, plan, ratio in zip(plans, read, found, strict=True):
        dense, predicted = plan.latency or (0.0, 0.0)
        known = [f"{predicted:.3f}", f"{predicted / dense:.3f}"] if dense else ["", ""]
        rows.append([str(path), *known, interval(ratio, 3)])
    title = f"{profile.name} on {profile.engine}, {threads} thread(s), batch {batch}; 95% intervals"
    show(Console(), title, _HEADER, rows)
    if json is not None:
        answers = tuple(PlanRatio(plan=str(path), ratio=ratio) for path, ratio in zip(plans, found, strict=True))
        PlanLatencyFile(target=profile, effort=EFFORT, plans=answers).write(json)
    return 0


app = command_line("python -m benchmarks.plan_latency")
app.default(plan_latency)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``plan_latency``."""
    return run(app, argv)


if __name__ == "__main__":
    sys.exit(main())
