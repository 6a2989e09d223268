"""Read the tensors of a checkpoint file; say what a file is that holds no weights that can be read."""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from compress.errors import CheckpointError
from compress.models.unpickle import Ignored, unpickle
from compress.parse import brief

State = dict[str, Tensor]
_SAVE = 'torch.save(net.state_dict(), "weights.pth")'
_DEEPEST = 6  # of the containers within one another that are looked through
_MOST_PICKLE = 16 << 20  # bytes of a pickle that are looked through for what it names


def some(names: list[str], count: int = 3) -> str:
    """The first few of a list.

    >>> some(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return ", ".join(brief(name, 100) for name in names[:count]) + (", ..." if len(names) > count else "")


def read_state(path: Path) -> dict[str, State]:
    """Read every state_dict in a file of ``torch.save`` or safetensors, whatever it is called.

    Nothing but tensors and plain containers is unpickled; see ``unpickle``.

    Returns:
        the tensors by name, by the keys under which they lie, joined by dots; the key of the file itself is empty.

    Raises:
        CheckpointError: a missing, truncated, unsafe or foreign file, or one without named tensors.
    """
    if path.is_dir():
        raise _folder(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}", remedy="set model.weights (WEIGHTS=) to an existing file")
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if fault := _foreign(path, start):
            raise fault
        content: Any
        if _is_safetensors(start) or (path.suffix == ".safetensors" and not zipfile.is_zipfile(path)):
            content = load_file(path)
        else:
            _check_packed(path)
            content = unpickle(path)
    except CheckpointError:
        raise
    except Exception as error:  # on damaged bytes the unpickler raises nearly any exception
        raise _unreadable(path, start, error) from None
    return _states(content, path)


def _states(content: Any, path: Path) -> dict[str, State]:
    found = dict(_within(content, (), set()))
    if not found:
        what = "an object" if isinstance(content, Ignored) else f"a {type(content).__name__} without named tensors"
        raise CheckpointError(f"{path} holds {what}, not a state_dict", remedy=f"save the weights: {_SAVE}")
    tensors = [(name, tensor) for state in found.values() for name, tensor in state.items()]
    if any(tensor.is_quantized for _, tensor in tensors) or any("_packed_params" in key for key, _ in tensors):
        raise CheckpointError(
            f"{path} holds the weights of a quantized network, not plain weights",
            remedy="give the checkpoint of the float network that it was made from; this project quantizes it itself",
        )
    odd = [f"{name}: {fault}" for name, tensor in tensors if (fault := _odd(tensor))]
    if odd:
        raise CheckpointError(
            f"{path} holds tensors that are not plain weights ({some(odd)})",
            remedy=f"save the weights of the float network: {_SAVE}",
        )
    return found


def _within(content: Any, keys: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, State]]:
    """The named tensors of each mapping in nested containers, by the keys that lead to it."""
    if len(keys) > _DEEPEST or id(content) in seen:
        return
    if isinstance(content, list | tuple):
        content = {str(place): item for place, item in enumerate(content)}
    elif not isinstance(content, Mapping):
        return
    else:
        seen.add(id(content))
        named = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if named:
            yield ".".join(keys), named
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Mapping | list | tuple):
            yield from _within(value, (*keys, name), seen)


def _odd(tensor: Tensor) -> str:
    """Why a tensor cannot be weights; empty if it can."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested:
        return f"a {str(tensor.layout).removeprefix('torch.')} tensor"
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > held:  # a view that repeats its values: a small file could fill the memory
        return f"shape {tuple(tensor.shape)} of only {held} values"
    return ""


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins as safetensors does: the length of a JSON header, then the header."""
    return len(start) > 9 and start[8:10] == b'{"' and int.from_bytes(start[:8], "little") < 100 << 20


def _foreign(path: Path, start: bytes) -> CheckpointError | None:
    """The error for a file of another known kind, which is named with the way to its weights."""
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return CheckpointError(
            f"{path} is an HTML page, not a checkpoint",
            remedy="its download got an error or a log-in page; download the file itself",
        )
    if found := _kind(path, start):
        kind, remedy = found
        return CheckpointError(f"{path} is {kind}, not a PyTorch checkpoint", remedy=remedy)
    return None


_TRAINED = f"in the program that trained it, save the weights of the PyTorch network: {_SAVE}"
_CONVERT = "give the PyTorch checkpoint that it was made from, or convert its weights to PyTorch"
_TENSORFLOW = "convert its weights to PyTorch first, for example with the transformers package or by hand"


def _kind(path: Path, start: bytes) -> tuple[str, str] | None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _archive(path, archive.namelist())
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "an HDF5 file, as Keras and TensorFlow write them (.h5)", _TENSORFLOW
    if path.suffix in (".pb", ".index", ".meta") or re.search(r"\.data-\d+-of-\d+$", path.name):
        return "a file of TensorFlow", _TENSORFLOW
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model", _TENSORFLOW
    if path.suffix == ".onnx" or re.match(rb"\x08[\x01-\x20]\x12.{1,64}?(pytorch|onnx|tf2onnx)", start, re.DOTALL):
        return "an ONNX model", _CONVERT
    if re.match(rb'\s*\{.*"(weight_map|metadata)"', start, re.DOTALL):
        load, suffix = ("load_file", ".safetensors") if b".safetensors" in start else ("torch.load", ".bin")
        merge = (
            "make one file of those that it names:\n"
            "    from safetensors.torch import load_file, save_file\n"
            f'    tensors = {{k: v for f in folder.glob("*{suffix}") for k, v in {load}(f).items()}}\n'
            '    save_file(tensors, "weights.safetensors")'
        )
        return "an index of weight files, which holds no weights itself", merge
    if (
        start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf\x27\x1c", b"Rar!"))
        or start[257:262] == b"ustar"
    ):
        return "a packed archive", "unpack it and set model.weights to the file inside"
    return None


def _archive(path: Path, names: list[str]) -> tuple[str, str] | None:
    """The kind of a zip archive that ``torch.save`` has not written."""
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        lines = f'net = torch.jit.load("{path.name}", map_location="cpu")\n    {_SAVE}'
        return "a TorchScript archive (program and weights)", f"take its weights out in Python:\n    {lines}"
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        lines = f'net = torch.export.load("{path.name}")\n    torch.save(dict(net.state_dict), "weights.pth")'
        return "a program of torch.export", f"take its weights out in Python:\n    {lines}"
    if "data.pkl" in inner:
        return None
    if any(name.endswith((".weights.h5", "keras_metadata.pb")) for name in names):
        return "a Keras model", _TENSORFLOW
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of numpy arrays", f"make tensors of them and save these: {_SAVE}"
    return "a zip archive", "unpack it and set model.weights to the file inside"


def _folder(path: Path) -> CheckpointError:
    if any(path.glob("*.distcp")):
        convert = "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
        return CheckpointError(
            f"{path} is a distributed checkpoint, a folder of shards",
            remedy=f"make one file of it in Python:\n    from {convert.rpartition('.')[0]} import dcp_to_torch_save\n"
            f'    dcp_to_torch_save("{path}", "weights.pth")',
        )
    if (path / "saved_model.pb").is_file():
        return CheckpointError(f"{path} is a TensorFlow SavedModel", remedy=_TENSORFLOW)
    suffixes = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".th")
    inside = sorted(str(file) for file in path.iterdir() if file.suffix in suffixes)
    which = f"set model.weights to one of its files: {some(inside)}" if inside else "set model.weights to a file"
    return CheckpointError(f"{path} is a folder, not a checkpoint", remedy=which)


def _check_packed(path: Path) -> None:
    """Refuse a compressed archive: ``torch.save`` writes none, and a small one could fill the memory.

    Raises:
        CheckpointError: its content is larger than the file.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is compressed, and unpacks to {unpacked} bytes",
            remedy=f"save it with {_SAVE}, which does not compress",
        )


