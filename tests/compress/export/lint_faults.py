"""A small quantized network, and the faults that the tests of the linter make in its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from torch import Tensor, nn

from calibration.preprocess import Preprocess
from compress.engines.metadata import Metadata
from compress.export.lower import lower
from compress.export.onnx import export_onnx
from compress.frontend.raising import raised
from compress.quantize.calibrate import calibrate
from compress.quantize.fold import fold
from compress.targets import profile

Q, DQ = "QuantizeLinear", "DequantizeLinear"


class Net(nn.Module):
    """Stem, max pool, one residual block, average pool, classifier; widths that tensor cores like."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 32, 3, 2, 1), nn.MaxPool2d(2)
        self.a, self.b = nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1)
        self.mean, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        logits: Tensor = self.fc(self.mean(x).flatten(1))
        return logits


def export(net: nn.Module, path: Path, target: str, channels: int = 3, size: int = 16) -> Path:
    images = [torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(0))]
    calibrated = calibrate(net.eval(), images, target)
    want = profile(target)
    preprocess = Preprocess(size, mean=(0.5,) * channels, std=(0.5,) * channels, channels=channels)
    metadata = Metadata("net", "int8", preprocess, (), 1, 1, target, "0.1.0")
    lowered = lower(calibrated.net, calibrated.quantizers)
    export_onnx(lowered, path, metadata, want.opset, half=want.float_type == "float16")
    return path


def tensor(model: ModelProto, name: str) -> TensorProto:
    return next(value for value in model.graph.initializer if value.name == name)


def of(model: ModelProto, kind: str) -> Iterator[NodeProto]:
    return (node for node in model.graph.node if node.op_type == kind)


def producer(model: ModelProto, name: str) -> NodeProto:
    return next((node for node in model.graph.node if name in node.output), NodeProto())


