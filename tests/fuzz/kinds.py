"""Every kind of file that is read, with how it is spoiled and with what then reads and uses it, as the commands do."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import corpus
import mutate
import numpy as np
import torch
from rich.console import Console

from benchmarks import plan_latency
from benchmarks.evaluation import pairing
from benchmarks.evaluation.baseline import Baseline, judge
from benchmarks.evaluation.images import evaluation_split
from benchmarks.evaluation.predictions import load_predictions
from benchmarks.profiling import measure, plans
from benchmarks.profiling import survey as measured
from benchmarks.profiling.survey import Survey
from benchmarks.reporting import comparison, figures
from benchmarks.reporting.accuracy import report
from benchmarks.reporting.page import html, model_card
from benchmarks.reporting.record import read_record
from benchmarks.results.base import Bounds
from benchmarks.results.comparison import Limit, compare_runs
from benchmarks.results.latency import load_latency
from benchmarks.results.tables import show
from calibration.folder import decode, read_folder
from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.transforms import eval_transform
from compress.config import ModelConfig, TargetConfig, describe_config, load_config
from compress.data import data_settings, open_data, preprocess_of
from compress.engines.base import open_engine
from compress.engines.sidecar import read_sidecar, vouched
from compress.errors import ConfigError, PipelineError
from compress.export.lint import lint_file
from compress.export.lower import lower
from compress.export.stage import export
from compress.models import checkpoint
from compress.models.checkpoint import load_trained
from compress.models.cost import count
from compress.models.model import ANY, Model, load_model
from compress.parse import read
from compress.prune.iterative import combined
from compress.prune.latency.table import LatencyTable
from compress.prune.losses.store import _before_a_kill as kept_losses
from compress.prune.losses.store import load_losses
from compress.prune.planner import Origin, RoundStart
from compress.prune.stage import describe
from compress.quantize.stage import QuantizeFile, Sample
from compress.quantize.store import load_calibrated
from compress.run import Run


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        file: in the corpus; empty: there is none, the text is an argument.
        spoil: makes other bytes of it.
        use: reads it and uses what was read, in the corpus' folder.
        share: of all cases, beside the other kinds' shares.
        named: one of these stands in an error's text; none: the file's name.
        native: native code reads it, which the commands open in a process of its own first (``engines.examine``).
        run: the file is a run's; what vouches for it is made anew.
        slow: a case takes seconds: only in the long run.
        special: it may be a folder, a link or a device.
    """

    name: str
    file: str
    spoil: mutate.Mutator
    use: Callable[[], object]
    share: int = 10
    named: tuple[str, ...] = ()
    native: bool = False
    run: bool = False
    slow: bool = False
    special: bool = True


def _console() -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), width=200, highlight=False)


def _checkpoint(name: str) -> None:
    known = {arch: checkpoint.ARCHITECTURES[arch] for arch in ("cifar_resnet20", "resnet18")}
    checkpoint.ARCHITECTURES = known  # looking through all of them for the likely one takes seconds
    net = load_trained(ModelConfig(arch="cifar_resnet20", weights=name))
    with torch.inference_mode():
        net(torch.zeros(1, 3, 8, 8))


def _run_once(model: Model) -> None:
    with torch.inference_mode():
        model.net(model.example())
    count(model.net, model.preprocess.shape)


def _model(folder: str, factory: str = "") -> None:
    _run_once(load_model(Path(folder), factory))


def _checkpoint_engine() -> None:
    with open_engine(Path("model/model.safetensors")) as engine:
        engine.run({"input": np.zeros((1, *engine.inputs[0].shape[1:]), np.float32)})


def _stage() -> None:
    run = Run(Path("run"))
    run.need("prune")
    _report()
    shutil.copytree("run/prune", "other/prune")
    try:
        Run(Path("other")).stage("prune", lambda out, _: (out / "x").write_text("x"), settings={})
    finally:
        shutil.rmtree("other")


def _report() -> None:
    record = read_record(Path("run"))
    html(record)
    model_card(record)


def _drawn() -> None:
    for figure in figures.draw(Path("run")).values():
        figures.svg(figure)


def _calibrated() -> None:
    calibrated = load_calibrated(Path("calibrated"), corpus.ARCH)
    with torch.inference_mode():
        calibrated.fake()(torch.zeros(2, *corpus.PREPROCESS.shape))
    lower(calibrated.net, calibrated.quantizers)


def _export() -> None:
    export(corpus.tiny_config("data.kind=digits"), Run(Path("run")))


def _quantize_record() -> None:
    read(Path("quantized/quantize.json"), QuantizeFile, remedy="run the quantize stage again")


def _sample() -> None:
    read(Path("calibrated/calibration.json"), Sample, remedy="quantize again")


