"""List all JSON files that the project writes, with the class that writes and reads each of them.

``python -m benchmarks.results.schema`` prints their JSON Schema with a description of every field.
``benchmarks/results/result.schema.json`` is its output, and a test checks that it is up to date. The classes are in the
modules beside this one, or in ``compress`` if a stage writes the file.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from benchmarks.evaluation.baseline import Baseline
from benchmarks.profiling.kit import KitManifest, Timed
from benchmarks.results.accuracy import AccuracyResult
from benchmarks.results.answers import PredictFile
from benchmarks.results.fidelity import FidelityResult
from benchmarks.results.latency import LatencyResult, RunComparison
from benchmarks.results.networks import ParetoFile, SummaryFile
from benchmarks.results.nodes import NodeProfile
from benchmarks.results.plans import PlanLatencyFile
from benchmarks.results.rivals import Int8LossesFile, PruningFile, QuantizationFile
from benchmarks.results.trust import TrustFile
from compress.engines.auto import AutoFile
from compress.engines.sidecar import Sidecar
from compress.export.stage import ExportFile
from compress.graph.plan import WidthPlan
from compress.models.model import Description
from compress.prune.allocation.allocate import FrontFile
from compress.prune.latency.confirm import ConfirmedFile
from compress.prune.latency.table import LatencyTable
from compress.prune.losses.store import LossesFile
from compress.prune.sizes import SizesFile
from compress.quantize.quantizer import QuantizersFile
from compress.quantize.sensitivity import SensitivityFile
from compress.quantize.stage import QuantizeFile, Sample
from compress.run import Manifest
from compress.train.history import HistoryFile

AnyResult = Annotated[
    LatencyResult | AccuracyResult | FidelityResult | RunComparison | NodeProfile, Field(discriminator="kind")
]


@dataclass(frozen=True)
class FileKind:
    """A sort of JSON file.

    Attributes:
        made_by: the command that writes it.
        form: the class that writes and reads it.
    """

    made_by: str
    form: Any


_STAGES = "python -m compress {}"
FILES: Mapping[str, FileKind] = {
    "latency --json": FileKind("python -m benchmarks.latency", list[LatencyResult | RunComparison]),
    "latency --export-profile": FileKind("python -m benchmarks.latency", NodeProfile),
    "accuracy --json": FileKind("python -m benchmarks.accuracy", list[AccuracyResult | FidelityResult]),
    "predict --json": FileKind("python -m benchmarks.predict", PredictFile),
    "compare --json": FileKind("python -m benchmarks.compare", list[RunComparison]),
    "plan_latency --json": FileKind("python -m benchmarks.plan_latency", PlanLatencyFile),
    "trust --json": FileKind("python -m benchmarks.trust", TrustFile),
    "summary.json": FileKind("python -m benchmarks.summary", SummaryFile),
    "pareto.json": FileKind("python -m benchmarks.pareto", ParetoFile),
    "baseline.json": FileKind("python -m benchmarks.regression --update", Baseline),
    "quantization.json": FileKind("python -m benchmarks.rivals.quantization", QuantizationFile),
    "pruning.json": FileKind("python -m benchmarks.rivals.pruning", PruningFile),
    "int8_losses --json": FileKind("python -m benchmarks.rivals.int8_losses", Int8LossesFile),
    "latency_table.json": FileKind("python -m benchmarks.latency_table", LatencyTable),
    "manifest.json": FileKind("python -m benchmarks.latency_table --emit-kit", KitManifest),
    "results.jsonl": FileKind("measure.py of a kit, one a line", Timed),
    "stage.json": FileKind(_STAGES.format("STAGE"), Manifest),
    "model.json": FileKind(_STAGES.format("baseline"), Description),
    "history.json": FileKind(_STAGES.format("baseline"), HistoryFile),
    "losses.json": FileKind(_STAGES.format("prune"), LossesFile),
    "plan.json": FileKind(_STAGES.format("prune"), WidthPlan),
    "front.json": FileKind(_STAGES.format("prune"), FrontFile),
    "confirmed.json": FileKind(_STAGES.format("prune"), ConfirmedFile),
    "sizes.json": FileKind(_STAGES.format("prune"), SizesFile),
    "calibration.json": FileKind(_STAGES.format("quantize"), Sample),
    "quantizers.json": FileKind(_STAGES.format("quantize"), QuantizersFile),
    "quantize.json": FileKind(_STAGES.format("quantize"), QuantizeFile),
    "sensitivity.json": FileKind(_STAGES.format("sensitivity"), SensitivityFile),
    "export.json": FileKind(_STAGES.format("export"), ExportFile),
    "ENGINE.json": FileKind(_STAGES.format("build"), Sidecar),
    "auto.json": FileKind(_STAGES.format("build --target auto"), AutoFile),
}


class _Described(GenerateJsonSchema):
    """Take the description of a field from the docstring's ``Attributes:`` if the field itself has none."""

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return _describe(super().dataclass_schema(schema), schema["cls"])

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _describe(super().model_schema(schema), schema["cls"])


def _describe(found: JsonSchemaValue, form: type) -> JsonSchemaValue:
    found["description"] = " ".join(inspect.cleandoc(form.__doc__ or "").partition("\n\n")[0].split())
    for parent in form.__mro__:  # a docstring describes only the fields that its class adds
        for name, text in attributes(inspect.cleandoc(parent.__doc__ or "")).items():
            if name in found.get("properties", {}):
                found["properties"][name].setdefault("description", text)
    return found


def attributes(text: str) -> dict[str, str]:
    """The descriptions in a docstring's ``Attributes:``, by field.

    >>> attributes("Attributes:\\n    low, high: of the range,\\n        in ms.\\n    n: how many.")
    {'low': 'of the range, in ms.', 'high': 'of the range, in ms.', 'n': 'how many.'}
    """
    section = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", section[1], re.MULTILINE)
    return {name: " ".join(said.split()) for names, said in entries for name in names.split(", ")}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of one result; ``files`` has the schema of each sort of file, and ``$defs`` the common parts."""
    adapters = {"": TypeAdapter[Any](AnyResult), **{name: TypeAdapter[Any](kind.form) for name, kind in FILES.items()}}
    found, defs = TypeAdapter.json_schemas(
        [(name, "validation", adapter) for name, adapter in adapters.items()], schema_generator=_Described
    )
    files = {name: {"madeBy": kind.made_by, **found[name, "validation"]} for name, kind in FILES.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Benchmark result",
        **found["", "validation"],
        "files": files,
        **defs,
    }


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of one sort of file, by its name in ``FILES``."""
    whole = json_schema()
    return {"$schema": whole["$schema"], **whole["files"][name], "$defs": whole["$defs"]}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
