"""Stage ``export``: ONNX files of the network before and after compression, checked against torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from calibration.loader import batches
from calibration.preprocess import Preprocess
from calibration.transforms import eval_transform
from compress import __version__
from compress.config import Config
from compress.data import open_data
from compress.engines.metadata import Metadata
from compress.errors import ConfigError
from compress.export.integer import IntegerNetwork, simulates
from compress.export.lint import enforce
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.export.parity import (
    FP32_ERROR,
    INT8_ERROR,
    INTEGER_ERROR,
    NATIVE,
    Parity,
    Reference,
    Runner,
    check,
    runner_for,
)
from compress.files import write_json
from compress.lead import lead_stage
from compress.models.cost import count
from compress.models.model import Model, load_model
from compress.parse import Count, read
from compress.quantize.calibrate import Calibrated
from compress.quantize.fakequant import at_quantizers
from compress.quantize.fold import fold
from compress.quantize.quantizable import in_float
from compress.quantize.stage import ALL_INT8, RECORD, QuantizeFile
from compress.quantize.store import load_calibrated
from compress.run import Run
from compress.targets import Profile

PARITY_IMAGES = 64
INTEGERS = "its own integers"


@dataclass(frozen=True)
class Exported:
    """One file of ``export.json``.

    Attributes:
        bytes: size of the file.
        parity: the difference from each computation that it was compared with, by that one's name.
    """

    bytes: Count
    parity: Mapping[str, Parity]


ExportFile = dict[str, Exported]
"""What ``export.json`` holds, by the name of the exported file."""


def export(config: Config, run: Run, *, source: str = "finetune") -> Path:
    """Stage ``export``: three files and the record ``export.json`` with the parity of each with torch.

    ``<name>_int8.onnx`` is the quantized network, ``<name>_fp32.onnx`` the network that it was quantized from, and
    ``<name>_dense_fp32.onnx`` the unpruned baseline.

    Args:
        source: the stage whose network was quantized: ``finetune`` or ``baseline``.

    Raises:
        PipelineError: an earlier stage has not run.
        ConfigError: the network was quantized from another stage than ``source``, or for another engine.
        ModelError: a network cannot be exported, or a file does not compute what torch computes.
    """
    quantized, parent, baseline = run.need("quantize"), run.need(source), run.need("baseline")
    record = read(quantized / RECORD, QuantizeFile, remedy="run the quantize stage again")
    if (record.source, record.target) != (source, config.target.name):
        raise ConfigError(
            f"the network was quantized from '{record.source}' for {record.target}, "
            f"not from '{source}' for {config.target.name}",
            remedy=f"run python -m compress quantize --from {source} --set target.name={config.target.name} first",
        )

    arch = config.model.arch

    def work(out: Path, scratch: Path) -> None:
        images_for = cache(partial(_images, config))
        report: ExportFile = {}

        def write(
            suffix: str, net: nn.Module, references: Sequence[Reference], metadata: Metadata, runner: Runner = NATIVE
        ) -> None:
            path = out / f"{config.name}_{suffix}.onnx"
            int8, profile = metadata.precision == "int8", config.target.profile
            images = images_for(metadata.preprocess)
            run.progress.note(f"  writing {path.name} and checking it on {len(images)} images")
            export_onnx(net, path, metadata, profile.opset, half=int8 and profile.float_type == "float16")
            if int8:
                enforce(path, metadata.target, metadata.float_layers, progress=run.progress)
            parities = {}
            for reference in references:
                parity = check(path, reference, images, runner)
                run.progress.note(f"  {path.name} in {runner.name}: against {reference.name} on {parity}")
                if math.isinf(reference.limit) and parity.error > INT8_ERROR:
                    run.progress.note(
                        f"  note: more than {INT8_ERROR:.0%}, though the integers are right: torch's fake quantization "
                        "adds in float, and this network amplifies the rounding errors; rely on the engine's accuracy"
                    )
                parities[reference.name] = parity
            report[path.name] = Exported(path.stat().st_size, parities)

        for suffix, folder in (("dense_fp32", baseline), ("fp32", parent)):
            model = load_model(folder, arch)
            torch_net = Reference("torch", model.net, FP32_ERROR)
            write(suffix, fold(model.net), [torch_net], metadata_for(model, model, "fp32", ""))
        compressed, calibrated = load_model(quantized, arch), load_calibrated(quantized, arch)
        described = metadata_for(compressed, load_model(parent, arch), "int8", calibrated.quantizers.target)
        versions = {"int8": calibrated}
        if (quantized / ALL_INT8).is_dir():  # the latency cost of the layers in float is measured against this file
            versions["int8_all"] = load_calibrated(quantized / ALL_INT8, arch)
        runner = runner_for(config.target.profile)
        for suffix, network in versions.items():
            write(
                suffix,
                lower(network.net, network.quantizers),
                _references(network, config.target.profile, runner, images_for(compressed.preprocess)[:1]),
                replace(described, float_layers=in_float(network.net, network.quantizers)),
                runner,
            )
        write_json(out / "export.json", {name: asdict(exported) for name, exported in report.items()})

    target = config.target.profile.model_dump(mode="json")
    settings = {"name": config.name, "source": source, "target": target, "version": __version__}
    return lead_stage(run, "export", work, settings=settings, parents=[quantized, parent, baseline])


def _references(calibrated: Calibrated, target: Profile, runner: Runner, image: Tensor) -> list[Reference]:
    """The computations that an INT8 file is compared with: its integers if they can be simulated, and torch's float.

    The integers must agree bit by bit; two correct computations in float may differ by several percent.
    """
    fake = calibrated.fake()
    if not (simulates(target) and runner.engine):
        return [Reference("torch", fake, INT8_ERROR, partial(at_quantizers, fake))]
    integers = IntegerNetwork(calibrated.net, calibrated.quantizers)
    integers(image)
    limit = INTEGER_ERROR if integers.exact else INT8_ERROR
    return [Reference(INTEGERS, integers, limit, integers.at_quantizers), Reference("torch", fake)]


def metadata_for(model: Model, float_model: Model, precision: str, target: str) -> Metadata:
    """The metadata of a file of ``model``; costs are counted on ``float_model``."""
    cost = count(float_model.net, float_model.preprocess.shape)
    return Metadata(
        arch=model.arch,
        precision=precision,
        preprocess=model.preprocess,
        classes=model.classes,
        macs=cost.macs,
        params=cost.params,
        target=target,
        version=__version__,
    )


def _images(config: Config, preprocess: Preprocess) -> Tensor:
    """Images (N, C, H, W) spread over the evaluation split (or the calibration split); noise if there are none."""
    data = open_data(config.data, config.run.seed, run=config.run.dir)
    split = data.eval or data.calibration
    if split is None:
        return torch.randn(16, *preprocess.shape, generator=torch.Generator().manual_seed(0))
    step = max(1, len(split) // PARITY_IMAGES)
    chosen = split.subset(range(0, len(split), step)[:PARITY_IMAGES], "parity")
    return torch.cat([x for x, _ in batches(chosen, eval_transform(preprocess), batch_size=16)])