@cache
def _origin() -> tuple[Any, Model, Origin]:
    config = corpus.tiny_config()
    return config, load_model(Path("tiny"), corpus.ARCH), _origin_of(config)


def _origin_of(config: Any) -> Origin:
    return Origin.of(Path("tiny"), corpus.ARCH, config.prune, config.target, Path("run/latency_table.json"))


def _no_scores() -> Any:
    raise AssertionError("losses were given")


def _losses() -> None:
    _, model, origin = _origin()
    start = RoundStart.of(model, origin, origin.plan())
    measured = load_losses(Path("losses"), start.structure)
    planner = start.planner(measured, origin.limits(1, 1), _no_scores)
    planner.plan()
    assert planner.front is not None
    planner.front.to_json()


@cache
def _survey() -> Survey:
    return Survey(load_model(Path("tiny"), ANY).net, corpus.PREPROCESS, TargetConfig())


def _plan_latency() -> None:
    survey = _survey()

    def built(_: Survey, read: Any, target: Any, *, against: Any = None) -> list[Bounds]:
        for plan in read:
            survey.build(plans.piece_of("plan", plan)).to_onnx()
        return [Bounds(value=1, lo=1, hi=1)] * len(read)

    plans.ratios, measured.Survey = built, lambda *_: survey  # type: ignore[assignment, misc]
    plan_latency.Console = lambda **_: _console()  # type: ignore[assignment, misc]
    plan_latency.plan_latency(model=Path("tiny"), trust=True, plans=[Path("plan.json")])


def _round_plan() -> None:
    _, model, origin = _origin()
    before = origin.read(Path("plan.json"))
    start = RoundStart.of(model, origin, before)
    planner = start.planner(load_losses(Path("losses")), origin.limits(1, 1), _no_scores)
    describe(combined(origin.structure.coupling, before, start.names, planner.plan()))


def _table() -> None:
    path = Path("run/latency_table.json")
    table = LatencyTable.read(path)
    model = load_model(Path("tiny"), corpus.ARCH)
    measure.summarize(table, path, _console())
    config = corpus.tiny_config("prune.latency=80%", "prune.macs=90%")
    origin = _origin_of(config)
    start = RoundStart.of(model, origin, origin.plan())
    planner = start.planner(load_losses(Path("losses")), origin.limits(1, 1), _no_scores)
    describe(planner.plan())


def _kit() -> None:
    measure.summarize(measure.import_kit(Path("kit"), TargetConfig()), Path("kit"), _console())


def _predictions() -> None:
    split = corpus.images()
    other = load_predictions(Path("kept.npz"), split)
    this = corpus.predictions_of(Path("other.onnx"), 1)
    result = pairing.result_of(this, other)
    pairing.result_of(other, other)
    report(result, _console(), classes=True)
    assert result.paired is not None
    pairing.Gates(1.0, 0.99).failures(result.paired)


def _latency() -> None:
    before, now = load_latency(Path("a.json")), load_latency(Path("b.json"))
    found = compare_runs(before, now, [Limit("median", 0.05)], allow_different=True)
    comparison.present(_console(), found, "b over a")
    comparison.as_markdown(found, "b over a")


def _baseline() -> None:
    baseline = Baseline.read(Path("baseline.json"))
    with contextlib.suppress(ConfigError):  # the command says which baseline it is that names it
        baseline.source.load()
    checks = judge(baseline.quantities, {name: Bounds(value=1, lo=1, hi=1) for name in baseline.quantities})
    show(
        _console(), "checks", ["quantity", "baseline", "now", "allowed", "verdict"], [check.cells() for check in checks]
    )
    for check in checks:
        str(check)


def _sidecar() -> None:
    engine = Path("build/tiny_int8.onnx")
    read_sidecar(engine)
    record = vouched(engine, engine="onnxruntime")
    assert record is not None


def _plan_sidecar() -> None:
    vouched(Path("build/net.plan"), engine="tensorrt", version="10.0.1", device="a GPU")


def _plan_file() -> None:
    open_engine(Path("build/net.plan"), trust=True)


def _opened(path: str) -> None:
    with open_engine(Path(path)) as engine:
        shapes = {spec.name: (tuple(dim or 1 for dim in spec.shape), spec.dtype) for spec in engine.inputs}
        engine.run({name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()})
        if engine.metadata is not None:
            str(engine.metadata)


def _lint() -> None:
    lint_file(Path("build/tiny_int8.onnx"), "ort-x86").to_json()
    str(lint_file(Path("build/tiny_int8.onnx")))


def _listed() -> None:
    split = read_folder(Path("listed"), "eval")
    next(iter(batches(split, eval_transform(Preprocess(8, 8)), 32)))


