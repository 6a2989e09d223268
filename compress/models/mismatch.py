"""Why a checkpoint does not fit a network, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import nn

from compress.errors import ModelError
from compress.models.matching import Match, matches, own_names
from compress.models.registry import build
from compress.models.weight_files import State


def reason(match: Match, net: nn.Module, states: Mapping[str, State], architectures: Iterable[str]) -> str:
    """The most likely cause of a mismatch, as a remedy; the first one of several.

    Args:
        match: the best one.
        states: see ``read_state``.
        architectures: names of networks that the weights may be of.
    """
    if fitting := next((arch for arch in architectures if _fits(arch, states)), None):
        return f"these weights are of a '{fitting}': set model.arch (MODEL=)"
    return (
        _other_head(match)
        or _other_classes(match, net)
        or _no_head(match, net)
        or _too_many(match)
        or (match.fits == 0 and (_wrapped(net, states) or _other_names(states)))
        or "is model.arch (MODEL=) the architecture, with the options, that these weights were trained with?"
    )


def _fits(arch: str, states: Mapping[str, State]) -> bool:
    """Whether the file holds all of a built-in network, but for its number of classes."""
    known = _known(arch)
    if known is None:
        return False
    own, shapes = known
    if all(len(state) < len(own) // 2 for state in states.values()):
        return False
    best = matches(own, shapes, states)[0]
    return not best.missing and not best.inside and rows_of(best, shapes) is not None


@cache
def _known(arch: str) -> tuple[list[list[str]], dict[str, torch.Size]] | None:
    """The names and shapes of a built-in network, which is not allocated."""
    try:
        with torch.device("meta"):
            net = build(arch)
    except ModelError:
        return None
    return own_names(net), shapes_of(net)


def shapes_of(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


def rows_of(match: Match, shapes: Mapping[str, torch.Size]) -> int | None:
    """How many classes the file's classifier tells apart, if all else fits; 0 if that fits too.

    None where other tensors have another shape than the network's.
    """
    rows = {match.state[name].shape[:1] for name in match.misfits}
    own = {shapes[name][:1] for name in match.misfits}
    others = [name for name in match.misfits if match.state[name].shape[1:] != shapes[name][1:]]
    if others or len(rows) > 1 or len(own) > 1 or len({name.rpartition(".")[0] for name in match.misfits}) > 1:
        return None
    return next((row[0] for row in rows if row), None) if rows else 0


def _other_head(match: Match) -> str:
    """The file has a sequence of layers where the network has one, or the other way round."""
    for name in match.missing:
        layer, _, parameter = name.rpartition(".")
        deeper = [re.fullmatch(rf"{re.escape(layer)}\.(\d+)\.{parameter}", other) for other in match.inside]
        places = [int(found[1]) for found in deeper if found]
        if len(places) == 1:
            layers = ["torch.nn.Dropout(0.5)"] * places[0]
            sequence = f"torch.nn.Sequential({', '.join([*layers, f'net.{layer}'])})"
            return (
                f"the file has '{layer}.{places[0]}.{parameter}': its '{layer}' is a Sequential. Set model.arch to a "
                "factory of your own with the layers that the training had, such as\n"
                "    def build(num_classes):\n"
                "        net = torchvision.models.resnet18(num_classes=num_classes)\n"
                f"        net.{layer} = {sequence}\n"
                "        return net"
            )
        if places:
            return (
                f"the file's '{layer}' is a Sequential with weights in its layers {', '.join(map(str, places))}: set "
                "model.arch to a factory of your own that builds the network with it"
            )
        outer = re.match(r"(.+)\.\d+$", layer)
        if outer and f"{outer[1]}.{parameter}" in match.inside:
            return f"the file's '{outer[1]}' is one layer, the network's is a Sequential: build the network with one"
    return ""


def _other_classes(match: Match, net: nn.Module) -> str:
    rows = None if match.missing or match.inside else rows_of(match, shapes_of(net))
    if not rows:
        return ""
    return (
        f"the weights are for {rows} classes, and the factory does not build the network for as many: set the argument "
        "that says how many, such as model.args.num_classes, or model.new_head=true for a new classifier"
    )


def _no_head(match: Match, net: nn.Module) -> str:
    layers = {name.rpartition(".")[0] for name in match.missing}
    if match.misfits or match.inside or len(layers) != 1 or not isinstance(net.get_submodule(*layers), nn.Linear):
        return ""
    return f"the file has no weights for the classifier '{layers.pop()}': set model.new_head=true to train a new one"


def _wrapped(net: nn.Module, states: Mapping[str, State]) -> str:
    """The file holds a part of the network."""
    for child, module in net.named_children():
        own = own_names(module)
        if len(own) > 2 and any(match.complete for match in matches(own, shapes_of(module), states)[:1]):
            return (
                f"the file holds the weights of the network's part '{child}' alone: save those of the whole network, "
                f"or set model.arch to a factory of that part"
            )
    return ""


def _other_names(states: Mapping[str, State]) -> str:
    if any("embedder.embedder.convolution" in name for state in states.values() for name in state):
        return (
            "these are the names of Hugging Face's transformers: rename them to torchvision's, as "
            "docs/howto/checkpoints.md shows, and set model.arch to the ResNet"
        )
    return ""


def _too_many(match: Match) -> str:
    if match.missing or match.misfits:
        return ""
    return (
        "the file has all of the network and more: is model.arch (MODEL=) the whole of what was trained? If the others "
        "are no part of it, save the weights without them"
    )