def users(model: ModelProto, name: str) -> list[NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def give(model: ModelProto, node: NodeProto, index: int, value: np.ndarray) -> None:
    """Let one input of a node be a new constant, where others keep the old one."""
    name = f"fault_{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[index] = name


def value(model: ModelProto, node: NodeProto, index: int) -> np.ndarray:
    return numpy_helper.to_array(tensor(model, node.input[index]))


def both(model: ModelProto, q: NodeProto, index: int, new: np.ndarray) -> None:
    """Change a scale or zero point of a Q and of its DQs."""
    for node in [q, *users(model, q.output[0])]:
        give(model, node, index, new)


def after_relu(model: ModelProto) -> NodeProto:
    return next(node for node in of(model, Q) if producer(model, node.input[0]).op_type == "Relu")


def weight(model: ModelProto, kind: str = "Conv") -> NodeProto:
    return producer(model, next(of(model, kind)).input[1])


def bypass(model: ModelProto, dq: NodeProto) -> None:
    """Let what reads a DQ read what its Q quantized."""
    before = producer(model, dq.input[0]).input[0]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == dq.output[0]:
                node.input[index] = before


def drop(model: ModelProto, *nodes: NodeProto) -> None:
    for node in nodes:
        model.graph.node.remove(node)


def drop_pair(model: ModelProto, q: NodeProto) -> None:
    for dq in users(model, q.output[0]):
        bypass(model, dq)
        drop(model, dq)
    drop(model, q)


def insert_pair(model: ModelProto, name: str, reader: NodeProto, like: NodeProto) -> None:
    """Put Q/DQ with the parameters of ``like`` between a tensor and one of its readers."""
    q = helper.make_node(Q, [name, *like.input[1:]], ["fault_q"], name="fault_q")
    dq = helper.make_node(DQ, ["fault_q", *like.input[1:]], ["fault_dq"], name="fault_dq")
    at = list(model.graph.node).index(reader)
    reader.input[list(reader.input).index(name)] = "fault_dq"
    model.graph.node.insert(at, q)
    model.graph.node.insert(at + 1, dq)


def wrong_activation_type(model: ModelProto) -> None:
    q = after_relu(model)
    kind = np.int8 if value(model, q, 2).dtype == np.uint8 else np.uint8
    both(model, q, 2, np.array(0, kind))


def wide_activation(kind: type[np.generic]) -> Callable[[ModelProto], None]:
    """16 bits, as a quantizer for another engine makes them; ONNX Runtime runs what reads it in float."""

    def change(model: ModelProto) -> None:
        q = after_relu(model)
        both(model, q, 2, np.array(0, kind))

    return change


def signed_residual(model: ModelProto) -> None:
    """Signed where two layers read it, as ONNX Runtime's quantizer makes files by default."""
    after_pool = next(q for q in of(model, Q) if producer(model, q.input[0]).op_type == "MaxPool")
    for q in (after_relu(model), after_pool):
        both(model, q, 2, np.array(-128, np.int8))


def shifted_zero_point(model: ModelProto) -> None:
    q = after_relu(model)
    zero = value(model, q, 2)
    both(model, q, 2, (zero + 3).astype(zero.dtype))


def zero_scale(model: ModelProto) -> None:
    node = weight(model)
    scale = value(model, node, 1).copy()
    scale[2] = 0
    give(model, node, 1, scale)


def infinite_scale(model: ModelProto) -> None:
    q = after_relu(model)
    both(model, q, 1, np.array(np.inf, value(model, q, 1).dtype))


def scale_behind_identity(model: ModelProto) -> None:
    q = after_relu(model)
    node = helper.make_node("Identity", [q.input[1]], ["at_run_time"], name="at_run_time")
    q.input[1] = "at_run_time"
    model.graph.node.insert(0, node)


def other_scale(model: ModelProto) -> None:
    dq = users(model, after_relu(model).output[0])[0]
    give(model, dq, 1, value(model, dq, 1) * 2)


def quantized_twice(model: ModelProto) -> None:
    dq = users(model, after_relu(model).output[0])[0]
    insert_pair(model, dq.output[0], users(model, dq.output[0])[0], like=dq)


def unsigned_weights(model: ModelProto) -> None:
    node = weight(model)
    give(model, node, 0, (value(model, node, 0).astype(np.int16) + 128).astype(np.uint8))
    give(model, node, 2, np.full(value(model, node, 2).shape, 128, np.uint8))


def shifted_weights(model: ModelProto) -> None:
    node = weight(model)
    zero = value(model, node, 2).copy()
    zero[1] = 4
    give(model, node, 2, zero)


def overflowing_pair(model: ModelProto) -> None:
    node = producer(model, list(of(model, "Conv"))[1].input[1])  # 32 x 32
    weights = value(model, node, 0).copy()
    weights[3, :2, 1, 1] = 127
    give(model, node, 0, weights)


def weights_by_input_channel(model: ModelProto) -> None:
    node = producer(model, list(of(model, "Conv"))[1].input[1])  # 32 x 32
    next(a for a in node.attribute if a.name == "axis").i = 1


def one_weight_scale(model: ModelProto) -> None:
    node = weight(model)
    give(model, node, 1, value(model, node, 1).max())
    give(model, node, 2, np.array(0, np.int8))


def int32_bias(model: ModelProto) -> None:
    conv = next(of(model, "Conv"))
    scale = value(model, weight(model), 1)
    give(model, conv, 2, (value(model, conv, 2) / scale).round().astype(np.int32))
    model.graph.initializer.append(numpy_helper.from_array(scale, "bias_scale"))
    model.graph.node.insert(0, helper.make_node(DQ, [conv.input[2], "bias_scale"], ["b"], name="bias", axis=0))
    conv.input[2] = "b"


def float_bias(model: ModelProto) -> None:
    give(model, next(of(model, "Gemm")), 2, np.zeros(5, np.float32))


def float_weight(model: ModelProto) -> None:
    dq = weight(model)
    scale = value(model, dq, 1)
    give(model, next(of(model, "Conv")), 1, value(model, dq, 0).astype(scale.dtype) * scale[:, None, None, None])
    drop(model, dq)


def float_input(model: ModelProto) -> None:
    drop_pair(model, next(of(model, Q)))


def bare_output(model: ModelProto) -> None:
    drop_pair(model, next(q for q in of(model, Q) if producer(model, q.input[0]).op_type == "Conv"))


def returned_convolution(model: ModelProto) -> None:
    bare_output(model)
    conv = list(of(model, "Conv"))[-1]
    drop(model, *list(model.graph.node)[list(model.graph.node).index(conv) + 1 :])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(conv.output[0], TensorProto.FLOAT, None))


def float_skip(model: ModelProto) -> None:
    add = next(of(model, "Add"))
    for name in add.input:
        source = producer(model, name)
        while source.op_type == "MaxPool":
            source = producer(model, source.input[0])
        if source.op_type == DQ:
            drop_pair(model, producer(model, source.input[0]))


