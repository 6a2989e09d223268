"""A trained network with all that is needed to run it elsewhere: saved as tensors and JSON, never pickled."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from calibration.preprocess import Preprocess
from compress.errors import CheckpointError, ModelError, PipelineError
from compress.files import MANIFEST, write_atomic, write_json
from compress.frontend.network import RaisedNetwork
from compress.frontend.raising import raised
from compress.models.checkpoint import check_values, own_names, under_all_names
from compress.models.cifar import SelectPad
from compress.models.layers import AnyShape
from compress.models.prepare import prepare
from compress.models.registry import build, is_factory
from compress.models.shapes import describe, replace_module, reshape
from compress.parse import brief, read
from compress.run import verify

FORMAT: Final = 1
TENSORS = "model.safetensors"
ANY = "*"  # any factory: for ``--trust``
TRUST = "import the factory that model.json names, if it names one: it may run any code"
MOST_PARAMETERS = 500_000_000  # the largest of the families has 127 million
MOST_VALUES = 1 << 28  # of one layer's output for one image; ResNet-152 at 1,024 pixels has 2^24
_REMEDY = "run the stage that wrote it again"


@dataclass(frozen=True)
class Model:
    """A network, how to rebuild it, its preprocessing and its classes.

    Attributes:
        net: raised (see ``compress.frontend``), in eval mode, float32, on the CPU.
        arch, args: what ``registry.build`` makes it from (before any channel was removed).
        preprocess: how an input image is preprocessed.
        classes: name of each logit; empty for a backbone.
    """

    net: nn.Module
    arch: str
    preprocess: Preprocess
    classes: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict)

    def clone(self, net: nn.Module | None = None) -> Model:
        """The same model with ``net`` as its network, or with a deep copy of its own network."""
        net = copy.deepcopy(self.net) if net is None else net
        return Model(net.eval(), self.arch, self.preprocess, self.classes, self.args)

    def example(self, batch: int = 1) -> torch.Tensor:
        """A seeded random input (batch, C, H, W)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.preprocess.shape, generator=generator)


