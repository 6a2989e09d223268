"""One small valid file of every kind that is read, made by the project itself; the same bytes each time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from benchmarks.evaluation.pairing import result_of
from benchmarks.evaluation.predictions import Predictions, save_predictions
from benchmarks.profiling import kit
from benchmarks.profiling.kit import FAST
from benchmarks.profiling.measure import import_kit, reference_piece
from benchmarks.profiling.plans import DENSE
from benchmarks.profiling.survey import Survey
from benchmarks.results.base import Artifact, BackendInfo, Host, dump
from benchmarks.results.latency import LatencyResult
from benchmarks.results.networks import MeasuredNetwork, ParetoFile, SummaryFile
from benchmarks.timing.result import summarize
from calibration.preprocess import Preprocess
from calibration.split import ArraySource, Split
from compress.config import Config, TargetConfig, load_config
from compress.engines.base import build_engine
from compress.engines.metadata import Metadata
from compress.engines.sidecar import write_sidecar
from compress.files import MANIFEST, file_sha256, tree_sha256, write_json
from compress.graph.plan import WidthPlan
from compress.graph.structure import Structure
from compress.models.model import Model, save_model
from compress.models.registry import build
from compress.prune.allocation.cost import WidthCost
from compress.prune.iterative import untouched
from compress.prune.latency.machine import here
from compress.prune.losses.curves import Curve
from compress.quantize.stage import quantize
from compress.run import Run
from compress.train.loop import fit
from compress.train.snapshot import StateFile

ARCH, SIZE = "tiny_resnet:TinyResNet", 8
PREPROCESS = Preprocess(size=SIZE)
CLASSES = tuple("0123456789")
HOST = Host(cpu="a processor", cores=2, memory_bytes=1 << 33, system="a system", python="3", gpus=[], libraries={})
DATE = "2026-01-01T00:00:00+00:00"


def tiny_config(*more: str) -> Config:
    """What the tiny network's run is made with; the paths are from the corpus' folder."""
    chosen = (f"model.arch={ARCH}", f"data.input_size={SIZE}", "run.dir=run", "run.name=tiny")
    return load_config(None, [*chosen, "quantize.calibration_images=20", "prune.macs=70%", "prune.multiple=4", *more])


def images(count: int = 12) -> Split:
    """Noise, with labels in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return ArraySource("noise", pixels).split("eval", CLASSES, np.arange(count) % len(CLASSES))


def make(home: Path) -> None:
    """Write the corpus into ``home``, which is the working directory."""
    torch.manual_seed(0)
    _checkpoints(home)
    net = build(ARCH, len(CLASSES)).eval()
    model = Model(net, ARCH, PREPROCESS, CLASSES)
    _run(home, model)
    _pruned(home, model)
    _training(home, model)
    _predictions(home)
    _engines(home)
    _data(home)
    _config(home)


def _checkpoints(home: Path) -> None:
    net = build("cifar_resnet20", 10).eval()
    state = net.state_dict()
    torch.save(state, home / "w.pth")
    torch.save({"state_dict": state}, home / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, home / "w.safetensors")
    save_model(Model(net, "cifar_resnet20", Preprocess(size=16), CLASSES), home / "model")


def _run(home: Path, model: Model) -> None:
    """A run from the baseline to the quantized network, by its own stages."""
    run, config = Run(Path("run")), tiny_config()
    for stage in ("baseline", "finetune"):
        run.stage(stage, lambda out, _: save_model(model, out), settings={})
    quantized = quantize(config, run)
    calibrated = next((home / "run" / "calibrations").iterdir())
    for source, name in ((quantized, "quantized"), (calibrated, "calibrated"), (run.folder("baseline"), "tiny")):
        shutil.copytree(source, home / name, ignore=shutil.ignore_patterns(MANIFEST))  # nothing but its form is checked