def _folders() -> None:
    split = evaluation_split("folders")
    next(iter(batches(split, eval_transform(Preprocess(8, 8)), 32)))


def _image(name: str) -> None:
    decode(Path(name))


def _config() -> None:
    config = load_config(Path("config.toml"))
    preprocess_of(config.data)
    describe_config(config)
    _ = config.name
    if config.data.kind == "imagefolder":
        open_data(config.data, config.run.seed)
        data_settings(config.data)


def _override(text: str) -> None:
    for path in (None, Path("config.toml")):
        config = load_config(path, [text])
        preprocess_of(config.data)
        describe_config(config)


def _training() -> None:
    corpus.resume(Path("scratch"))


def _resealed(data: bytes, rng: Random) -> bytes:
    """A state file that is damaged, or whose digest is right again."""
    import hashlib

    from compress.train.snapshot import _MAGIC

    if rng.random() < 0.2:
        return mutate.damaged(data, rng)
    start = len(_MAGIC) + hashlib.sha256().digest_size
    content = mutate.torch_file(data[start:], rng)
    return _MAGIC + hashlib.sha256(content).digest() + content


_OVERRIDES = [
    f"{section}.{key}"
    for section, field in type(load_config(None)).model_fields.items()
    for key in getattr(field.annotation, "model_fields", {})
]


def _json(name: str, file: str, use: Callable[[], object], share: int = 10, **more: Any) -> Kind:
    return Kind(name, file, mutate.json_file, use, share, **more)


def _kinds() -> Iterator[Kind]:
    yield Kind("checkpoint .pth", "w.pth", mutate.torch_file, partial(_checkpoint, "w.pth"), 25)
    yield Kind("checkpoint legacy", "legacy.pth", mutate.torch_file, partial(_checkpoint, "legacy.pth"), 20)
    yield Kind(
        "checkpoint .safetensors", "w.safetensors", mutate.safetensors_file, partial(_checkpoint, "w.safetensors"), 20
    )
    yield _json("model.json", "model/model.json", partial(_model, "model"), 30, named=("model.json", "in model"))
    yield _json(
        "model.json of a factory",
        "tiny/model.json",
        partial(_model, "tiny", corpus.ARCH),
        15,
        named=("model.json", "in tiny"),
    )
    yield Kind("model.safetensors", "model/model.safetensors", mutate.safetensors_file, _checkpoint_engine, 15)
    yield _json("stage.json", "run/prune/stage.json", _stage, 2, named=("stage.json", "run/prune", "in run"))
    yield Kind("training.pt", "scratch/training.pt", _resealed, _training, 20, named=("training.pt", "the loss became"))
    yield _json("quantizers.json", "calibrated/quantizers.json", _calibrated, 25)
    yield _json("quantize.json", "quantized/quantize.json", _quantize_record, 8)
    yield _json("calibration.json", "calibrated/calibration.json", _sample, 8)
    yield _json("export: quantizers.json", "run/quantize/quantizers.json", _export, 1, run=True, slow=True)
    yield _json("export: quantize.json", "run/quantize/quantize.json", _export, 1, run=True, slow=True)
    yield _json("losses.json", "losses/losses.json", _losses, 25)
    yield _json(
        "losses.json of a kill",
        "scratch_losses.json",
        lambda: kept_losses(Path("scratch_losses.json"), _origin()[2].structure.coupling),
        8,
    )
    yield _json("losses.json, drawn", "run/losses/obs-1/losses.json", _report, 2, run=True)
    yield _json("plan.json, timed", "plan.json", _plan_latency, 25)
    yield _json("plan.json of a round", "plan.json", _round_plan, 20)
    yield _json("plan.json, reported", "run/prune/plan.json", _report, 3, run=True)
    yield _json("confirmed.json", "run/prune/confirmed.json", _report, 3, run=True)
    yield _json("sensitivity.json", "run/sensitivity/sensitivity.json", _report, 3)
    yield _json("summary.json", "run/summary.json", _report, 5)
    yield _json("pareto.json", "run/pareto/pareto.json", _report, 3)
    yield _json("front.json", "run/prune/front.json", _drawn, 8, run=True)
    yield _json("latency_table.json", "run/latency_table.json", _table, 35)
    yield _json("latency_table.json, reported", "run/latency_table.json", _report, 2, run=True)
    yield _json("kit manifest.json", "kit/manifest.json", _kit, 35, named=("manifest.json", "results.jsonl"))
    yield Kind("kit results.jsonl", "kit/results.jsonl", mutate.json_lines, _kit, 30)
    yield Kind("predictions .npz", "kept.npz", mutate.npz_file, _predictions, 25)
    yield _json("latency results", "a.json", _latency, 30)
    yield _json("regression baseline.json", "baseline.json", _baseline, 20)
    yield _json("sidecar of an ONNX file", "build/tiny_int8.onnx.json", _sidecar, 10, named=("tiny_int8.onnx",))
    yield _json("sidecar of a plan", "build/net.plan.json", _plan_sidecar, 10, named=("net.plan",))
    yield Kind(".plan", "build/net.plan", mutate.damaged, _plan_file, 3, named=("net.plan", "TensorRT"))
    yield Kind(".onnx, linted", "build/tiny_int8.onnx", mutate.onnx_file, _lint, 25, native=True)
    yield Kind(
        ".onnx, run",
        "build/tiny_int8.onnx",
        mutate.onnx_file,
        partial(_opened, "build/tiny_int8.onnx"),
        20,
        native=True,
    )
    yield Kind(
        ".onnx float, run",
        "build/tiny_fp32.onnx",
        mutate.onnx_file,
        partial(_opened, "build/tiny_fp32.onnx"),
        20,
        native=True,
    )
    yield Kind(
        "OpenVINO .xml", "ov/tiny_int8.xml", mutate.xml_file, partial(_opened, "ov/tiny_int8.xml"), 6, native=True
    )
    yield Kind(
        "OpenVINO .bin",
        "ov/tiny_int8.bin",
        mutate.damaged,
        partial(_opened, "ov/tiny_int8.xml"),
        2,
        native=True,
        named=("tiny_int8",),
    )
    yield Kind("labels.csv", "listed/labels.csv", mutate.csv_file, _listed, 20, named=("labels.csv", "listed"))
    for name in ("a/a.png", "b/b.jpg", "c/c.gif", "d/d.bmp", "e/e.webp", "f/f.tif", "g/g.ppm"):
        suffix = name.rpartition(".")[2]
        yield Kind(f"image .{suffix}", f"folders/{name}", mutate.image_file, partial(_image, f"folders/{name}"), 6)
    yield Kind("image folder", "folders/a/a.png", mutate.image_file, _folders, 8, named=("a.png", "folders"))
    yield Kind("config .toml", "config.toml", mutate.toml_file, _config, 30, named=("config.toml", "data.", "folders"))
    yield Kind("--set", "", lambda _, rng: mutate.override(rng, _OVERRIDES).encode(), lambda: None, 30, named=("",))


