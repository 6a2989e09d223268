"""The flat graph of ATen operations that a network computes, by ``torch.export``."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from compress.errors import ModelError
from compress.frontend.ops import stays_whole

_TORCH = torch.__path__[0]
_SEALED: dict[str, Callable[[Tensor], Tensor]] = {}
"""The forward pass of each module that stays whole while a network is exported, by the module's path."""


@torch.library.custom_op("resnet_compress::sealed", mutates_args=())
def _sealed(x: Tensor, path: str) -> Tensor:
    return _SEALED[path](x).clone()


@_sealed.register_fake
def _(x: Tensor, path: str) -> Tensor:
    return torch.empty_like(_SEALED[path](x))


def export(net: nn.Module, shape: Sequence[int], *, training: bool = False) -> ExportedProgram:
    """Export ``net`` for images of ``shape`` (C, H, W), for any batch size. The network itself is left as it was.

    Modules that the table of operations knows by name, and batch norms that are written by hand with the four tensors
    of torchvision's ``FrozenBatchNorm2d``, appear as one operation each.

    Raises:
        ModelError: the forward pass does not take exactly one input, fails on such images, depends on the values of its
            tensors, or works for one batch size only. The message names the line.
    """
    if isinstance(net, torch.jit.ScriptModule):
        raise ModelError(
            "the network is a TorchScript module, which holds no Python code to follow",
            remedy="build the network from its class, and load torch.jit.load(path).state_dict() into it",
        )
    name = _input_of(net)
    reference = next(iter(net.parameters()), torch.zeros(()))
    images = torch.zeros(2, *shape, device=reference.device)
    sizes = {0: Dim("batch", min=1)}
    with in_mode(net, training=training), _sealing(net), _quiet():
        try:
            program = torch.export.export(
                net, (images,), dynamic_shapes={name: sizes} if name else (sizes,), strict=False
            )
        except Exception as error:  # torch.export runs the network's own code, which may raise anything
            _run(net, images)
            raise ModelError(
                f"cannot trace {type(net).__name__}.forward{_line_of(error)}: {_reason(error)}",
                remedy="a forward pass may not branch or loop on the values of its tensors",
            ) from error
    placeholder = next(n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs)
    if isinstance(placeholder.meta["val"].shape[0], int):
        raise ModelError(
            f"{type(net).__name__}.forward works for batches of two images only",
            remedy="write it for any batch size: x.flatten(1) in place of x.view(2, -1)",
        )
    return program


@contextlib.contextmanager
def in_mode(net: nn.Module, *, training: bool) -> Iterator[None]:
    """``net`` in training mode, or in eval mode; afterwards each module is in the mode that it was in."""
    before = [(module, module.training) for module in net.modules()]
    net.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


@torch.no_grad()
def _run(net: nn.Module, images: Tensor) -> None:
    """Raise ModelError if the network does not even run on these images."""
    try:
        net(images)
    except Exception as error:  # the network's own code may raise anything
        raise ModelError(
            f"{type(net).__name__} fails on a batch of images of shape {tuple(images.shape[1:])}{_line_of(error)}: "
            f"{str(error).strip().partition(chr(10))[0]}",
            remedy="check data.input_size and data.channels against what the network expects",
        ) from error


def from_torch(filename: str) -> bool:
    """Whether a source file is PyTorch's own."""
    return filename.startswith(_TORCH)


def _input_of(net: nn.Module) -> str:
    """The name of the one argument without a default; empty where the forward pass takes ``*args`` alone."""
    parameters = inspect.signature(net.forward).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    inputs = [p.name for p in parameters if p.default is p.empty and p.kind not in several]
    open_ended = any(p.kind in several for p in parameters)
    if len(inputs) > 1 or (not inputs and not open_ended):
        raise ModelError(
            f"{type(net).__name__}.forward takes {len(inputs)} inputs ({', '.join(inputs)}), not one",
            remedy="wrap it in a module whose forward takes the image batch alone",
        )
    return "" if open_ended else inputs[0]


@contextlib.contextmanager
def _sealing(net: nn.Module) -> Iterator[None]:
    replaced = []
    for path, module in net.named_modules():
        if stays_whole(type(module)):
            _SEALED[path] = module.forward
            replaced.append((module, functools.partial(_call_sealed, path)))
        elif type(module).__name__ == "FrozenBatchNorm2d":
            replaced.append((module, functools.partial(_frozen_norm, module)))
    for module, forward in replaced:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in replaced:
            module.__dict__.pop("forward", None)
        _SEALED.clear()


def _call_sealed(path: str, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.resnet_compress.sealed(x, path)
    return result


def _frozen_norm(norm: Any, x: Tensor) -> Tensor:
    eps = getattr(norm, "eps", 1e-5)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, eps)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the whole graph in the log, which torch.export writes where it fails."""
    names = ("torch", "torch.export", "torch.fx", "torch.fx.experimental.symbolic_shapes")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    silent = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    if "data-dependent" in text:
        return "it depends on the values of its tensors"
    if "Constraints violated" in text or "specialized" in text:
        return "it works for some batch sizes only (len(x) fixes the batch size, x.shape[0] does not)"
    return text or type(error).__name__


def _line_of(error: Exception) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not from_torch(f.filename)]
    frames = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<")]
    return f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
