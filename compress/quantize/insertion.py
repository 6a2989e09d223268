"""Find where quantizers go: NNCF's propagation rules decide, and the result is converted to this package's values.

NNCF knows which operations run in integers, which merely pass integers on, and where one quantizer serves several
readers. What it measures is not used: ranges are found, and rounding errors corrected, for the placement that ships.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, fx, nn

from compress.engines.openvino import without_telemetry
from compress.errors import ModelError
from compress.models.cifar import SelectPad
from compress.quantize.graph import PREFIX, Unrolled, layer_of

Site = tuple[str, str | None]
"""(source, user) node names of a tensor that is quantized; user None: for all users of the source."""


@dataclass(frozen=True)
class Sites:
    """What can be quantized in a network.

    Attributes:
        activations: in the order of execution.
        layers: names of the layers whose weights are.
    """

    activations: tuple[Site, ...]
    layers: tuple[str, ...]


def find_sites(graph: fx.GraphModule, image: Tensor, *, symmetric: bool) -> Sites:
    """Ask NNCF where it would quantize.

    Args:
        graph: of a BN-folded network; see ``graph.trace``.
        image: (N, C, H, W), any; NNCF runs it to see the operations.
        symmetric: activations will have zero point 0.

    Raises:
        ModelError: NNCF cannot quantize the network, or nothing in it can be.
    """
    net = Unrolled(graph).eval()
    with _nncf() as nncf:
        inside = [f"{PREFIX}{node.name}/.*" for node in net.nodes if _is_select_pad(net, node)]
        presets, parameters = nncf.QuantizationPreset, nncf.quantization.advanced_parameters
        try:
            quantized = nncf.quantize(
                net,
                nncf.Dataset([image]),
                preset=presets.PERFORMANCE if symmetric else presets.MIXED,
                subset_size=1,
                ignored_scope=nncf.IgnoredScope(patterns=inside) if inside else None,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    activations_quantization_params=parameters.QuantizationParameters(per_channel=False),
                    disable_bias_correction=True,
                ),
            )
        except Exception as error:
            raise ModelError(f"NNCF cannot quantize the network: {error}") from error
        return _read(quantized, graph)


def _is_select_pad(net: Unrolled, node: fx.Node) -> bool:
    return isinstance(getattr(net, PREFIX + node.name, None), SelectPad)


@contextlib.contextmanager
def _nncf() -> Iterator[Any]:
    """NNCF without telemetry, output or compiler.

    Its C++ quantizer costs a C compiler and a minute at the first use; here quantizers run on one image at most, for
    which NNCF's own torch reference serves.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns that there is no GPU
    with contextlib.redirect_stdout(io.StringIO()):
        with without_telemetry():
            import nncf
        from nncf.torch.quantization.extensions import QuantizedFunctionsCPU
        from nncf.torch.quantization.reference import ReferenceBackendType, ReferenceQuantize

        logger = logging.getLogger("nncf")
        level, loaded = logger.level, QuantizedFunctionsCPU._loaded_namespace
        logger.setLevel(logging.ERROR)
        reference = ReferenceQuantize(ReferenceBackendType.TORCH)
        QuantizedFunctionsCPU._loaded_namespace = SimpleNamespace(Quantize_forward=reference.forward)
        try:
            yield nncf
        finally:
            logger.setLevel(level)
            QuantizedFunctionsCPU._loaded_namespace = loaded


def _read(quantized: nn.Module, graph: fx.GraphModule) -> Sites:
    from nncf.torch.function_hook.hook_storage import decode_hook_name
    from nncf.torch.function_hook.wrapper import get_hook_storage

    nodes = {node.name: node for node in graph.graph.nodes}
    activations: set[Site] = set()
    layers: dict[str, None] = {}
    floats: set[str] = set()  # nodes that multiply by weights, but are no layer that this package writes in integers
    for name, hook in get_hook_storage(quantized).named_hooks():
        kind, operation, port = decode_hook_name(name)
        node = _node(nodes, operation)
        if kind == "pre_hooks" and port == 1 and isinstance(layer_of(graph, node), nn.Conv2d | nn.Linear):
            layers[str(node.target)] = None
        elif hook.get_input_low_input_high()[0].numel() != 1:
            floats.add(node.name)
        elif kind == "post_hooks":
            activations.add((node.name, None))
        elif port < len(node.all_input_nodes):  # else the weight of a norm, which engines compute in float
            activations.add((node.all_input_nodes[port].name, node.name))
    if not layers:
        raise ModelError("nothing in the network can be quantized", remedy="it needs Conv2d or Linear layers")
    return Sites(in_order(graph, (site for site in activations if site[1] not in floats)), tuple(layers))


def in_order(graph: fx.GraphModule, sites: Iterable[Site]) -> tuple[Site, ...]:
    """Sites in the order in which their sources run."""
    order = {node.name: index for index, node in enumerate(graph.graph.nodes)}
    return tuple(sorted(sites, key=lambda site: (order[site[0]], site[1] or "")))


def _node(nodes: dict[str, fx.Node], operation: str) -> fx.Node:
    """The node of an NNCF operation name such as ``node_layer1_0_conv1/conv2d/0`` (or ``input``)."""
    scope = operation.partition("/")[0]
    if scope.startswith(PREFIX):
        return nodes[scope.removeprefix(PREFIX)]
    return next(node for node in nodes.values() if node.op == "placeholder")
