"""Load trained weights into an architecture, from files with tensors only; say what does not fit and why."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision.models as tv
from safetensors.torch import load_file
from torch import Tensor, nn

from compress.config import ModelConfig
from compress.errors import CheckpointError, ModelError
from compress.models.registry import ARCHITECTURES, build
from compress.parse import brief

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel/DDP and torch.compile


def load_trained(config: ModelConfig, num_classes: int | None = None) -> nn.Module:
    """Build the configured architecture and load its weights; the class count is the checkpoint's own.

    Args:
        num_classes: for factories whose networks have no classifier to read it from.

    Returns:
        the network in eval mode, float32.

    Raises:
        CheckpointError: missing, truncated or unsafe file, keys or shapes that do not match, NaN or infinite weights.
        ModelError: the architecture cannot be built.
    """
    assert config.weights is not None
    state = download_state(config.arch) if config.weights == "torchvision" else read_state(Path(config.weights))
    net = build(config.arch, num_classes, config.args)
    state = under_all_names(net, state)
    head = classifier(net)
    if head is not None and f"{head[0]}.weight" in state:
        rows = state[f"{head[0]}.weight"].shape[0]
        if rows != head[1].out_features:
            net = build(config.arch, rows, config.args)
    load_state(net, state, config.weights)
    return net.eval()


def classifier(net: nn.Module) -> tuple[str, nn.Linear] | None:
    """The name and module of the last fully connected layer: a ResNet's classifier; None for a backbone.

    >>> classifier(build("resnet18", 7))
    ('fc', Linear(in_features=512, out_features=7, bias=True))
    """
    linear = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def read_state(path: Path) -> State:
    """Read a ``.safetensors`` or ``torch.save`` file of tensors: plain, or under 'state_dict'; 'module.' stripped.

    Nothing but tensors and plain containers is unpickled (``weights_only=True``).

    Raises:
        CheckpointError: see ``load_trained``.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}", remedy="set model.weights (WEIGHTS=) to an existing file")
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            _check_packed(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # on damaged bytes the unpickler raises nearly any exception
        raise _unreadable(path, start, error) from None
    return _tensors(content, path)


def own_names(net: nn.Module) -> list[list[str]]:
    """The names in the network's state_dict; the names of one shared tensor are listed together.

    >>> shared = nn.Linear(2, 2)
    >>> own_names(nn.Sequential(shared, shared))
    [['0.weight', '1.weight'], ['0.bias', '1.bias']]
    """
    names: dict[int, list[str]] = defaultdict(list)
    tensors = net.state_dict(keep_vars=True)  # the tensors themselves, so that the same one has the same id
    for name, tensor in tensors.items():
        names[id(tensor)].append(name)
    return list(names.values())


def under_all_names(net: nn.Module, state: State) -> State:
    """``state`` with each tensor that ``net`` shares, under all of its names; a file may hold it under one only."""
    groups = [(names, [name for name in names if name in state]) for names in own_names(net)]
    return {name: state[given[0]] for names, given in groups if given for name in names} | state


def download_state(arch: str) -> State:
    """Torchvision's pretrained weights of ``arch``; only called when the configuration asks for them.

    Raises:
        CheckpointError: torchvision has none, or they cannot be downloaded.
    """
    if arch not in tv.list_models():
        raise CheckpointError(f"torchvision has no weights for '{arch}'", remedy="set model.weights to a file")
    try:
        weights = tv.get_model_weights(arch).DEFAULT
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot download torchvision's weights for '{arch}': {error}",
            remedy="download them on a machine with a network and set model.weights to the file",
        ) from None


def load_state(net: nn.Module, state: State, where: str) -> None:
    """Load ``state`` into ``net`` strictly, as float32; missing ``num_batches_tracked`` counters are accepted.

    Raises:
        CheckpointError: keys or shapes that do not match (the first few are named, with the likely reason), or values
            that are not finite.
    """
    own = net.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or unexpected or wrong:
        parts = []
        if missing:
            parts.append(f"{len(missing)} keys missing ({_some(missing)})")
        if unexpected:
            parts.append(f"{len(unexpected)} keys unknown ({_some(unexpected)})")
        if wrong:
            shapes = [f"{k} is {tuple(state[k].shape)}, the network's {tuple(own[k].shape)}" for k in wrong]
            parts.append(f"{len(wrong)} shapes differ ({_some(shapes)})")
        raise CheckpointError(f"{where} does not fit the network: {'; '.join(parts)}", remedy=_reason(net, state))
    check_values(net, state, where)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    net.load_state_dict(state, strict=False)