def quantized_main_path(model: ModelProto) -> None:
    add = next(of(model, "Add"))
    main = next(name for name in add.input if producer(model, name).op_type == "Conv")
    insert_pair(model, main, add, like=after_relu(model))


def pool_of_floats(model: ModelProto) -> None:
    pool = next(of(model, "MaxPool"))
    dq = producer(model, pool.input[0])
    q = producer(model, dq.input[0])
    relu, pooled, parameters = q.input[0], pool.output[0], list(q.input[1:])
    drop_pair(model, q)
    assert pool.input[0] == relu
    at = list(model.graph.node).index(pool) + 1
    for node in users(model, pooled):
        node.input[list(node.input).index(pooled)] = "fault_dq"
    model.graph.node.insert(at, helper.make_node(Q, [pooled, *parameters], ["fault_q"], name="fault_q"))
    model.graph.node.insert(at + 1, helper.make_node(DQ, ["fault_q", *parameters], ["fault_dq"], name="fault_dq"))


def wide_relu(kind: int) -> Callable[[ModelProto], None]:
    """A ReLU between casts to a wider type and back."""

    def change(model: ModelProto) -> None:
        relu = next(of(model, "Relu"))
        at = list(model.graph.node).index(relu)
        cast = helper.make_node("Cast", [relu.input[0]], ["wide"], name="to_wide", to=kind)
        back = helper.make_node("Cast", ["wide_relu"], [relu.output[0]], name="from_wide", to=TensorProto.FLOAT16)
        relu.input[0], relu.output[0] = "wide", "wide_relu"
        model.graph.node.insert(at, cast)
        model.graph.node.insert(at + 2, back)
        del model.graph.value_info[:]

    return change


def half_output(model: ModelProto) -> None:
    out = model.graph.output[0]
    cast = helper.make_node("Cast", [out.name], ["half"], name="cast", to=TensorProto.FLOAT16)
    model.graph.node.append(cast)
    out.CopyFrom(helper.make_tensor_value_info("half", TensorProto.FLOAT16, ["batch", 5]))


def opset(version: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.opset_import[0].version = version

    return change


# --- variations, right or wrong, that other tools or hands make -------------------------------------------------------


def removed_zero_points(model: ModelProto) -> None:
    """Q and DQ without a zero point: ONNX then takes uint8, unless an attribute names a type."""
    for node in model.graph.node:
        if node.op_type in (Q, DQ):
            del node.input[2:]


def output_types(model: ModelProto) -> None:
    """The integer type in an attribute of Q, as files of opset 21 may have it."""
    removed_zero_points(model)
    model.opset_import[0].version = 21
    for node in of(model, Q):
        node.attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))


def float_scales(model: ModelProto) -> None:
    """Scales in float32 around float16, as opset 23 allows them."""
    model.opset_import[0].version, model.ir_version = 23, 11
    for node in model.graph.node:
        if node.op_type in (Q, DQ):
            give(model, node, 1, value(model, node, 1).astype(np.float32))
        if node.op_type == DQ:
            node.attribute.append(helper.make_attribute("output_dtype", TensorProto.FLOAT16))


def float_scales_of_old(model: ModelProto) -> None:
    """Scales in float32 in a file that has no way to say that the result is float16."""
    for node in model.graph.node:
        if node.op_type in (Q, DQ):
            give(model, node, 1, value(model, node, 1).astype(np.float32))
    del model.graph.value_info[:]


def low_bits(kind: int) -> Callable[[ModelProto], None]:
    """Activations of 4 bits, or of a float type of 8 bits."""

    def change(model: ModelProto) -> None:
        model.opset_import[0].version = 21
        q = after_relu(model)
        zero = helper.make_tensor("low_zero", kind, [], [0])
        model.graph.initializer.append(zero)
        for node in [q, *users(model, q.output[0])]:
            node.input[2] = zero.name
        del model.graph.value_info[:]

    return change


