"""Find a network's own tensors in a checkpoint: under which key, and behind which prefix, most of them lie."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.models.weight_files import State, some

Shapes = Mapping[str, torch.Size]

# What DataParallel, torch.compile, FSDP and activation checkpointing put between the names of modules.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged?|averaging|momentum|shadow)([._]|$)")
# Tensors without a part in the float network's outputs: counters, sizes by thop, observers of QAT, losses and metrics.
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
_OBSERVER = re.compile(r"fake_quant|activation_post_process")
_BESIDE = re.compile(
    r"(^|[._])(loss(es)?(_\w+)?|\w*_loss|criterion\w*|\w*metrics?|\w*acc(uracy)?|\w*auroc|\w*f1|class_weights?"
    r"|\w*precision|\w*recall|\w*confusion\w*|ema\w*)([._]|$)"
)


@dataclass(frozen=True)
class Match:
    """A state_dict of a checkpoint, as one network would take it.

    Attributes:
        key: where it lies in the file: keys joined by dots; empty: the file itself.
        prefix: what stands before the names of the network.
        state: what the file has of the network, by the network's own names; a shape may differ.
        missing: what the file lacks; the names of a shared tensor count as one.
        misfits: whose shape differs.
        inside: further tensors of the file behind the same prefix, without it.
        beside: further tensors of the file that do not belong to the network.
        fits: how many of the network's tensors are there in the right shape.
    """

    key: str
    prefix: str
    state: State
    missing: tuple[str, ...]
    misfits: tuple[str, ...]
    inside: tuple[str, ...]
    beside: tuple[str, ...]
    fits: int

    @property
    def averaged(self) -> bool:
        """Whether these are averaged weights (EMA, SWA), by their key or prefix."""
        return bool(_AVERAGED.search(f"{self.key}.{self.prefix}".lower()))

    @property
    def complete(self) -> bool:
        """Whether every tensor of the network is there and nothing says that the network is another."""
        return not (self.missing or self.misfits or self.inside)

    def described(self) -> str:
        """Where the weights come from, in words.

        >>> print(Match("ema", "net.", {}, (), (), (), ("loss.weight",), 62).described().replace("; ", "\\n"))
        weights: 62 tensors from 'ema' without the prefix 'net.', averaged (EMA)
        1 other in the file is not the network's: loss.weight
        """
        source = f" from '{self.key}'" if self.key else ""
        prefix = f" without the prefix '{self.prefix}'" if self.prefix else ""
        text = f"weights: {self.fits} tensors{source}{prefix}{', averaged (EMA)' if self.averaged else ''}"
        if not self.beside:
            return text
        others = "1 other in the file is" if len(self.beside) == 1 else f"{len(self.beside)} others in the file are"
        return f"{text}; {others} not the network's: {some(list(self.beside))}"


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


def matches(own: Sequence[Sequence[str]], shapes: Shapes, states: Mapping[str, State], ema: bool = True) -> list[Match]:
    """How each state_dict of a file fits a network, behind each likely prefix; the best one first.

    That is the one with the most tensors that fit in name and shape; of several the averaged one (or, without ``ema``,
    the one that is not averaged), the one with the fewest tensors too many, and the one with the shortest prefix.

    Args:
        own: see ``own_names``.
        shapes: of all the network's tensors.
        states: see ``read_state``.
    """
    found = [
        _match(own, shapes, key, prefix, state)
        for key, state in states.items()
        for prefix in _prefixes(shapes, _unwrapped(shapes, state))
    ]
    return sorted(
        found,
        key=lambda match: (-match.fits, match.averaged != ema, len(match.inside), len(match.prefix), len(match.key)),
    )


def _unwrapped(shapes: Shapes, state: State) -> dict[str, str]:
    """The file's names by the names without what wrappers have put into them."""
    wrappers = _WRAPPERS - {part for name in shapes for part in name.split(".")}
    plain: dict[str, str] = {}
    for name in state:
        plain.setdefault(".".join(part for part in name.split(".") if part not in wrappers), name)
    return plain


def _prefixes(shapes: Shapes, names: Mapping[str, str], most: int = 4) -> list[str]:
    """The prefixes behind which the most of the network's names are; none is one of them."""
    counts = Counter({"": 0})
    for name in names:
        for prefix, rest in _splits(name):
            if rest in shapes:
                counts[prefix] += 1
    return [prefix for prefix, _ in sorted(counts.items(), key=lambda item: (-item[1], len(item[0])))[:most]]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    place = 0
    while True:
        yield name[:place], name[place:]
        place = name.find(".", place) + 1
        if not place:
            return


def _match(own: Sequence[Sequence[str]], shapes: Shapes, key: str, prefix: str, state: State) -> Match:
    plain = _unwrapped(shapes, state)
    taken = {name: plain[prefix + name] for name in shapes if prefix + name in plain}
    if len(taken) > len(shapes) // 2:
        taken |= _elsewhere(plain, shapes.keys() - taken.keys())
    tensors = {name: state[source] for name, source in taken.items()}
    misfits = tuple(name for name in tensors if tensors[name].shape != shapes[name])
    missing = tuple(names[0] for names in own if not tensors.keys() & set(names) and not _counts(names[0]))
    used = set(taken.values())
    rest = [name for name, source in plain.items() if source not in used]
    tops = {name.partition(".")[0] for name in shapes}
    inside = tuple(
        name.removeprefix(prefix)
        for name in rest
        if name.startswith(prefix) and not _harmless(name.removeprefix(prefix), state[plain[name]], tops)
    )
    beside = tuple(name for name in rest if name.removeprefix(prefix) not in inside or not name.startswith(prefix))
    shown = tuple(name for name in beside if not _counts(name))
    return Match(key, prefix, tensors, missing, misfits, inside, shown, len(tensors) - len(misfits))


def _elsewhere(plain: Mapping[str, str], lacking: set[str]) -> dict[str, str]:
    """The file's names for tensors that all lie behind one other prefix, as the head beside a backbone does."""
    wanted = {name for name in lacking if not _counts(name)}
    if not wanted:
        return {}
    counts = Counter(prefix for name in plain for prefix, rest in _splits(name) if rest in wanted)
    for prefix, count in counts.most_common(1):
        if count == len(wanted):
            return {name: plain[prefix + name] for name in lacking if prefix + name in plain}
    return {}


def _harmless(name: str, tensor: Tensor, tops: set[str]) -> bool:
    """Whether a tensor that the network lacks is no sign that the network is another one."""
    counts = _counts(name) or (tensor.dim() == 0 and not tensor.is_floating_point())
    loss = name.partition(".")[0] not in tops and _BESIDE.search(name.lower())
    return bool(counts or _OBSERVER.search(name) or loss)


def _counts(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS
