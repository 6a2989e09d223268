import contextlib
import io
import os
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from compress.config import ModelConfig
from compress.errors import CheckpointError
from compress.models.checkpoint import load_trained, read_state
from compress.models.registry import build


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return build("cifar_resnet20", 7).eval()


def load(path: Path, arch: str = "cifar_resnet20") -> nn.Module:
    return load_trained(ModelConfig(arch=arch, weights=str(path)))


def wrappings(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "plain": state,
        "under state_dict": {"state_dict": state, "epoch": 3},
        "with module.": {f"module.{key}": value for key, value in state.items()},
        "both": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "best_prec1": 91.7},
    }


@pytest.mark.parametrize("wrapping", ["plain", "under state_dict", "with module.", "both"])
def test_a_pth_loads_however_it_is_wrapped(net: nn.Module, tmp_path: Path, wrapping: str) -> None:
    torch.save(wrappings(dict(net.state_dict()))[wrapping], tmp_path / "w.pth")
    loaded = load(tmp_path / "w.pth")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), net(x))


def test_the_class_count_is_the_checkpoints(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pth")
    assert load(tmp_path / "w.pth").get_submodule("linear").out_features == 7


def test_half_precision_safetensors_become_float32(net: nn.Module, tmp_path: Path) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in net.state_dict().items()}
    save_file(half, tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    key = "layer1.0.conv1.weight"
    torch.testing.assert_close(loaded.state_dict()[key], net.state_dict()[key], rtol=1e-3, atol=1e-3)


def test_float8_safetensors_become_float32(net: nn.Module, tmp_path: Path) -> None:
    key = "layer1.0.conv1.weight"
    save_file({**net.state_dict(), key: net.state_dict()[key].to(torch.float8_e4m3fn)}, tmp_path / "w.safetensors")
    torch.testing.assert_close(
        load(tmp_path / "w.safetensors").state_dict()[key], net.state_dict()[key], rtol=0.07, atol=2e-3
    )


def test_old_checkpoints_without_bn_counters_load(net: nn.Module, tmp_path: Path) -> None:
    old = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "w.pth")
    load(tmp_path / "w.pth")


class Bomb:
    """Unpickling this runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": Bomb(tmp_path / "ran")}}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"refused: only tensors"):
        read_state(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="refused"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(net: nn.Module, tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(net.state_dict(), path)
    else:
        save_file(dict(net.state_dict()), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        read_state(path)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_legacy_file_is_a_checkpoint_error(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    torch.save(nn.BatchNorm2d(4).state_dict(), buffer, _use_new_zipfile_serialization=False)
    content = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.suppress(CheckpointError):
        warnings.simplefilter("ignore")  # torch remarks on odd pickle protocols
        path = Path(folder) / "w.pth"
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        read_state(path)  # a flipped weight may pass: any other error fails the test


def test_a_legacy_file_cut_anywhere_is_a_checkpoint_error(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(nn.BatchNorm2d(4).state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for size in range(0, len(content), 5):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"truncated or not a checkpoint|refused"):  # half a class's name
            read_state(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n<!DOCTYPE html>\n<html><body>404</body></html>", "is an HTML page, not a checkpoint"),
        ("version https://git-lfs.github.com/spec/v1\n", "truncated or not a checkpoint"),
    ],
)
def test_a_download_that_failed_is_not_called_a_pickle(tmp_path: Path, suffix: str, text: str, message: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_state(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere\.pth"):
        read_state(tmp_path / "nowhere.pth")


def test_weights_of_another_known_architecture_are_recognised(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"does not fit(.|\n)*these weights are of a 'cifar_resnet20'"):
        load(tmp_path / "w.pth", arch="cifar_resnet32")


def test_unknown_keys_are_counted_and_the_first_few_named(net: nn.Module, tmp_path: Path) -> None:
    torch.save({f"{key}_x": value for key, value in net.state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"keys missing \(conv1\.weight, (.|\n)*unknown \(conv1\.weight_x, "):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(net: nn.Module, tmp_path: Path, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    state["layer1.0.conv1.weight"].view(-1)[5] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"NaN or infinite.*layer1\.0\.conv1\.weight"):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.int64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_no_floats_are_refused(
    net: nn.Module, tmp_path: Path, dtype: torch.dtype, suffix: str
) -> None:
    key, path = "layer1.0.conv1.weight", tmp_path / f"w{suffix}"
    state = {**net.state_dict(), key: net.state_dict()[key].to(dtype)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"not floating-point numbers \(layer1\.0\.conv1\.weight is"):
        load(path)


def test_a_small_file_cannot_claim_large_tensors(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1, 1).expand(60_000, 60_000)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"fc\.weight: shape \(60000, 60000\) of only 1 values"):
        read_state(tmp_path / "w.pth")


def test_views_of_one_storage_are_weights(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    torch.save({"a": whole[:3], "b": whole.view(2, 3).t()}, tmp_path / "w.pth")
    assert read_state(tmp_path / "w.pth")[""]["b"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.ones(3, device="meta"),
    ],
)
def test_tensors_that_hold_no_plain_values_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"fc.weight": tensor}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"not plain weights|refused|not a checkpoint"):
        read_state(tmp_path / "w.pth")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1 << 20)}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in whole.infolist():
            bomb.writestr(entry.filename, whole.read(entry))
    with pytest.raises(CheckpointError, match="is compressed, and unpacks to"):
        read_state(tmp_path / "bomb.pth")


def test_a_variance_below_0_is_refused(net: nn.Module, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    state["bn1.running_var"][3] = -0.1
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"variances below 0 in 1 layers \(bn1\.running_var\)"):
        load(tmp_path / "w.pth")
