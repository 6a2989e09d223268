"""Files that are no checkpoints of PyTorch weights: each is named, with the way to its weights."""

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save, save_file
from torch import nn

from compress.errors import CheckpointError
from compress.models.weight_files import read_state


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()


def whole(path: Path) -> None:
    torch.save(net(), path)


def whole_legacy(path: Path) -> None:
    torch.save(net(), path, _use_new_zipfile_serialization=False)


def in_a_dict(path: Path) -> None:
    torch.save({"epoch": 1, "model": net(), "ema": None, "train_args": {"lr": 0.1}}, path)


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(net(), torch.zeros(1, 3, 8, 8)), path)


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(net(), (torch.zeros(1, 3, 8, 8),)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def onnx_file(path: Path) -> None:
    one, two = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [one], [two])
    onnx.save(helper.make_model(graph, producer_name="pytorch"), path)


def index(path: Path) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": {"fc.weight": "model-1.safetensors"}}))


def hdf5(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"\x89HDF")


def tflite(path: Path) -> None:
    path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))


def arrays(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.ones(3))
    path.with_suffix(".npz").rename(path)


def packed(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"), io.BytesIO())


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.pth", b"")


def quantized(path: Path) -> None:
    weight = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    torch.save({"fc.weight": weight, "fc.scale": torch.tensor(1.0), "fc.zero_point": torch.tensor(0)}, path)


FILES: dict[Callable[[Path], None], tuple[str, str]] = {
    whole: ("whole pickled network", r"net = \.\.\.(.|\n)*torch\.save\(net\.state_dict\(\), "),
    whole_legacy: ("whole pickled network", r"torch\.save\(net\.state_dict\(\), "),
    in_a_dict: ("whole pickled network", r"torch\.save\(net\.state_dict\(\), "),
    torchscript: ("TorchScript archive", r"torch\.jit\.load\(\"w\.pth\", (.|\n)*torch\.save\(net\.state_dict\(\)"),
    exported: (r"program of torch\.export", r"torch\.export\.load(.|\n)*state_dict"),
    onnx_file: ("ONNX model", "PyTorch checkpoint that it was made from"),
    index: ("index of weight files", r"save_file\("),
    hdf5: ("HDF5", "convert its weights to PyTorch"),
    keras: ("Keras", "convert its weights to PyTorch"),
    tflite: ("TensorFlow Lite", "convert"),
    arrays: ("numpy arrays", "make tensors"),
    packed: ("packed archive", "unpack"),
    zipped: ("zip archive", "unpack"),
    quantized: ("quantized network", "float network"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", FILES)
def test_a_file_of_another_kind_is_named(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    write(path)
    named, advice = FILES[write]
    with pytest.raises(CheckpointError, match=rf"{named}(.|\n)*fix: (.|\n)*{advice}") as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value)
    assert "safe_globals" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_the_advice_on_torchscript_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torchscript(Path("w.pth"))
    with pytest.raises(CheckpointError) as caught:
        read_state(Path("w.pth"))
    lines = [line.strip() for line in caught.value.remedy.splitlines()[1:]]
    assert len(lines) == 2
    exec("\n".join(["import torch", *lines]), {})
    assert read_state(Path("weights.pth"))[""].keys() == net().state_dict().keys()


@pytest.mark.filterwarnings("ignore")
def test_the_advice_on_exported_programs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exported(Path("w.pt2"))
    with pytest.raises(CheckpointError) as caught:
        read_state(Path("w.pt2"))
    exec("\n".join(["import torch", *(line.strip() for line in caught.value.remedy.splitlines()[1:])]), {})
    assert "0.weight" in read_state(Path("weights.pth"))[""]


def test_the_advice_on_an_index_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.ones(1)}, "model-1.safetensors")
    save_file({"b": torch.ones(1)}, "model-2.safetensors")
    index(Path("model.safetensors.index.json"))
    with pytest.raises(CheckpointError) as caught:
        read_state(Path("model.safetensors.index.json"))
    lines = [line.strip() for line in caught.value.remedy.splitlines()[1:]]
    exec("\n".join(["from pathlib import Path", "folder = Path()", *lines]), {})
    assert sorted(read_state(Path("weights.safetensors"))[""]) == ["a", "b"]


def test_a_folder_names_its_files(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is a folder(.|\n)*model\.safetensors"):
        read_state(tmp_path)
    (tmp_path / "__0_0.distcp").touch()
    with pytest.raises(CheckpointError, match=r"distributed checkpoint(.|\n)*dcp_to_torch_save"):
        read_state(tmp_path)


@pytest.mark.parametrize("name", ["model.pb", "model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_files_of_tensorflow_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match="TensorFlow"):
        read_state(tmp_path / name)


@pytest.mark.parametrize("name", ["w.bin", "w.pth", "w"])
def test_safetensors_are_read_under_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(save({"a": torch.ones(2)}))
    assert read_state(tmp_path / name)[""]["a"].tolist() == [1, 1]


def test_a_checkpoint_of_torch_is_read_under_any_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert read_state(tmp_path / "w.safetensors")[""]["a"].tolist() == [1, 1]


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(2), 5, {"state": {0: torch.ones(1)}}])
def test_a_file_without_named_tensors_is_named(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="not a state_dict"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_is_refused(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": np.ones(2)}, protocol=protocol))
    with pytest.raises(CheckpointError) as caught:
        read_state(tmp_path / "w.pkl")
    assert "weights_only" not in str(caught.value)