KINDS = {kind.name: kind for kind in _kinds()}


def counts(total: int, *, slow: bool) -> dict[str, int]:
    """How many cases of each kind, by their shares of ``total``."""
    chosen = [kind for kind in KINDS.values() if slow or not kind.slow]
    shares = sum(kind.share for kind in chosen)
    return {kind.name: max(1, round(total * kind.share / shares)) for kind in chosen}


@contextmanager
def spoiled(kind: Kind, number: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Case ``number`` of a kind, in the place of the corpus' file while the block lasts: what it is, and its use.

    Case 0 is the corpus' own file, which must be accepted.
    """
    if number == 0:
        yield "as it was made", kind.use if kind.file else partial(_override, "run.seed=1")
        return
    rng = Random(f"{kind.name} {number}")
    if not kind.file:
        text = kind.spoil(b"", rng).decode("utf-8", "surrogatepass")
        yield f"--set {text[:100]!r}", partial(_override, text)
        return
    path = Path(kind.file)
    whole = path.read_bytes()
    try:
        if kind.special and rng.random() < 0.03:
            chosen = rng.choice([one for one in mutate.SPECIAL if not (kind.run and one == "huge")])
            mutate.special(path, chosen)
            what = f"{kind.file} is {chosen}"
        else:
            spoilt = kind.spoil(whole, rng)
            path.write_bytes(spoilt)
            what = f"{kind.file}: {len(whole)} bytes are {len(spoilt)}"
        if kind.run:
            corpus.reseal(Path("run"))
        yield what, kind.use
    finally:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)
        path.write_bytes(whole)


def fault(kind: Kind, error: BaseException) -> str:
    """What is wrong with the way in which a spoilt file was refused; empty where nothing is."""
    text = str(error)
    if not isinstance(error, PipelineError):
        return f"{type(error).__name__}: {text[:300]}"
    names = kind.named or (Path(kind.file).name,)
    if not any(name in text for name in names):
        return f"names no file: {text[:300]}"
    if "please report" in text:
        return f"asks to be reported: {text[:300]}"
    if "allocate" in text or "bad_alloc" in text:
        return f"ran out of memory: {text[:300]}"
    return f"an error of {len(text)} characters: {text[:300]}" if len(text) > 4000 else ""


__all__ = ["KINDS", "Kind", "counts", "fault", "spoiled"]