def check_values(net: nn.Module, state: State, where: str) -> None:
    """Check that a network can use these values: floats where it has floats, finite, no variance below 0.

    Raises:
        CheckpointError: a value is wrong; the message names the first few tensors.
    """
    own = net.state_dict()
    other = [
        f"{key} is {str(value.dtype).removeprefix('torch.')}"
        for key, value in state.items()
        if key in own and own[key].is_floating_point() and not value.is_floating_point()
    ]
    if other:
        raise CheckpointError(
            f"{where} holds {len(other)} weights that are not floating-point numbers ({_some(other)})",
            remedy="a quantized or converted checkpoint is not the trained network: give the one that it was made from",
        )
    floats = {key: value for key, value in state.items() if value.is_floating_point()}
    broken = [key for key, value in floats.items() if not value.float().isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{where} has NaN or infinite values in {len(broken)} tensors ({_some(broken)})",
            remedy="the training that wrote it diverged; use an earlier checkpoint",
        )
    negative = [key for key, value in floats.items() if key.endswith("running_var") and (value.float() < 0).any()]
    if negative:
        raise CheckpointError(
            f"{where} has BN variances below 0 in {len(negative)} layers ({_some(negative)})",
            remedy="the file is damaged: use another checkpoint",
        )


def _tensors(content: Any, path: Path) -> State:
    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state_dict",
            remedy="save it with torch.save(net.state_dict(), path)",
        )
    other = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if other:
        raise CheckpointError(
            f"{path} holds entries that are not named tensors ({_some(other)})",
            remedy="save the weights alone: torch.save(net.state_dict(), path)",
        )
    odd = [f"{key}: {fault}" for key, value in content.items() if (fault := _odd(value))]
    if odd:
        raise CheckpointError(
            f"{path} holds tensors that are not plain weights ({_some(odd)})",
            remedy="save the weights of the float network: torch.save(net.state_dict(), path)",
        )
    state = dict(content)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _odd(tensor: Tensor) -> str:
    """Why a tensor cannot be weights; empty if it can."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        return f"a {'quantized' if tensor.is_quantized else str(tensor.layout).removeprefix('torch.')} tensor"
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > held:  # a view that repeats its values: a small file could fill the memory
        return f"shape {tuple(tensor.shape)} of only {held} values"
    return ""


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
            remedy="save it with torch.save(net.state_dict(), path), which does not compress",
        )


def _unreadable(path: Path, start: bytes, error: Exception) -> CheckpointError:
    """The error for a file that begins with ``start`` and that could not be read because of ``error``."""
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return CheckpointError(
            f"{path} is an HTML page, not a checkpoint",
            remedy="its download got an error or a log-in page; download the file itself",
        )
    unpickling = isinstance(error, pickle.UnpicklingError)
    named = re.search(r"GLOBAL (\S+)", str(error))
    other_opcode = "nsupported" in str(error) and start.startswith((b"\x80", b"PK"))  # in a pickle or a zip of one
    if unpickling and (named or other_opcode):
        what = f" ({named.group(1)})" if named else ""
        return CheckpointError(
            f"{path} is a pickle with code or objects in it{what}; refused: only tensors are loaded",
            remedy="where it was trained, save the weights alone: torch.save(net.state_dict(), path), or .safetensors",
        )
    text = brief(str(error).partition("\n")[0] or type(error).__name__)
    reason = "" if unpickling else f": {text}"  # torch's text about unpickling advises to load unsafely
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is truncated or not a checkpoint{reason}",
        remedy="copy or download it again and compare its checksum",
    )


def _reason(net: nn.Module, state: State) -> str:
    """The most likely cause of a mismatch, found by trying the built-in families without allocating them."""
    fitting = [name for name in ARCHITECTURES if _fits(name, state)]
    if fitting:
        return f"these weights are of a '{fitting[0]}': set model.arch (MODEL=)"
    own = set(net.state_dict())
    for key in state:
        tail = key.partition(".")[2]
        if key not in own and tail in own:
            return f"the keys carry a prefix '{key[: -len(tail)]}'; strip it before saving"
    return "is model.arch (MODEL=) the architecture, with the options, that these weights were trained with?"


def _fits(arch: str, state: State) -> bool:
    try:
        with torch.device("meta"):
            net = build(arch)
            head = classifier(net)
            own = net.state_dict()
    except ModelError:
        return False
    free = () if head is None else (f"{head[0]}.weight", f"{head[0]}.bias")
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    same_keys = own.keys() - counters == state.keys() - counters
    return same_keys and all(own[k].shape == state[k].shape for k in own if k in state and k not in free)


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(brief(name, 100) for name in names[:count]) + (", ..." if len(names) > count else "")