def low_bit_weights(kind: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.opset_import[0].version = 21
        node = weight(model)
        integers = value(model, node, 0)
        channels = integers.shape[0]
        packed = helper.make_tensor("low", kind, integers.shape, (integers // 16).astype(np.float32).ravel())
        zero = helper.make_tensor("low_zero", kind, [channels], np.zeros(channels))
        model.graph.initializer.extend([packed, zero])
        node.input[0], node.input[2] = "low", "low_zero"

    return change


def blocked_weights(model: ModelProto) -> None:
    """A scale for each block of 16 input channels (opset 21)."""
    model.opset_import[0].version = 21
    node = producer(model, list(of(model, "Conv"))[1].input[1])  # 32 x 32
    scale = value(model, node, 1)
    give(model, node, 1, np.broadcast_to(scale[:, None, None, None], (32, 2, 3, 3)).copy())
    give(model, node, 2, np.zeros((32, 2, 3, 3), np.int8))
    next(a for a in node.attribute if a.name == "axis").i = 1
    node.attribute.append(helper.make_attribute("block_size", 16))


def channel_scales(model: ModelProto) -> None:
    """A scale for each channel of an activation."""
    q = after_relu(model)
    both(model, q, 1, np.full(32, value(model, q, 1)))
    both(model, q, 2, np.zeros(32, np.int8))
    for node in [q, *users(model, q.output[0])]:
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("axis", 1))


def quantized_float_weights(model: ModelProto) -> None:
    """Float weights behind a Q and a DQ, as several tools write them."""
    for node in list(of(model, DQ)):
        if node.input[0] in {tensor.name for tensor in model.graph.initializer}:
            integers, scale = value(model, node, 0), value(model, node, 1)
            shape = [-1 if axis == 0 else 1 for axis in range(integers.ndim)] if scale.ndim else []
            axis = [a for a in node.attribute if a.name == "axis"]
            q = helper.make_node(Q, list(node.input), [f"{node.output[0]}_q"], name=f"{node.name}_q")
            q.attribute.extend(axis)
            give(model, q, 0, (integers.astype(scale.dtype) * scale.reshape(shape)).astype(scale.dtype))
            node.input[0] = q.output[0]
            model.graph.node.insert(list(model.graph.node).index(node), q)


def one_scale(model: ModelProto) -> None:
    """All activations share one scale tensor."""
    first = after_relu(model).input[1]
    for node in of(model, Q):
        for each in [node, *users(model, node.output[0])]:
            each.input[1] = first


def negative_scale(model: ModelProto) -> None:
    q = after_relu(model)
    both(model, q, 1, -value(model, q, 1))


def image_size(*sizes: int | str) -> Callable[[ModelProto], None]:
    """Another shape of the input: names are dimensions that are known at run time only."""

    def change(model: ModelProto) -> None:
        dims = model.graph.input[0].type.tensor_type.shape.dim
        for dim, size in zip(dims, sizes, strict=True):
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size
        if isinstance(sizes[0], int):
            model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = sizes[0]
        del model.graph.value_info[:]

    return change


def constants_as_nodes(model: ModelProto) -> None:
    for tensor in list(model.graph.initializer):
        node = helper.make_node("Constant", [], [tensor.name], name=f"make_{tensor.name}", value=tensor)
        model.graph.node.insert(0, node)
    del model.graph.initializer[:]


def replaced_relu(kind: str, domain: str = "", **attributes: float) -> Callable[[ModelProto], None]:
    """Another activation function in place of the first ReLU."""

    def change(model: ModelProto) -> None:
        relu = next(of(model, "Relu"))
        relu.op_type, relu.domain = kind, domain
        relu.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def contrib_pairs(model: ModelProto) -> None:
    """Q and DQ of ONNX Runtime's own domain, as its quantizer writes them for types of another opset."""
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for node in model.graph.node:
        if node.op_type in (Q, DQ):
            node.domain = "com.microsoft"


def integer_input(model: ModelProto) -> None:
    """The caller passes integers."""
    q = next(of(model, Q))
    cast = producer(model, q.input[0])
    name = q.output[0]
    drop(model, q, cast)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.INT8, ["batch", 3, 16, 16]))


def unsigned_input(model: ModelProto) -> None:
    """The caller passes pixels of 8 bits, cast inside."""
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def integer_output(model: ModelProto) -> None:
    q = after_relu(model)
    model.graph.output.append(helper.make_tensor_value_info(q.output[0], TensorProto.INT8, ["batch", 32, 8, 8]))


def float_bias_type(model: ModelProto) -> None:
    """A float32 bias of a float16 convolution."""
    conv = next(of(model, "Conv"))
    give(model, conv, 2, value(model, conv, 2).astype(np.float32))


def without_bias(model: ModelProto) -> None:
    del next(of(model, "Conv")).input[2:]


def other_layout(model: ModelProto) -> None:
    """A Gemm whose weight is not transposed, as exporters of old write it."""
    gemm = next(of(model, "Gemm"))
    dq = producer(model, gemm.input[1])
    give(model, dq, 0, value(model, dq, 0).T.copy())
    next(a for a in dq.attribute if a.name == "axis").i = 1
    next(a for a in gemm.attribute if a.name == "transB").i = 0


