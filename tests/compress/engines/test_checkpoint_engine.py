"""A stage's own network, opened like an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.preprocess import Preprocess
from compress.engines.base import infer, open_engine
from compress.errors import BackendAbsent, EngineError, PipelineError
from compress.models.model import Model, save_model
from compress.models.registry import build


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model(build("cifar_resnet20", 3).eval(), "cifar_resnet20", Preprocess(16), ("a", "b", "c"))


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baseline")
    save_model(model, folder)
    return folder / "model.safetensors"


def test_it_gives_what_the_network_gives(model: Model, saved: Path) -> None:
    x = model.example(2)
    with open_engine(saved, threads=1) as engine:
        np.testing.assert_allclose(infer(engine, x.numpy()), model.net(x).detach().numpy(), rtol=1e-5)
        assert engine.name == "torch"
        assert engine.metadata is not None
        assert engine.metadata.macs > 1e6
        assert engine.metadata.classes == ("a", "b", "c")
        with pytest.raises(EngineError, match="the engine takes input: float32 Nx3x16x16"):
            engine.run({"input": np.zeros((1, 3, 8, 8), np.float32)})


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is here")
def test_no_cuda_device(saved: Path) -> None:
    with pytest.raises(BackendAbsent, match="no CUDA device"):
        open_engine(saved, device="cuda")


def test_weights_alone_and_damaged_files_say_what_to_do(saved: Path, tmp_path: Path) -> None:
    alone = tmp_path / "net.pth"
    alone.touch()
    with pytest.raises(EngineError, match="does not say of which network") as caught:
        open_engine(alone)
    assert "python -m compress baseline" in caught.value.remedy
    lonely = tmp_path / saved.name
    lonely.write_bytes(saved.read_bytes())
    with pytest.raises(PipelineError, match=r"model\.json"):
        open_engine(lonely)
    (tmp_path / "model.json").write_bytes(saved.with_name("model.json").read_bytes())
    lonely.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(PipelineError, match="cannot load"):
        open_engine(lonely)