def _unreadable(path: Path, start: bytes, error: Exception) -> CheckpointError:
    """The error for a file that begins with ``start`` and that could not be read because of ``error``."""
    unpickling = isinstance(error, pickle.UnpicklingError)
    named = re.search(r"GLOBAL (\S+)", str(error))
    other_opcode = "nsupported" in str(error) and start.startswith((b"\x80", b"PK"))  # in a pickle or a zip of one
    if unpickling and (named or other_opcode):
        what = f" ({named.group(1)})" if named else ""
        modules = [name for name in _names(path) if name.startswith("torch.nn.modules.")]
        if modules:
            return CheckpointError(
                f"{path} holds a whole pickled network{what}, which only its own code can open; refused: "
                "only tensors are loaded",
                remedy="in the program that trained it, save the weights alone:\n"
                f"    net = ...  # the network, as that program holds it\n    {_SAVE}",
            )
        return CheckpointError(
            f"{path} is a pickle with code or objects in it{what}; refused: only tensors are loaded",
            remedy=f"where it was trained, save the weights alone: {_SAVE}, or .safetensors",
        )
    text = brief(str(error).partition("\n")[0] or type(error).__name__)
    reason = "" if unpickling or "weights_only" in text else f": {text}"  # torch advises to load unsafely
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is truncated or not a checkpoint{reason}",
        remedy="copy or download it again and compare its checksum",
    )


def _names(path: Path) -> list[str]:
    """The classes and functions that the pickle in a file names; nothing is unpickled."""
    names = []
    try:
        for opcode, argument, _ in _opcodes(path):
            if opcode == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
    except Exception:  # damaged bytes: what was found before them
        pass
    return names


def _opcodes(path: Path) -> Iterator[tuple[str, Any, Any]]:
    def parts(file: IO[bytes], pickles: int) -> Iterator[tuple[str, Any, Any]]:
        content = file.read(_MOST_PICKLE)
        start = 0
        for _ in range(pickles):
            for opcode, argument, place in pickletools.genops(content[start:]):
                yield opcode.name, argument, place
            start += (place or 0) + 1

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(name) as inner:
                yield from parts(inner, 1)
    else:
        with path.open("rb") as file:
            yield from parts(file, 4)  # the old format: a number, a version, the system, and then the content