def scaled_gemm(model: ModelProto) -> None:
    gemm = next(of(model, "Gemm"))
    kept = [a for a in gemm.attribute if a.name != "alpha"]
    del gemm.attribute[:]
    gemm.attribute.extend([*kept, helper.make_attribute("alpha", 0.5)])


def float_classifier(model: ModelProto) -> None:
    """A classifier in INT8 whose result is float32, as it is returned."""
    gemm = next(of(model, "Gemm"))
    (cast,) = users(model, gemm.output[0])
    give(model, gemm, 2, value(model, gemm, 2).astype(np.float32))
    for dq in of(model, DQ):
        if any(reader.op_type in ("Reshape", "Gemm") for reader in users(model, dq.output[0])):
            give(model, dq, 1, value(model, dq, 1).astype(np.float32))
    gemm.output[0] = cast.output[0]
    drop(model, cast)
    del model.graph.value_info[:]


def product_and_sum(model: ModelProto) -> None:
    """A MatMul and an Add in place of the Gemm."""
    other_layout(model)
    gemm = next(of(model, "Gemm"))
    at, out, bias = list(model.graph.node).index(gemm), gemm.output[0], gemm.input[2]
    drop(model, gemm)
    model.graph.node.insert(at, helper.make_node("MatMul", list(gemm.input[:2]), ["product"], name=gemm.name))
    model.graph.node.insert(at + 1, helper.make_node("Add", ["product", bias], [out], name="sum"))


def nameless(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = ""


def together(*changes: Callable[[ModelProto], None]) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        for each in changes:
            each(model)

    return change


def wrong_scale_count(model: ModelProto) -> None:
    node = weight(model)
    give(model, node, 1, value(model, node, 1)[:5].copy())
    give(model, node, 2, value(model, node, 2)[:5].copy())


def zero_point_of_another_shape(model: ModelProto) -> None:
    give(model, weight(model), 2, np.array(0, np.int8))


def scale_at_run_time(model: ModelProto) -> None:
    """A scale from the values that are to be quantized."""
    q = after_relu(model)
    at = list(model.graph.node).index(q)
    top = helper.make_node("ReduceMax", [q.input[0]], ["largest"], name="largest", keepdims=0)
    for node in [q, *users(model, q.output[0])]:
        node.input[1] = "largest"
    model.graph.node.insert(at, top)


def scale_of_one_value(model: ModelProto) -> None:
    """Scales and zero points of shape (1,), as some tools write one for the whole tensor."""
    for node in model.graph.node:
        if node.op_type in (Q, DQ):
            for index in (1, 2):
                if not value(model, node, index).ndim:
                    give(model, node, index, value(model, node, index).reshape(1))


def mixed_sum(model: ModelProto) -> None:
    """An addition of float16 and float32."""
    add = next(of(model, "Add"))
    at = list(model.graph.node).index(add)
    model.graph.node.insert(at, helper.make_node("Cast", [add.input[0]], ["wide"], name="to_wide", to=1))
    add.input[0] = "wide"
    del model.graph.value_info[:]


def branch(model: ModelProto) -> None:
    """The result of an If, whose branches are graphs of their own."""
    out = model.graph.output[0].name
    producer(model, out).output[0] = "computed"
    graphs = {}
    for key, kind in (("then_branch", "Identity"), ("else_branch", "Neg")):
        result = helper.make_tensor_value_info(f"{kind}_{out}", TensorProto.FLOAT, None)
        graphs[key] = helper.make_graph([helper.make_node(kind, ["computed"], [result.name])], kind, [], [result])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    model.graph.node.append(helper.make_node("If", ["condition"], [out], name="branch", **graphs))


# --- files of ONNX Runtime's own quantizer ----------------------------------------------------------------------------


class _Noise(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._feeds = iter([{"input": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize_by_onnxruntime(path: Path, **options: object) -> Path:
    """A quantized ``Net``; the float one is ``float.onnx`` beside it."""
    original = path.with_name("float.onnx")
    if not original.exists():
        net = fold(raised(Net().eval(), (3, 16, 16)))
        export_onnx(net, original, Metadata("n", "fp32", Preprocess(16), (), 1, 1, "", "1"), 20)
    quantize_static(original, path, _Noise(), per_channel=True, **options)
    return path
