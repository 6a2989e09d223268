"""Check whether a quantized ONNX file suits its target: what would run in float, not fuse, or not load, and why.

>>> for finding in lint(Path("resnet18_int8.onnx"), "tensorrt"):  # doctest: +SKIP
...     print(finding.severity, finding.node, finding.message)
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from compress.engines.base import metadata_of
from compress.errors import BackendAbsent, ConfigError, ModelError
from compress.export.findings import Finding, Report, describe
from compress.export.judge import ask_parser
from compress.export.qdq import DQ, Graph, Q
from compress.export.rules import RULES
from compress.export.rules.registry import tensorrt_runs
from compress.parse import brief
from compress.progress import SILENT, Progress
from compress.targets import profile

MOST_BYTES = 2**31 - 1  # the limit of a protobuf message


def lint(model: onnx.ModelProto | Path, target: str, float_layers: Collection[str] = ()) -> tuple[Finding, ...]:
    """Compare a quantized file with a target's profile; errors come first.

    Args:
        model: a file, or a model with all its data inside.
        target: a name in ``targets.names()``.
        float_layers: layers meant to stay in float, by the first part of the names of their nodes or initializers.

    Raises:
        ModelError: the file is missing, damaged, not ONNX, or not quantized with Q/DQ.
        ConfigError: an unknown target.
    """
    want = profile(target)
    model, external = _load(model) if isinstance(model, Path) else (model, ())
    graph = Graph(model, float_layers, external)
    _check_quantized(graph)
    found = [
        Finding(rule.name, rule.severity, node, message, rule.remedy.format(target=target, opset=want.opset))
        for rule in RULES
        for node, message in rule.check(graph, want)
    ]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def lint_file(path: Path, target: str | None = None, progress: Progress = SILENT) -> Report:
    """Lint a file for ``target``; default: the target named in the file, with the layers that it leaves in float.

    For a target whose engine has a parser that runs on this machine, the parser reads the file too.

    Raises:
        ModelError, ConfigError: see ``lint``; or the file names no target.
        EngineError: the file's metadata is damaged.
    """
    metadata = metadata_of({entry.key: entry.value for entry in _load(path)[0].metadata_props}, path)
    target = target or (metadata.target if metadata else "")
    if not target:
        raise ConfigError(f"{path} does not say which target it is for", remedy="give one with `--target`")
    return _report(path, target, metadata.float_layers if metadata else (), progress)


def enforce(path: Path, target: str, float_layers: Collection[str] = (), progress: Progress = SILENT) -> None:
    """Lint a file that was just written: report warnings; errors end the stage.

    Raises:
        ModelError: the file does not suit the target; the message contains the first findings.
    """
    report = _report(path, target, float_layers, progress)
    findings = report.findings
    warnings = [finding for finding in findings if finding.severity == "warning"]
    if warnings:
        progress.note(describe(warnings))
    if report.parser:
        progress.note(f"  {path.name} was read by {report.parser}")
    if errors := findings[: len(findings) - len(warnings)]:
        raise ModelError(
            f"{path.name} does not suit target {target}:\n{describe(errors)}",
            remedy="quantize for another target with `--set target.name=...`, or for a copy of this target's profile "
            "in which keep_float names the type of these layers",
        )


def _report(path: Path, target: str, float_layers: Collection[str], progress: Progress) -> Report:
    """The findings of the rules, and of the engine's parser where it is on this machine."""
    model, external = _load(path)
    findings = lint(model, target, float_layers)
    if not tensorrt_runs(profile(target)):
        return Report(str(path), target, findings)
    try:
        parser, more = ask_parser(path, Graph(model, float_layers, external), target, float_layers, findings)
    except BackendAbsent as absent:
        progress.note(f"  note: {path.name} was checked by rules, not by TensorRT's own parser: {absent}")
        return Report(str(path), target, findings)
    errors = [finding for finding in findings if finding.severity == "error"]
    return Report(str(path), target, (*errors, *more, *findings[len(errors) :]), parser)


def _load(path: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Load a complete model, and the names of the tensors that it stores outside of its file."""
    if not path.is_file():
        raise ModelError(f"no such file: {path}", remedy="give an exported .onnx file")
    check_size(path)
    try:
        model = onnx.load(path, load_external_data=False)
        external = tuple(tensor.name for tensor in model.graph.initializer if uses_external_data(tensor))
        load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
        _check_values(model.graph)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError, KeyError, TypeError) as error:
        reason = brief(str(error).strip().partition("\n")[0])
        raise ModelError(
            f"{path} is not a whole ONNX file: {reason}",
            remedy="copy it again with all of its parts, or export it again",
        ) from None
    return model, external


def check_size(path: Path) -> None:
    """Refuse a file that is larger than ONNX allows, before it is loaded into memory.

    Raises:
        ModelError: it is too large.
    """
    if path.is_file() and (size := path.stat().st_size) > MOST_BYTES:
        raise ModelError(f"{path} has {size} bytes; an ONNX file has at most {MOST_BYTES}", remedy="export it again")


def _check_values(graph: onnx.GraphProto) -> None:
    """Check that every constant has as many values as its shape says, and a known type; ONNX does not check this.

    Raises:
        KeyError, TypeError, ValueError: a constant is wrong.
    """
    attributes = (attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t"))
    for tensor in (*graph.initializer, *attributes):
        onnx.numpy_helper.to_array(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)


def _check_quantized(graph: Graph) -> None:
    if any(node.op_type.startswith("QLinear") for node in graph.nodes):
        raise ModelError(
            "the file holds integer operators (QLinearConv, ...), not Q/DQ around float ones",
            remedy="quantize it in the QDQ format, which every engine reads",
        )
    if next(graph.of(Q, DQ), None) is None:
        raise ModelError(
            "the file is not quantized: it has no QuantizeLinear or DequantizeLinear",
            remedy="give the <name>_int8.onnx of `python -m compress export`",
        )