def save_model(model: Model, folder: Path) -> None:
    """Write ``folder/model.safetensors`` and ``folder/model.json``; a shared tensor goes under its first name."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.net.state_dict()
    names = [first for first, *_ in own_names(model.net)]
    # Copies, because safetensors refuses tensors that share memory.
    state = {name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in names}
    write_atomic(folder / TENSORS, save(state))
    layers = cast(dict[str, AnyShape], describe(model.net))
    record = Description(FORMAT, model.arch, dict(model.args), model.preprocess, model.classes, layers)
    write_json(folder / "model.json", asdict(record))


@dataclass(frozen=True)
class Description:
    """What ``model.json`` holds.

    Attributes:
        arch, args: what ``registry.build`` makes the network from, before any channel was removed.
        preprocess: what an input image goes through.
        classes: name of each logit; empty for a backbone.
        layers: the shape of each layer, by its dotted name.
    """

    format: Literal[1]
    arch: str
    args: dict[str, Any]
    preprocess: Preprocess
    classes: tuple[str, ...]
    layers: dict[str, AnyShape]


def describe_model(folder: Path) -> Description:
    """Read ``folder/model.json``; nothing is built or imported.

    Raises:
        CheckpointError: it is absent, damaged, or of a later format.
    """
    return read(folder / "model.json", Description, remedy=_REMEDY, error=CheckpointError)


def load_model(folder: Path, factory: str = "") -> Model:
    """Load what ``save_model`` wrote. Built-in families need no class file; a user's own network needs its factory.

    Args:
        factory: ``package.module:factory`` as the user's own configuration names it, or ``ANY``. A ``model.json`` that
            names another factory is refused, because importing a factory runs code.

    Raises:
        CheckpointError: a file is missing, truncated, of a later format, changed since a stage has written it, or does
            not fit its description; or it names a factory that the user has not named.
        ModelError: the architecture cannot be built.
    """
    if (folder / MANIFEST).is_file():
        verify(folder)
    record, path = describe_model(folder), folder / TENSORS
    if is_factory(record.arch) and factory not in (record.arch, ANY):
        raise CheckpointError(
            f"{folder / 'model.json'} names the factory '{record.arch}', which imports code, and a file's word for it "
            "is not followed",
            remedy=f"if you know the folder, set model.arch={record.arch} in your own configuration or by --set; "
            "or pass --trust to a command that has it",
        )
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}", remedy=_REMEDY)
    try:
        state = load_file(path)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load {path}: {brief(error)}", remedy=_REMEDY) from None
    net = _unpruned(record, folder)
    shadow = copy.deepcopy(net).to("meta")  # shapes alone: a damaged file may ask for any amount of memory
    with torch.device("meta"):
        _reshape(shadow, record, folder)
    _check(shadow, state, record, path)
    if is_factory(record.arch):
        _reshape(net, record, folder)
    else:
        net = _materialized(shadow)
    state = under_all_names(net, state)
    check_values(net, state, str(path))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"cannot load {path}: {brief(error)}", remedy=_REMEDY) from None
    return Model(net.eval(), record.arch, record.preprocess, record.classes, record.args)


def _unpruned(record: Description, folder: Path) -> RaisedNetwork:
    """The network of a description before any channel was removed; a built-in one has shapes and no contents.

    Raises:
        CheckpointError: the network is not known, or is too large.
    """
    classes = len(record.classes) or None
    try:
        if not is_factory(record.arch):
            return _skeleton(record.arch, classes, json.dumps(record.args), record.preprocess.shape)
        net = prepare(build(record.arch, classes, record.args), record.preprocess.shape)
        _check_size(net, record.arch)
        return raised(net.eval(), record.preprocess.shape)
    except (ModelError, CheckpointError) as error:
        raise _of_description(folder, error) from None


@functools.lru_cache(maxsize=4)
def _skeleton(arch: str, classes: int | None, args: str, shape: tuple[int, ...]) -> RaisedNetwork:
    """A built-in network without contents; raised once, because the stages load the same one several times."""
    with torch.device("meta"):
        net = build(arch, classes, json.loads(args))
    _check_size(net, arch)
    return raised(net.eval(), shape)


def _materialized(skeleton: RaisedNetwork) -> RaisedNetwork:
    """The network with memory of its own, for ``load_state_dict`` to fill."""
    net: RaisedNetwork = skeleton.to_empty(device="cpu")
    for name, module in list(net.named_modules()):
        if isinstance(module, SelectPad):  # its tables are not in the file of weights
            replace_module(net, name, SelectPad(module.source, module.stride))
    return net


def _reshape(net: RaisedNetwork, record: Description, folder: Path) -> None:
    try:
        reshape(net, record.layers)
        net.recompile()
    except CheckpointError as error:
        raise _of_description(folder, error) from None


def _check_size(net: nn.Module, arch: str) -> None:
    if (count := sum(parameter.numel() for parameter in net.parameters())) > MOST_PARAMETERS:
        raise ModelError(f"'{arch}' has {count:,} parameters, too many for a ResNet")


def _of_description(folder: Path, error: PipelineError) -> CheckpointError:
    return CheckpointError(f"{folder / 'model.json'}: {error.message}", remedy=error.remedy or _REMEDY)


def _check(net: nn.Module, state: Mapping[str, torch.Tensor], record: Description, path: Path) -> None:
    """Check the weights and classes of a network without memory, and check that its layers fit one another."""
    own = net.state_dict()
    wrong = [name for name, tensor in state.items() if name in own and own[name].shape != tensor.shape]
    if wrong:
        raise CheckpointError(
            f"{path}: '{wrong[0]}' is {tuple(state[wrong[0]].shape)}, by model.json it is {tuple(own[wrong[0]].shape)}",
            remedy=_REMEDY,
        )
    largest = 0

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel())
        if isinstance(module, SelectPad) and max(module.source) >= (channels := inputs[0].shape[1]):
            raise ValueError(f"a shortcut takes channel {max(module.source)} of {channels}")

    hooks = [module.register_forward_hook(see) for module in net.modules()]
    try:
        output = net.eval()(torch.empty(1, *record.preprocess.shape, device="meta"))
    except Exception as error:  # the network's own code may raise anything
        raise CheckpointError(
            f"the network in {path.parent} does not compute: {brief(error)}", remedy=_REMEDY
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
    outputs = output.shape[1] if isinstance(output, torch.Tensor) and output.dim() == 2 else None
    if record.classes and outputs not in (None, len(record.classes)):
        message = f"the network in {path.parent} has {outputs} outputs, and model.json names {len(record.classes)}"
        raise CheckpointError(f"{message} classes", remedy=_REMEDY)
    if largest > MOST_VALUES:
        message = f"a layer of the network in {path.parent} has {largest:,} outputs an image"
        raise CheckpointError(message, remedy=_REMEDY)