def _pruned(home: Path, model: Model) -> None:
    """What pruning leaves, and what is measured of a run; figures are made up, names are the network's."""
    survey = Survey(model.net, PREPROCESS, TargetConfig())
    metadata = Metadata("tiny", "fp32", PREPROCESS, CLASSES, 1000, 100, "", "1")

    def export(out: Path, _: Path) -> None:
        _save(
            survey.build(DENSE).to_onnx(), replace(metadata, precision="int8", target="ort-x86"), out / "tiny_int8.onnx"
        )
        for name in ("tiny_fp32.onnx", "tiny_dense_fp32.onnx"):
            _save(_float_model(model.net), metadata, out / name)

    _kit(home / "kit", survey)
    table = replace(import_kit(Path("kit"), TargetConfig()), imported=False)
    place = here(TargetConfig())
    assert place is not None
    table = replace(table, place=place)
    run = Run(Path("run"))
    table.write(run.directory / "latency_table.json")
    structure = Structure.of(model.net, PREPROCESS.shape)
    coupling = structure.coupling
    cost = WidthCost(model.net, coupling, PREPROCESS.shape)
    whole = untouched(coupling, cost.of(cost.full), 2.0)
    groups = tuple(replace(g, after=g.before // 2, kept=g.kept[: len(g.kept) // 2]) for g in whole.groups)
    removable = [segment.name for segment in structure.segments if segment.removable]
    plan = replace(whole, groups=groups, latency=(2.0, 1.0))
    curves = {
        g.name: asdict(Curve((g.units // 4, g.units // 2, g.units), (0.5, 0.1, 0.0), tuple(range(g.units))))
        for g in coupling
    }
    record = {"groups": curves, "removals": dict.fromkeys(removable, 0.2)}

    def losses(out: Path, _: Path) -> None:
        write_json(out / "losses.json", record)

    def prune(out: Path, _: Path) -> None:
        save_model(model, out)
        write_json(out / "plan.json", plan.to_json())
        write_json(out / "front.json", {"kind": "latency", "cost": [0.5, 1.0, 2.0], "loss": [1.0, 0.1, 0.0], "full": 2})
        tried = {"limit_ms": 1.0, "predicted_ms": 1.0, "share": {"value": 0.5, "lo": 0.4, "hi": 0.6}, "ms": 1.1}
        write_json(out / "confirmed.json", {"tried": [tried, tried], "limit_ms": 1, "taken": 0})

    def sensitivity(out: Path, _: Path) -> None:
        layers = [{"layer": "stem", "alone": 30.0, "without": 25.0, "output": 28.0}]
        layers.append({"layer": "fc", "alone": None, "without": None, "output": 20.0})  # type: ignore[dict-item]
        write_json(out / "sensitivity.json", {"whole": 20.0, "layers": layers})

    measured = Run(run.directory / "losses").stage("obs-1", losses, settings={})
    budgets = {"latency": "50%", "macs": None, "params": None}
    parents = [run.directory / "latency_table.json", measured]
    pruned = run.stage("prune", prune, settings={"prune": budgets}, parents=parents)
    run.stage("sensitivity", sensitivity, settings={})
    shutil.rmtree(run.folder("finetune"))
    run.stage("finetune", lambda out, _: save_model(model, out), settings={}, parents=[pruned])
    write_json(home / "plan.json", whole.to_json())
    write_json(home / "losses" / "losses.json", record)
    write_json(home / "scratch_losses.json", curves)
    run.stage("export", export, settings={}, parents=[run.folder("finetune")])
    _measured(home, run, plan)
    for manifest in home.rglob(MANIFEST):  # the time that it took is not the same each time
        write_json(manifest, {**json.loads(manifest.read_text()), "seconds": 1.0})
    reseal(home / "run")


def _save(model: onnx.ModelProto, metadata: Metadata, path: Path) -> None:
    helper.set_model_props(model, metadata.to_props())
    onnx.save(model, path)


def _float_model(net: nn.Module) -> onnx.ModelProto:
    """The stem and the classifier of the tiny network; torch's own export would take seconds."""
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    chosen = ("stem.weight", "stem.bias", "fc.weight", "fc.bias")
    nodes = [
        helper.make_node("Conv", ["input", *chosen[:2]], ["stem"], name="stem", pads=[1] * 4),
        helper.make_node("Relu", ["stem"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", *chosen[2:]], ["logits"], name="fc", transB=1),
    ]
    ends = (("input", PREPROCESS.shape), ("logits", (len(CLASSES),)))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in ends]
    held = [numpy_helper.from_array(weights[name], name) for name in chosen]
    graph = helper.make_graph(nodes, "tiny", infos[:1], infos[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def reseal(run: Path) -> None:
    """Make the manifests of a run say what its files are now: what is fuzzed is what reads a file, not who vouches."""
    pruned = [run / "latency_table.json", *(run / "losses").glob("obs-*")]
    parents = {"prune": pruned, "finetune": [run / "prune"], "export": [run / "finetune"]}
    for folder in (*(run / "losses").glob("obs-*"), *(run / name for name in ("prune", "finetune", "export"))):
        manifest = folder / MANIFEST
        if not manifest.is_file():
            continue
        record = json.loads(manifest.read_text())
        record["outputs"] = {n: file_sha256(folder / n) for n in record["outputs"] if (folder / n).is_file()}
        if folder.name in parents:
            record["parents"] = {
                str(Path("run") / p.relative_to(run)): tree_sha256(p) for p in parents[folder.name] if p.exists()
            }
        manifest.write_text(json.dumps(record))


def _kit(folder: Path, survey: Survey) -> None:
    target, kinds = TargetConfig(), list(survey.kinds.values())
    pieces = [*survey.ladders(), *survey.ends(), *survey.design(kinds), *survey.networks(kinds, 4, 2)]
    pieces = list({piece.name: piece for piece in pieces}.values())
    reference = reference_piece(survey)
    kit.write_manifest(folder, kit.KitManifest.of_kit(survey, target, [reference, *pieces], FAST))
    place = {"version": "1", "device": "a processor", "machine": "x86_64", "pair_sums": "int32"}
    rows = []
    for piece in pieces:
        ms = 0.05 + 0.001 * sum(piece.units.values() or [64]) * piece.copies
        timed = {"rounds": [[ms, ms * 1.1], [ms * 1.01, ms * 1.2]], "reference": [[1.0, 1.1], [1.0, 1.2]]}
        rows.append({"name": piece.name, **timed, "place": place})
    (folder / kit.RESULTS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _measured(home: Path, run: Run, plan: WidthPlan) -> None:
    files = [run.folder("export") / f"tiny_{kind}.onnx" for kind in ("dense_fp32", "int8")]
    dense, int8 = (latency_of(path, ms) for path, ms in zip(files, (2.0, 1.0), strict=True))
    ratio = {"value": 0.5, "lo": 0.49, "hi": 0.51}
    compared = {"baseline": str(files[0]), "ratio": ratio}
    int8 = LatencyResult.model_validate({**int8.model_dump(), "comparison": compared})
    answers = [predictions_of(path, seed) for seed, path in enumerate(files)]
    right = [result_of(answers[0]), result_of(answers[1], answers[0])]
    right = [one.model_copy(update={"host": HOST, "date": DATE, "run_id": "0"}) for one in right]
    metadata = Metadata("tiny", "int8", PREPROCESS, CLASSES, 1000, 100, "ort-x86", "1")
    rows = [
        MeasuredNetwork.of("dense FP32", replace(metadata, precision="fp32", target=""), right[0], dense),
        MeasuredNetwork.of("pruned INT8", metadata, right[1], int8),
    ]
    title = "tiny: a title; of two parts"
    SummaryFile(title=title, rows=tuple(rows), plan=plan).write(run.directory / "summary.json")
    ParetoFile(title=title, rows=tuple(rows)).write(run.directory / "pareto" / "pareto.json")
    for name, results in (("a", (dense, int8)), ("b", (latency_of(files[0], 2.1), latency_of(files[1], 1.1)))):
        (home / f"{name}.json").write_text(dump(results))
    quantity = {"value": 0.99, "bound": "least", "tolerance": 0.02, "why": "450 images"}
    source = {"config": None, "overrides": ["run.seed=1"]}
    record = {"schema_version": 1, "source": source, "made": {"on": DATE}, "quantities": {"top1": quantity}}
    write_json(home / "baseline.json", record)


def artifact_of(path: Path) -> Artifact:
    return Artifact(path=str(path), sha256="0" * 64, bytes=1000, parents={})


BACKEND = BackendInfo(name="onnxruntime", version="1", requested="CPU", actual="CPU")


def predictions_of(path: Path, seed: int) -> Predictions:
    ranked = np.array([np.random.default_rng([seed, i]).permutation(10)[:5] for i in range(12)])
    return Predictions(artifact_of(path), BACKEND, {}, CLASSES, images().labels, ranked, True, ())


def latency_of(path: Path, ms: float) -> LatencyResult:
    rng = np.random.default_rng(0)
    rounds = [ms * np.exp(rng.normal(0, 0.01, 8)) for _ in range(6)]
    nothing: Mapping[str, Any] = dict.fromkeys(
        ("load_1min", "busy_percent", "governor", "frequency_mhz", "temperature_c", "affinity", "throttled")
    )
    state = {**nothing, "available_bytes": 1 << 30, "gpus": []}
    shape: Sequence[int] = (1, 3, SIZE, SIZE)
    scenario = {"name": "single-stream", "batch": 1, "shape": shape, "inputs": "noise", "pool": 4, "inner": 1}
    scenario |= {"streams": 1, "processes": 3, "rounds": 6, "processors": [[0]], "interleaved_with": [], "failed": {}}
    interval = {"value": 1000 / ms, "lo": 999 / ms, "hi": 1001 / ms}
    record = {
        "run_id": "0",
        "date": DATE,
        "tool": {"version": "1", "git_sha": None},
        "argv": ["a", "b"],
        "config": {"threads": 1, "affinity": None},
        "artifact": artifact_of(path),
        "backend": BACKEND,
        "host": HOST,
        "modes": {"threads": 1},
        "warnings": ["a warning"],
        "verdict": {"status": "VALID", "reasons": []},
        "device": "cpu",
        "scenario": scenario,
        "stats": {"latency_ms": summarize(rounds)},
        "load_ms": 10.0,
        "first_inference_ms": 3.0,
        "peak_memory_bytes": 1 << 27,
        "throughput": interval,
        "outliers": 0,
        "samples_ns": [[round(x * 1e6) for x in one] for one in rounds],
        "monitor": {"before": state, "after": state},
        "contention": {"waited": 0.0, "others": 0.0},
        "pace": {"sha256": "0", "version": "1", "rounds_ms": [0.5, 0.51, 0.52, 0.5, 0.5, 0.5]},
        "work": {"macs": 1000, "precision": "int8", "gmacs_per_s": 1.0, "peak_gmacs_per_s": 2.0},
        "comparison": None,
    }
    return LatencyResult.model_validate(record)


def training_net() -> nn.Module:
    torch.manual_seed(0)
    return build(ARCH, len(CLASSES))


def resume(scratch: Path) -> None:
    """The training whose state is in the corpus: two epochs, of which one is done."""
    split = images()
    fit(training_net(), split, split, Preprocess(SIZE, 8), Config().train, epochs=2, seed=0, scratch=scratch)


def _training(home: Path, model: Model) -> None:
    save = StateFile.save

    def first(self: StateFile, *arguments: Any) -> None:
        if not self.path.exists():
            save(self, *arguments)

    StateFile.save = first  # type: ignore[method-assign]
    try:
        (home / "scratch").mkdir()
        resume(Path("scratch"))
    finally:
        StateFile.save = save  # type: ignore[method-assign]


def _predictions(home: Path) -> None:
    save_predictions(predictions_of(Path("net.onnx"), 0), images(), home / "kept.npz")


def _engines(home: Path) -> None:
    exported = Path("run") / "export"
    (home / "build").mkdir()
    build_engine("onnxruntime", exported / "tiny_int8.onnx", Path("build"), TargetConfig())
    shutil.copyfile(exported / "tiny_fp32.onnx", "build/tiny_fp32.onnx")
    (home / "build" / "net.plan").write_bytes(bytes(range(256)) * 8)
    facts = {"engine": "tensorrt", "version": "10.0.1", "device": "a GPU", "threads": 1, "batch": 1}
    write_sidecar(Path("build/net.plan"), exported / "tiny_fp32.onnx", None, **facts)
    build_engine("openvino", exported / "tiny_int8.onnx", Path("ov"), TargetConfig(name="openvino", engine="openvino"))
    (home / "ov" / "tiny_int8.xml.json").rename(home / "ov" / "sidecar.json")  # put beside where it is what is fuzzed


def _data(home: Path) -> None:
    pixels = images()
    (home / "listed" / "images").mkdir(parents=True)
    rows = ["file,label,comment"]
    for i in range(6):
        pixels.image(i).save(home / "listed" / "images" / f"{i}.png")
        rows.append(f'{i}.png,{i % 3},"a, b"')
    (home / "listed" / "labels.csv").write_text("\n".join(rows) + "\n")
    palette = pixels.image(0).convert("P")
    for name, image, options in (
        ("a.png", pixels.image(0), {}),
        ("b.jpg", pixels.image(1), {"exif": _rotated()}),
        ("c.gif", palette, {"transparency": 3}),
        ("d.bmp", pixels.image(2), {}),
        ("e.webp", pixels.image(3), {}),
        ("f.tif", pixels.image(4), {"compression": "tiff_lzw"}),
        ("g.ppm", pixels.image(5), {}),
    ):
        (folder := home / "folders" / name[0]).mkdir(parents=True)
        image.save(folder / name, **options)


def _rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _config(home: Path) -> None:
    (home / "config.toml").write_text("""\
[run]
dir = "runs/mine"
seed = 3
[model]
arch = "cifar_resnet20"
args = { num_classes = 10 }
[data]
kind = "imagefolder"
train = "folders"
input_size = 8
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
workers = 0
holdout = 0.0
[target]
name = "ort-x86"
threads = 1
[target.tensorrt]
workspace_mb = 1024
[prune]
macs = "50%"
keep = ["layer1.*"]
max_ratio = 0.75
[train]
epochs = 1
lr = 0.1
step_epochs = [1, 2]
[quantize]
mode = "ptq"
max_drop = 1.0
""")
