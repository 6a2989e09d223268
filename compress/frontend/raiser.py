"""Raise an exported program: walk its ATen operations, and write down the standard layers and functions they are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from compress.errors import ModelError
from compress.frontend.aten_functions import FUNCTIONS, Arguments, reshape
from compress.frontend.aten_layers import DROPOUTS, LAYERS, Call, with_tensors
from compress.frontend.export import from_torch

_BLOCKS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}  # with the place of the graph among the arguments
_WRITES = ("copy", "fill", "zero", "index_put", "masked_fill", "scatter")


class Raiser:
    """One walk over a program.

    A layer stands at the path of the user's module that holds its tensors, if they have the names that the layer gives
    them (``layer1.0.conv1``), else at a new path inside that module (``blur.conv2d``). The tensors are the user's own.

    Attributes:
        graph: the raised graph.
        images: its input.
        layers: its layers, by path.
        tensors: the parameters, buffers and constants that it reads itself, by name.
    """

    def __init__(self, net: nn.Module, program: ExportedProgram, frozen: frozenset[str] = frozenset()) -> None:
        """
        Args:
            net: what was exported.
            frozen: names of tensors whose batch norms never train.
        """
        self.graph = fx.Graph()
        self.layers: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}
        self.images: fx.Node
        self._net, self._program, self._frozen = net, program, frozen
        self._value: dict[fx.Node, Any] = {}  # by node of the program: what stands for it in the raised graph
        self._named: dict[fx.Node, str] = {}  # by node of the program: the tensor of the network that it is
        self._keys: dict[str, tuple[Any, ...]] = {}  # by path: what a layer was made from
        tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
        self._all: dict[str, Tensor] = dict(tensors)
        self._names: dict[int, list[str]] = {}  # by identity: all names of a tensor
        for name, tensor in tensors:
            self._names.setdefault(id(tensor), []).append(name)
        modules = dict(net.named_modules(remove_duplicate=False))
        self._paths = set(modules)
        first: dict[int, str] = {}
        self._first = {path: first.setdefault(id(module), path) for path, module in modules.items()}

    def run(self) -> None:
        """Fill ``graph``, ``layers`` and ``tensors``.

        Raises:
            ModelError: an operation cannot be followed; the message names it, its module and its line.
        """
        signature = self._program.graph_signature
        kinds = {spec.arg.name: spec for spec in signature.input_specs}
        for node in self._program.graph.find_nodes(op="placeholder"):
            spec = kinds[node.name]
            if spec.kind is InputKind.USER_INPUT:
                if isinstance(node.meta.get("val"), Tensor):
                    self.images = self._value[node] = self.graph.placeholder(node.name)
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                assert spec.target is not None
                self._named[node] = spec.target
            else:
                self._named[node] = self._new_tensor("constant", self._program.constants[spec.target].detach().clone())
        results = []
        for output, value in zip(signature.output_specs, self._walk(self._program.graph_module), strict=True):
            if output.kind is OutputKind.USER_OUTPUT:
                results.append(value)
            elif output.kind is not OutputKind.USER_INPUT_MUTATION:
                raise ModelError(
                    f"the network writes into its own buffer '{output.target}' in eval mode",
                    remedy="update buffers in training mode only",
                )
        self.graph.output(_plain(pytree.tree_unflatten(results, self._program.call_spec.out_spec)))
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))

    def _walk(self, module: fx.GraphModule) -> Any:
        for node in module.graph.nodes:
            if node.op == "output":
                return self._stands_for(node.args[0])
            if node.op == "get_attr":
                self._value[node] = getattr(module, str(node.target))
            elif node.op == "call_function":
                self._value[node] = self._step(node)
        raise AssertionError("a graph ends with its output node")

    def _stands_for(self, value: Any) -> Any:
        """What an argument of the program is in the raised graph; a tensor of the network is read from it."""
        if isinstance(value, fx.Node):
            if value not in self._value and value in self._named:
                self._value[value] = self._read(value, self._named[value])
            return self._value[value]
        return type(value)(map(self._stands_for, value)) if isinstance(value, list | tuple) else value

    def _step(self, node: fx.Node) -> Any:
        target = node.target
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._block(node, str(target.name()))  # type: ignore[no-untyped-call]
        if target is operator.getitem:
            return self._value[node.args[0]][node.args[1]]  # type: ignore[index]
        name = str(target)
        if name == "aten.sym_size.int" or not isinstance(target, torch._ops.OpOverload):
            return node.meta["val"]  # a size: read off the result's shape where it is used
        if name.startswith(("aten._assert", "aten.sym_constrain")):
            return None
        operation = name.split(".")[1]
        in_place = target._schema.is_mutable and operation.endswith("_")
        plain_name = name.replace(operation, operation.rstrip("_"), 1) if in_place else name
        writes = target._schema.is_mutable and not plain_name.startswith("aten.batch_norm")
        if writes and (not in_place or plain_name.split(".")[1] in _WRITES):
            raise self.refusal(node, "it writes into a part of a tensor")
        result = self._raised(node, plain_name, self._arguments(node, target))
        if in_place:
            self._overwrite(node, result)
        return result

    def _block(self, node: fx.Node, name: str) -> Any:
        """A ``no_grad`` or ``autocast`` block: what is inside it."""
        if name not in _BLOCKS:
            raise self.refusal(node, f"control flow ({name})")
        start = _BLOCKS[name]
        inner = self._value[node.args[start]]  # type: ignore[index]
        places = inner.graph.find_nodes(op="placeholder")
        for placeholder, argument in zip(places, node.args[start + 1 :], strict=True):
            known: dict[fx.Node, Any] = self._named if argument in self._named else self._value
            known[placeholder] = known[argument]  # type: ignore[index]
        return self._walk(inner)

    def _raised(self, node: fx.Node, name: str, arguments: Arguments) -> Any:
        if name == "resnet_compress.sealed.default":
            path = self._first[arguments["path"]]
            self.layers[path] = self._net.get_submodule(path)
            return self._call_layer(node, path, arguments["x"])
        if name in LAYERS and (layer := self._layer(node, name, arguments)):
            return layer
        if name in DROPOUTS and not arguments["train"]:
            return self._dropout(node, name, arguments)
        make = FUNCTIONS.get(name) or FUNCTIONS.get(name.removesuffix(".default"))
        if make is not None:
            return make(self, node, arguments)
        # Not in the dialect: it stays as ATen has it, for a row of the user's own in the table of operations.
        args = self._stands_for(list(node.args))
        kwargs = {k: self._stands_for(v) for k, v in node.kwargs.items() if k not in ("device", "layout", "pin_memory")}
        if any(isinstance(leaf, torch.SymInt) for leaf in pytree.tree_leaves((args, kwargs))):
            raise self.refusal(node, "it computes with the batch size")
        target: Any = operator.attrgetter(name)(torch.ops)
        return self.call(node, target, tuple(args), kwargs)

    def _arguments(self, node: fx.Node, target: torch._ops.OpOverload) -> dict[str, Any]:
        """By the names of the schema, defaults included; tensors that a layer will own stay nodes of the program."""
        own = LAYERS[str(target)].tensors.values() if str(target) in LAYERS else ()
        found: dict[str, Any] = {}
        for position, argument in enumerate(target._schema.arguments):
            raw: Any = argument.default_value if argument.has_default_value() else None
            raw = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name, raw)
            keep = argument.name in own and isinstance(raw, fx.Node)
            found[argument.name] = raw if keep else self._stands_for(raw)
        return found

    def _overwrite(self, node: fx.Node, result: Any) -> None:
        """After an operation in place: whoever reads the tensor from now on reads the result."""
        written = node.args[0]
        assert isinstance(written, fx.Node)
        mine: Tensor = written.meta["val"]
        storage = mine.untyped_storage()._cdata
        for other in node.graph.nodes:
            if other is node:
                return
            value = other.meta.get("val")
            if not isinstance(value, Tensor) or value.untyped_storage()._cdata != storage:
                continue
            if other in self._named:
                raise self.refusal(node, "it writes into a parameter or buffer")
            if _geometry(value) == _geometry(mine):
                self._value[other] = result
            elif any(node < user for user in other.users):
                raise self.refusal(node, "it writes into a tensor that another view shows")

    # What the makers of functions use.

    def call(
        self, node: fx.Node, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> fx.Node:
        """Add the call of a function that stands for ``node`` of the program."""
        name = self._name(node, getattr(function, "__name__", "op"))
        return _noted(self.graph.create_node("call_function", function, args, kwargs or {}, name), node)

    def method(self, node: fx.Node, name: str, args: tuple[Any, ...]) -> fx.Node:
        """Add the call of a tensor's method."""
        return _noted(self.graph.create_node("call_method", name, args, {}, self._name(node, name)), node)

    def index(self, node: fx.Node, source: fx.Node, dim: int, part: Any) -> fx.Node:
        """Add ``source[:, ..., part]``; one after another they become one call."""
        before: tuple[Any, ...] = ()
        if source.target is operator.getitem:
            parts = source.args[1]
            assert isinstance(parts, tuple)
            joins = all(isinstance(p, slice) for p in parts) and (len(parts) <= dim or parts[dim] == slice(None))
            if joins and isinstance(source.args[0], fx.Node):
                source, before = source.args[0], parts
        index = [*before, *([slice(None)] * (dim + 1 - len(before)))]
        index[dim] = part
        return self.call(node, operator.getitem, (source, tuple(index)))

    def reshape(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """Add a change of shape to that of ``node``."""
        return reshape(self, node, source)

    def constant(self, node: fx.Node, value: Tensor) -> fx.Node:
        """Add the reading of a constant."""
        return self._read(node, self._new_tensor("constant", value))

    def shape_of(self, node: Any) -> tuple[Any, ...]:
        """The shape of a node of the program; the batch size is symbolic."""
        return tuple(node.meta["val"].shape)

    def refusal(self, node: fx.Node, reason: str) -> ModelError:
        """The error for an operation that cannot be followed."""
        lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
        own = [k for k, line in enumerate(lines) if line.startswith("File") and not from_torch(line.split('"')[1])]
        at = f" ({' '.join(lines[own[-1] : own[-1] + 2])})" if own else ""
        path = _path(node)
        inside = f" in '{path}'" if path else ""
        return ModelError(
            f"cannot follow '{node.target}'{inside}{at}: {reason}",
            remedy="rewrite it with operations that return a new tensor for every image of the batch",
        )

    # Layers.

    def _layer(self, node: fx.Node, name: str, arguments: Arguments) -> fx.Node | None:
        """The call of a layer; None if its tensors are computed from the images."""
        names: dict[str, str] = {}
        for attribute, argument in LAYERS[name].tensors.items():
            if (value := arguments.get(argument)) is not None:
                tensor = self._named.get(value) or self._folded(value)
                if tensor is None:
                    return None
                names[attribute] = tensor
        tensors = {attribute: self._all[tensor] for attribute, tensor in names.items()}
        settings = [(k, v) for k, v in arguments.items() if k not in LAYERS[name].tensors.values()]
        key = (
            name,
            *(f"{k}={v}" for k, v in settings if not isinstance(v, fx.Node)),
            *sorted(f"{k}={id(v)}" for k, v in tensors.items()),
        )
        path = self._place(node, name.split(".")[1], names, key)
        if path not in self.layers:
            owner = self._net.get_submodule(path) if path in self._paths else None
            trains = not self._frozen.intersection(names.values())
            call = Call(arguments, tensors, owner, self.shape_of(node.args[0]), trains)
            try:
                self.layers[path] = with_tensors(LAYERS[name].make(call), call)
            except ValueError as error:
                raise self.refusal(node, str(error)) from None
            self._keys[path] = key
        return self._call_layer(node, path, self._stands_for(node.args[0]))

    def _place(self, node: fx.Node, operation: str, names: Mapping[str, str], key: tuple[Any, ...]) -> str:
        """The user's module whose tensors these are, if it is free for this layer; else a new path inside it."""
        here = self._first.get(_path(node), _path(node))
        owners = []
        for attribute, tensor in names.items():
            split = (name.rpartition(".") for name in self._names[id(self._all[tensor])])
            owners.append({self._first.get(owner, owner) for owner, _, last in split if last == attribute})
        shared = set.intersection(*owners) if owners else {here}
        for path in sorted(shared, key=lambda path: (path != here, path)):
            if path and self._is_free(path, set(names), key):
                return path
        base = next(iter(names.values())).rpartition(".")[0] if names else here
        joint = "_" if base in self.layers else "."  # a layer has no children
        fresh = f"{base}{joint}{operation}" if base else operation
        if self._keys.get(fresh) == key:
            return fresh
        return self._unused(fresh)

    def _is_free(self, path: str, attributes: set[str], key: tuple[Any, ...]) -> bool:
        if path in self.layers:
            return self._keys.get(path) == key
        if path not in self._paths or any(other.startswith(f"{path}.") for other in self.layers):
            return False
        module = self._net.get_submodule(path)
        own = {n for n, t in [*module._parameters.items(), *module._buffers.items()] if t is not None}
        return own - {"num_batches_tracked"} <= attributes and not any(True for _ in module.children())

    def _dropout(self, node: fx.Node, name: str, arguments: Arguments) -> fx.Node:
        path, key = _path(node), (name, arguments["p"])
        path = self._first.get(path, path)
        module = self._net.get_submodule(path) if path in self._paths else None
        if not isinstance(module, nn.modules.dropout._DropoutNd) or self._keys.get(path, key) != key:
            path = self._unused(f"{path}.dropout".lstrip("."))
        if path not in self.layers:
            self.layers[path], self._keys[path] = DROPOUTS[name](arguments["p"]), key
        return self._call_layer(node, path, arguments["input"])

    def _call_layer(self, node: fx.Node, path: str, source: Any) -> fx.Node:
        return _noted(self.graph.create_node("call_module", path, (source,), {}, path.replace(".", "_")), node)

    def _unused(self, path: str) -> str:
        taken = self._paths | self.layers.keys() | self._all.keys()
        return next(p for p in (path, *(f"{path}_{k}" for k in range(1, len(taken) + 2))) if p not in taken)

    # Tensors.

    def _folded(self, value: Any) -> str | None:
        """A weight that is computed from parameters alone becomes a parameter, with the value that it has now.

        None if it depends on the images.
        """
        found: dict[fx.Node, Any] = {}

        def compute(argument: Any) -> Any:
            if argument in self._named:
                return self._all[self._named[argument]].detach()
            if argument not in found:
                target = argument.target
                if argument.op != "call_function" or getattr(getattr(target, "_schema", None), "is_mutable", False):
                    raise LookupError
                args, kwargs = fx.map_arg((argument.args, argument.kwargs), compute)
                found[argument] = target(*args, **kwargs)
            return found[argument]

        try:
            result = compute(value)
        except LookupError:
            return None
        self._named[value] = self._new_tensor(f"{_path(value)}.computed".lstrip("."), nn.Parameter(result.clone()))
        return self._named[value]

    def _new_tensor(self, name: str, tensor: Tensor) -> str:
        name = self._unused(name)
        self._all[name] = tensor
        self._names[id(tensor)] = [name]
        return name

    def _read(self, node: fx.Node, name: str) -> fx.Node:
        self.tensors[name] = self._all[name]
        return _noted(self.graph.get_attr(name), node)

    def _name(self, node: fx.Node, operation: str) -> str:
        """``layer1_0_relu`` for what layer1.0, or its layer ``relu``, computes."""
        path = _path(node)
        standard = path in self._paths and type(self._net.get_submodule(path)).__module__.startswith("torch.nn")
        return "_".join(part for part in (path.replace(".", "_"), "" if path and standard else operation) if part)


def _path(node: fx.Node) -> str:
    """The path of the user's module that computes a node of the program."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path: str = stack[-1][0] if stack else ""
    return path.partition("@")[0]


def _noted(made: fx.Node, node: fx.Node) -> fx.Node:
    """Keep what error messages say of a node, and nothing that holds the program."""
    made.meta = {key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta}
    return made


def _geometry(tensor: Tensor) -> str:
    return str((tuple(tensor.shape), tensor.stride(), tensor.storage_offset()))


def _plain(output: Any) -> Any:
    """Subclasses of dict, which a graph does not hold, as dicts."""
    if isinstance(output, Mapping):
        return {key: _plain(value) for key, value in output.items()}
    return type(output)(map(_plain, output)) if type(output) in (list, tuple) else output
