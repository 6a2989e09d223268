"""Load trained weights into an architecture; say which of a file's tensors they are, and why others do not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
import torchvision.models as tv
from torch import nn

from compress.config import ModelConfig
from compress.errors import CheckpointError
from compress.models import timm_nets
from compress.models.matching import Match, matches, own_names, under_all_names
from compress.models.mismatch import reason, rows_of, shapes_of
from compress.models.prepare import as_float32, materialize, remove_parametrizations
from compress.models.registry import ARCHITECTURES, build, needs_class_count
from compress.models.reparametrized import whole
from compress.models.weight_files import State, read_state, some
from compress.progress import SILENT, Progress

__all__ = ["check_values", "load_trained", "own_names", "read_state", "under_all_names"]

_ANY_COUNT = 2  # of classes, for a factory that demands a number before the file has said how many


def load_trained(
    config: ModelConfig,
    num_classes: int | None = None,
    *,
    shape: tuple[int, int, int] | None = None,
    progress: Progress = SILENT,
) -> nn.Module:
    """Build the configured architecture and load its weights; the class count is the checkpoint's own.

    With ``model.new_head`` the last layers keep fresh weights where the file has none, or others, for them.

    Args:
        num_classes: to build with until the checkpoint says how many; none: the factory's default.
        shape: of one input, (channels, height, width); networks with lazy layers need it.
        progress: is told which tensors of the file the weights are, and which are left out.

    Returns:
        the network in eval mode, float32, of plain layers.

    Raises:
        CheckpointError: missing, truncated or unsafe file, keys or shapes that do not match, NaN or infinite weights.
        ModelError: the architecture cannot be built.
    """
    assert config.weights is not None
    states = read_weights(config)
    if num_classes is None and needs_class_count(config.arch, config.args):
        num_classes = _ANY_COUNT
    net = build(config.arch, num_classes, config.args)
    found = _matches(net, states, shape, config.ema, progress)
    rows = rows_of(found[0], shapes_of(net))
    if rows and not config.new_head:
        net = build(config.arch, rows, config.args)
        found = _matches(net, states, shape, config.ema)
    best = found[0]
    head = fresh_layers(net, best, shape) if config.new_head else []
    if not (best.complete or head):
        raise _mismatch(net, best, states, config.weights)
    progress.note(_told(found, head))
    fresh = tuple(f"{layer}." for layer in head)
    load_state(net, {name: t for name, t in best.state.items() if not name.startswith(fresh)}, config.weights)
    remove_parametrizations(net)
    return net.eval()


def read_weights(config: ModelConfig) -> dict[str, State]:
    """The state_dicts of ``model.weights``, by their keys in the file; see ``read_state``.

    Raises:
        CheckpointError, ModelError: see ``load_trained``.
    """
    assert config.weights is not None
    if config.weights == "torchvision":
        return {"": download_state(config.arch)}
    if config.weights == "timm":
        if not config.arch.startswith(timm_nets.PREFIX):
            raise CheckpointError(
                f"model.weights = 'timm' gives timm's own weights, and '{config.arch}' is not a network of timm",
                remedy=f"set model.arch to '{timm_nets.PREFIX}{config.arch}', or model.weights to a file",
            )
        return {"": timm_nets.download(config.arch.removeprefix(timm_nets.PREFIX))}
    return read_state(Path(config.weights))


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
    """Load tensors that fit into ``net``, as float32.

    Raises:
        CheckpointError: values that are not finite, or no floats; see ``check_values``.
    """
    check_values(net, state, where)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    net.load_state_dict(under_all_names(net, state), strict=False)


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
            f"{where} holds {len(other)} weights that are not floating-point numbers ({some(other)})",
            remedy="a quantized or converted checkpoint is not the trained network: give the one that it was made from",
        )
    floats = {key: value for key, value in state.items() if value.is_floating_point()}
    broken = [key for key, value in floats.items() if not value.float().isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{where} has NaN or infinite values in {len(broken)} tensors ({some(broken)})",
            remedy="the training that wrote it diverged; use an earlier checkpoint",
        )
    negative = [key for key, value in floats.items() if key.endswith("running_var") and (value.float() < 0).any()]
    if negative:
        raise CheckpointError(
            f"{where} has BN variances below 0 in {len(negative)} layers ({some(negative)})",
            remedy="the file is damaged: use another checkpoint",
        )


def fresh_layers(net: nn.Module, match: Match, shape: tuple[int, int, int] | None) -> list[str]:
    """The layers of a network's classifier, if a checkpoint has no weights, or others, for them alone; else none.

    A classifier is a layer, or a module with all its layers, that runs last and has no convolution beyond 1x1.
    """
    unfit = {name.rpartition(".")[0] for name in (*match.missing, *match.misfits)}
    tops = {name.partition(".")[0] for name in shapes_of(net)} - {layer.partition(".")[0] for layer in unfit}
    wide = [w for layer in unfit for w in net.get_submodule(layer).parameters(recurse=False) if w.shape[2:].numel() > 1]
    if wide or not unfit or any(name.partition(".")[0] in tops for name in match.inside):
        return []
    order = _order(net, shape)
    module = PurePosixPath(os.path.commonpath([layer.replace(".", "/") for layer in unfit]))
    inside = {layer for layer in order if PurePosixPath(layer.replace(".", "/")).is_relative_to(module)}
    last = order[-len(unfit) :]
    return last if match.fits and set(last) == unfit == inside else []


@torch.no_grad()
def _order(net: nn.Module, shape: tuple[int, int, int] | None) -> list[str]:
    """The layers that have weights, in the order in which they first run; without a shape, as they are defined."""
    layers = {module: name for name, module in net.named_modules() if module._parameters or module._buffers}
    if shape is None:
        return list(layers.values())
    order: dict[str, None] = {}
    hooks = [module.register_forward_hook(lambda ran, *_: order.setdefault(layers[ran])) for module in layers]
    try:
        net.eval()(torch.zeros(1, *shape))
    except Exception:  # the network's own code may raise anything: what is wrong with it is said when it is traced
        return []
    finally:
        for hook in hooks:
            hook.remove()
    return list(order)


def _matches(
    net: nn.Module,
    states: Mapping[str, State],
    shape: tuple[int, int, int] | None,
    ema: bool,
    progress: Progress = SILENT,
) -> list[Match]:
    """How the file fits ``net``, which becomes one of plain layers unless the file has the parts of its weights."""
    as_float32(net, progress)
    if shape is not None:
        materialize(net, shape)
    found = matches(own_names(net), shapes_of(net), states, ema)
    if found[0].complete:
        return found
    remove_parametrizations(net)
    return matches(own_names(net), shapes_of(net), {key: whole(state) for key, state in states.items()}, ema)


def _told(found: Sequence[Match], head: Sequence[str]) -> str:
    """What is loaded, what of the file is not, and what else could have been."""
    best = found[0]
    dtypes = {tensor.dtype for tensor in best.state.values() if tensor.is_floating_point()} - {torch.float32}
    parts = [best.described()]
    if dtypes:
        parts.append(f"converted from {some(sorted(str(dtype).removeprefix('torch.') for dtype in dtypes))}")
    if head:
        parts.append(f"the classifier is new: {some(list(head))}")
    if rival := next((match for match in found[1:] if match.fits == best.fits), None):
        where = " behind ".join(f"'{part}'" for part in (rival.key, rival.prefix) if part)
        choice = f" (model.ema={str(rival.averaged).lower()} takes them)" if rival.averaged != best.averaged else ""
        parts.append(f"as many{', averaged,' if rival.averaged else ''} are under {where or 'no key'}{choice}")
    return "; ".join(parts)


def _mismatch(net: nn.Module, match: Match, states: Mapping[str, State], where: str) -> CheckpointError:
    parts = []
    if match.missing:
        parts.append(f"{len(match.missing)} keys missing ({some(list(match.missing))})")
    if match.inside:
        parts.append(f"{len(match.inside)} keys unknown ({some(list(match.inside))})")
    if match.misfits:
        own = shapes_of(net)
        shapes = [f"{k} is {tuple(match.state[k].shape)}, the network's {tuple(own[k])}" for k in match.misfits]
        parts.append(f"{len(match.misfits)} shapes differ ({some(shapes)})")
    return CheckpointError(
        f"{where} does not fit the network: {'; '.join(parts)}", remedy=reason(match, net, states, ARCHITECTURES)
    )
