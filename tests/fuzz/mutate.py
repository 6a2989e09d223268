"""Ways to spoil a file. Each takes a seeded generator, so that a case is made again from its number."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import load, save

Mutator = Callable[[bytes, Random], bytes]

_DEEP = 100_000
RAW: dict[str, str] = {  # JSON that json.dumps does not write
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e999": "1e999",
    "1e308": "1e308",
    "1e-320": "1e-320",
    "-0.0": "-0.0",
    "huge int": "9" * 5000,
    "deep list": "[" * _DEEP + "]" * _DEEP,
    "deep object": '{"a":' * 1000 + "1" + "}" * 1000,
    "half a surrogate": r'"\ud800"',
    "escape": r'"\u001b[31m\u0000\u0007\r\n"',
    "twice": '{"a": 1, "a": 2}',
}
STRINGS = (
    "",
    "x",
    "0",
    "nan",
    "[/red]",
    "[bold]markup",
    "../../x",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "{0}",
    "%s%n",
    "\u202e\u0301é漢😀",
    "a\nb",
    "x" * 10_000,
    "tensorrt",
    "cuda",
    "onnxruntime",
    "$\\frac{1}{",
    "<script>",
    "\x00",
    "resnet18",
    "os:system",
    "cpu",
    "9" * 30,
    "1970-01-01",
)
NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    256,
    1e308,
    -1e308,
    1e-320,
    0.5,
    1.5,
    10**30,
    -(10**30),
    2**31,
    2**63,
)
NUMBERS += (2**31 - 1, 2**63 - 1, -(2**63), 2**64, 1_000_000, 1e-9, 1e18, 65536, 4096)
VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"a": 1}, [None], [0] * 1000, *NUMBERS, *STRINGS)


def damaged(data: bytes, rng: Random) -> bytes:
    """Bits, bytes and runs that are others, more, fewer or elsewhere."""
    size = len(data)
    kind = rng.choice(
        ("flip", "flip", "flip", "run", "cut", "insert", "twice", "delete", "swap", "word", "empty", "end")
    )
    at, length = rng.randrange(max(size, 1)), rng.choice((1, 2, 4, 8, 16, 64, 256, max(1, size // 4)))
    if kind == "flip":
        found = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            found[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return bytes(found)
    if kind in ("run", "word"):
        fill = rng.choice((b"\0", b"\xff", b"\x80", b"9", b" "))
        new = rng.randbytes(length) if kind == "run" and rng.random() < 0.5 else fill * (length if kind == "run" else 8)
        return data[:at] + new + data[at + len(new) :]
    if kind == "cut":
        return data[: rng.choice((at, at, size - 1, size // 2, 1))]
    if kind == "insert":
        return data[:at] + rng.choice((rng.randbytes(length), b"\0" * length, b"[" * length)) + data[at:]
    if kind == "twice":
        return data[:at] + data[at : at + length] * rng.choice((2, 3, 100)) + data[at + length :]
    if kind == "delete":
        return data[:at] + data[at + length :]
    if kind == "swap":
        other = rng.randrange(max(size, 1))
        low, high = sorted((at, other))
        return (
            data[:low]
            + data[high : high + length]
            + data[low + length : high]
            + data[low : low + length]
            + data[high + length :]
        )
    return (
        b""
        if kind == "empty"
        else data + rng.choice((data, b"\0" * 100, rng.randbytes(100), b"PK\x05\x06" + b"\0" * 18))
    )


class Raw(str):
    """Text that goes into a JSON file as it is."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def _parent(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def _other(value: Any, rng: Random) -> Any:
    """Something in the place of a value; often of the same type, since another type is refused at once."""
    if rng.random() < 0.15:
        return Raw(rng.choice(list(RAW.values())))
    if isinstance(value, bool):
        return rng.choice((not value, 0, None))
    if isinstance(value, int | float) and rng.random() < 0.7:
        near = (
            value + 1,
            value - 1,
            -value,
            value * 2,
            value // 2 if isinstance(value, int) else value / 2,
            value * 1000,
        )
        return rng.choice((*near, *NUMBERS))
    if isinstance(value, str) and rng.random() < 0.7:
        near = (value + "x", value[:-1], value.upper(), value * 50, f"[/{value}]")
        return rng.choice((*near, *STRINGS))
    return copy.deepcopy(rng.choice(VALUES))


def spoiled(value: Any, rng: Random) -> Any:
    """A JSON value with one or a few parts changed, gone, added, repeated or swapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [path for path in _places(value) if path]
        if not places:
            return _other(value, rng)
        depth = rng.choice(sorted({len(path) for path in places}))  # else the many leaves would have nearly all
        path = rng.choice([path for path in places if len(path) == depth])
        parent, key = _parent(value, path), path[-1]
        kind = rng.choice(("other", "other", "other", "other", "drop", "rename", "empty", "swap", "more", "copy"))
        here = parent[key]
        if kind == "drop":
            del parent[key]
        elif kind == "rename" and isinstance(parent, dict):
            parent[rng.choice((str(key) + "x", "", rng.choice(STRINGS), str(key).upper()))] = parent.pop(key)
        elif kind == "empty" and isinstance(here, dict | list):
            here.clear()
        elif kind == "swap":
            same = [p for p in places if len(p) == depth and p != path]
            if same:
                other = rng.choice(same)
                there = _parent(value, other)
                parent[key], there[other[-1]] = there[other[-1]], here
        elif kind == "more" and isinstance(here, list):
            index = rng.randrange(len(here) + 1)
            more = [copy.deepcopy(rng.choice(here)) if here else rng.choice(VALUES)] * rng.choice((1, 1, 2, 50))
            here[index:index] = more
        elif kind == "more" and isinstance(here, dict):
            here[rng.choice(STRINGS)] = copy.deepcopy(rng.choice(list(here.values()))) if here else rng.choice(VALUES)
        elif kind == "copy" and isinstance(here, list) and here:
            here[:] = here[: rng.randrange(len(here) + 1)] or here[::-1]
        else:
            parent[key] = _other(here, rng)
    return value


def to_text(value: Any) -> str:
    """JSON, with ``Raw`` parts as they are."""
    marks: dict[str, str] = {}

    def marked(part: Any) -> Any:
        if isinstance(part, Raw):
            marks[mark := f"@{len(marks)}@"] = str(part)
            return mark
        if isinstance(part, dict):
            return {key: marked(child) for key, child in part.items()}
        return [marked(child) for child in part] if isinstance(part, list) else part

    text = json.dumps(marked(value))
    for mark, raw in marks.items():
        text = text.replace(f'"{mark}"', raw)
    return text


def json_file(data: bytes, rng: Random) -> bytes:
    """A JSON file: bytes in one case of five, else its structure."""
    if rng.random() < 0.2:
        return damaged(data, rng)
    return to_text(spoiled(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def json_lines(data: bytes, rng: Random) -> bytes:
    """Lines of JSON: bytes, lines, or the structure of one of them."""
    if rng.random() < 0.2:
        return damaged(data, rng)
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    kind = rng.choice(("line", "line", "line", "drop", "twice", "cut", "all"))
    if kind == "line":
        lines[at] = json_file(lines[at], rng) + b"\n"
    elif kind == "drop":
        del lines[at]
    elif kind == "twice":
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif kind == "cut":
        del lines[at:]
    else:
        seed = rng.random()
        lines = [
            to_text(spoiled(json.loads(line), Random(seed))).encode("utf-8", "surrogatepass") + b"\n" for line in lines
        ]
    return b"".join(lines)


def _odd_tensor(tensor: torch.Tensor, rng: Random) -> Any:
    shape = tuple(tensor.shape)
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.numel() > 1 << 22:
        return tensor  # spoilt already
    flat = tensor.float().flatten()
    makers: dict[str, Callable[[], Any]] = {
        "bool": lambda: tensor.bool(),
        "int8": lambda: tensor.to(torch.int8),
        "int64": lambda: tensor.to(torch.int64),
        "uint8": lambda: tensor.to(torch.uint8),
        "complex": lambda: tensor.to(torch.complex64),
        "half": lambda: tensor.half(),
        "bfloat16": lambda: tensor.to(torch.bfloat16),
        "float8": lambda: tensor.to(torch.float8_e4m3fn),
        "double": lambda: tensor.double(),
        "nan": lambda: torch.full(shape, float("nan")),
        "inf": lambda: tensor.float() + float("inf"),
        "huge": lambda: torch.full(shape, 3e38),
        "zero": lambda: torch.zeros(shape),
        "negative": lambda: -tensor.float().abs() - 1,
        "denormal": lambda: torch.full(shape, 1e-42),
        "expanded": lambda: torch.zeros(1).expand(1 << 20, 1 << 12),
        "expanded same": lambda: torch.zeros(1).expand(shape or (1,)),
        "transposed": lambda: tensor.T if tensor.dim() == 2 else tensor.unsqueeze(0),
        "sparse": lambda: tensor.float().to_sparse(),
        "csr": lambda: torch.eye(4).to_sparse_csr(),
        "quantized": lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        "meta": lambda: torch.empty(shape, device="meta"),
        "meta huge": lambda: torch.empty((1 << 40, 1 << 20), device="meta"),
        "scalar": lambda: torch.tensor(1.0),
        "empty": lambda: torch.empty(0),
        "empty wide": lambda: torch.empty(1 << 40, 0),
        "flat": lambda: flat.clone(),
        "longer": lambda: torch.cat([flat, flat]).clone(),
        "grown": lambda: tensor.repeat(2, *[1] * max(tensor.dim() - 1, 0)) if tensor.dim() else tensor,
        "parameter": lambda: torch.nn.Parameter(tensor.float()),
        "negated": lambda: torch.complex(flat, flat).conj().imag,
        "number": lambda: rng.choice(NUMBERS),
        "text": lambda: rng.choice(STRINGS),
        "none": lambda: None,
        "list": lambda: [tensor],
        "dict": lambda: {"weight": tensor},
        "size": lambda: torch.Size([1, 2]),
        "dtype": lambda: torch.float32,
        "device": lambda: torch.device("cuda"),
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    }
    return makers[rng.choice(list(makers))]()


def _spoil_state(content: Any, rng: Random) -> Any:
    """A container of tensors with some entries changed."""
    if not isinstance(content, dict) or not content:
        return _odd_tensor(torch.zeros(2, 2), rng)
    content = dict(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        key = rng.choice(list(content) or [""])
        here = content.get(key)
        kind = rng.choice(("value", "value", "value", "value", "drop", "rename", "key", "wrap", "all", "more"))
        if kind == "drop":
            content.pop(key, None)
        elif kind == "rename":
            content[rng.choice((f"{key}.x", f"module.{key}", f"model.{key}", "", *STRINGS[:8]))] = content.pop(
                key, None
            )
        elif kind == "key":
            content[rng.choice((1, None, True, (1, 2), 1.5))] = content.pop(key, None)
        elif kind == "wrap":
            inner = content
            for _ in range(rng.choice((1, 1, 50))):
                inner = {rng.choice(("state_dict", "model", "net", "optimizer")): inner}
            content = inner
        elif kind == "all":
            content = {f"{rng.choice(('module.', 'x.', '_orig_mod.'))}{name}": value for name, value in content.items()}
        elif kind == "more":
            content[rng.choice(("extra", "fc.weight", "optimizer"))] = _odd_tensor(torch.zeros(2, 2), rng)
        elif isinstance(here, dict):
            content[key] = _spoil_state(here, rng)
        elif isinstance(here, torch.Tensor):
            content[key] = _odd_tensor(here, rng)
        elif isinstance(here, list) and here and isinstance(here[0], dict):
            at = rng.randrange(len(here))
            content[key] = [*here[:at], _spoil_state(here[at], rng), *here[at + 1 :]]
        else:
            content[key] = rng.choice((*VALUES, torch.zeros(3)))
    return content


def _as_zip(data: bytes, rng: Random) -> bytes:
    """The entries of a zip file, some of them changed; each with its right checksum."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        names = old.namelist()
        chosen = rng.choice(names)
        kind = rng.choice(("damage", "damage", "drop", "packed", "bomb", "twice", "rename", "empty"))
        with zipfile.ZipFile(out, "w") as new:
            for name in names:
                content = old.read(name)
                method = zipfile.ZIP_STORED
                if name == chosen:
                    if kind == "drop":
                        continue
                    if kind == "damage" and content:
                        content = damaged(content, rng)
                    elif kind == "bomb":
                        content, method = bytes(rng.choice((1 << 20, 1 << 28))), zipfile.ZIP_DEFLATED
                    elif kind == "empty":
                        content = b""
                    elif kind == "rename":
                        name = rng.choice((f"../{name}", f"{name}x", name.upper()))
                if kind == "packed":
                    method = zipfile.ZIP_DEFLATED
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of names that are there twice
                    new.writestr(name, content, method)
                    if name == chosen and kind == "twice":
                        new.writestr(name, damaged(content, rng) if content else b"x", method)
    return out.getvalue()


def torch_file(data: bytes, rng: Random) -> bytes:
    """What torch.save has written: bytes, entries of the archive, or the tensors."""
    kind = rng.choice(("bytes", "zip", "state", "state", "state"))
    archived = data.startswith(b"PK")
    if kind == "zip" and archived:
        return _as_zip(data, rng)
    if kind == "bytes":
        # Most of the file are numbers: spoil what says how they lie as often.
        return damaged(data, rng) if rng.random() < 0.5 else _early(data, rng)
    torch._utils._sparse_tensors_to_validate.clear()  # torch keeps those of a file that it could not load
    content = _spoil_state(torch.load(io.BytesIO(data), weights_only=True), rng)
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer, _use_new_zipfile_serialization=archived)
    except Exception:  # some tensors cannot be saved in the old format
        return _early(data, rng)
    return buffer.getvalue()


def _early(data: bytes, rng: Random) -> bytes:
    """Damage in the first kilobytes."""
    split = min(len(data), rng.choice((16, 256, 4096)))
    return damaged(data[:split], rng) + data[split:]


def safetensors_file(data: bytes, rng: Random) -> bytes:
    """A safetensors file: bytes, its JSON header, or the tensors."""
    kind = rng.choice(("bytes", "header", "header", "length", "state", "state"))
    if kind == "bytes":
        return damaged(data, rng) if rng.random() < 0.3 else _early(data, rng)
    size = int.from_bytes(data[:8], "little")
    if kind == "length":
        wrong = rng.choice((0, 1, size - 1, size + 1, 2**63 - 1, 2**64 - 1, len(data), 100_000_000))
        return wrong.to_bytes(8, "little") + data[8:]
    if kind == "header":
        text = to_text(spoiled(json.loads(data[8 : 8 + size]), rng)).encode("utf-8", "surrogatepass")
        return len(text).to_bytes(8, "little") + text + data[8 + size :]
    content = _spoil_state(load(data), rng)
    try:
        return save({name: value.contiguous() for name, value in content.items()})
    except Exception:  # not everything can be saved in this format
        return _early(data, rng)


def npz_file(data: bytes, rng: Random) -> bytes:
    """A numpy archive: bytes, entries, or arrays."""
    kind = rng.choice(("bytes", "zip", "array", "array", "array", "record", "record"))
    if kind == "bytes":
        return damaged(data, rng)
    if kind == "zip":
        return _as_zip(data, rng)
    with np.load(io.BytesIO(data)) as file:
        held: dict[str, Any] = {name: file[name] for name in file.files}
    name = rng.choice(list(held))
    if kind == "record":
        held["record"] = np.array(to_text(spoiled(json.loads(str(held["record"])), rng)))
    else:
        array = held[name]
        makers: dict[str, Callable[[], Any]] = {
            "drop": lambda: None,
            "float": lambda: array.astype(np.float64) if array.dtype.kind != "U" else array,
            "complex": lambda: np.zeros(array.shape, np.complex128),
            "object": lambda: np.array([{"a": 1}], dtype=object),
            "text": lambda: np.array(["x"] * 3),
            "long text": lambda: np.array("x" * 1_000_000),
            "empty": lambda: array.ravel()[:0],
            "flat": lambda: array.ravel(),
            "deeper": lambda: array[None],
            "transposed": lambda: array.T,
            "less": lambda: array[:-1] if array.ndim else array,
            "negative": lambda: np.full_like(array, -1) if array.dtype.kind == "i" else array,
            "most": lambda: np.full_like(array, np.iinfo(array.dtype).max) if array.dtype.kind in "iu" else array,
            "big-endian": lambda: array.astype(array.dtype.newbyteorder(">")),
            "int64": lambda: array.astype(np.int64) if array.dtype.kind in "iub" else array,
            "zeros": lambda: np.zeros((1 << rng.choice((10, 24)), 2), array.dtype if array.dtype.kind != "U" else int),
            "no columns": lambda: array[:, :0] if array.ndim == 2 else array,
            "record": lambda: np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
            "time": lambda: np.array("2026-01-01", dtype="datetime64[D]"),
        }
        held[name] = makers[rng.choice(list(makers))]()
    out = io.BytesIO()
    np.savez_compressed(out, **{key: value for key, value in held.items() if value is not None})
    return out.getvalue()


def onnx_file(data: bytes, rng: Random) -> bytes:
    """An ONNX file: bytes, or its graph."""
    if rng.random() < 0.3:
        return damaged(data, rng) if rng.random() < 0.5 else _early(data, rng)
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _spoil_graph(model, rng)
    return bytes(model.SerializeToString())


def _spoil_graph(model: onnx.ModelProto, rng: Random) -> None:
    graph = model.graph
    if not graph.node or not graph.initializer:
        return
    node, held = rng.choice(graph.node), rng.choice(graph.initializer)
    kind = rng.choice(
        (
            "node", "node", "cycle", "rewire", "rewire", "op", "domain", "attribute", "attribute", "opset", "ir",
            "input", "output", "dims", "type", "initializer", "dims of held", "dims of held", "type of held", "values",
            "external", "subgraph", "metadata", "metadata", "twice", "name", "function", "sparse", "if", "info",
        )
    )  # fmt: skip
    if kind == "node":
        graph.node.remove(node)
    elif kind == "cycle" and node.input and node.output:
        node.input[0] = rng.choice((node.output[0], graph.node[-1].output[0]))
    elif kind == "rewire" and node.input:
        names = [name for other in graph.node for name in (*other.output, *other.input)]
        node.input[rng.randrange(len(node.input))] = rng.choice(("", "nothing", *names))
    elif kind == "op":
        node.op_type = rng.choice(
            ("Nothing", "", "Loop", "Identity", "Reshape", "Resize", "Conv", "MatMul", "Expand", "Tile")
        )
    elif kind == "domain":
        node.domain = rng.choice(("com.microsoft", "nothing", "ai.onnx.ml"))
    elif kind == "attribute" and node.attribute:
        attribute = rng.choice(node.attribute)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((0, -1, 2**31, 2**62, 1000))
        elif rng.random() < 0.5:
            attribute.i = rng.choice((0, -1, 2**31, -(2**63), 7))
        else:
            attribute.type = rng.choice((1, 2, 3, 4, 5, 6, 7))
    elif kind == "opset" and model.opset_import:
        model.opset_import[0].version = rng.choice((0, -1, 1, 6, 9, 999, 2**62))
    elif kind == "ir":
        model.ir_version = rng.choice((0, -1, 1, 3, 99, 2**62))
    elif kind == "input" and graph.input:
        graph.input.pop()
    elif kind == "output" and graph.output:
        graph.output.pop() if rng.random() < 0.5 else setattr(graph.output[0], "name", "nothing")
    elif kind == "dims":
        value = rng.choice((*graph.input, *graph.output)) if graph.input and graph.output else None
        if value is not None and value.type.tensor_type.shape.dim:
            dim = rng.choice(value.type.tensor_type.shape.dim)
            dim.dim_value = rng.choice((0, -1, 1, 2, 7, 1000, 2**20, 2**31, 2**62))
    elif kind == "type" and graph.input:
        value = rng.choice((*graph.input, *graph.output))
        value.type.tensor_type.elem_type = rng.choice((0, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99))
    elif kind == "initializer":
        graph.initializer.remove(held)
    elif kind == "dims of held":
        dims = list(held.dims) or [1]
        dims[rng.randrange(len(dims))] = rng.choice((0, -1, 1, 2**20, 2**31, 2**40, 2**62))
        held.ClearField("dims")
        held.dims.extend(dims)
    elif kind == "type of held":
        held.data_type = rng.choice((0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 18, 21, 22, 23, 24, 99))
    elif kind == "values":
        held.raw_data = rng.choice(
            (b"", held.raw_data[:-1], held.raw_data * 2, bytes(len(held.raw_data)), b"\xff" * len(held.raw_data))
        )
    elif kind == "external":
        held.ClearField("raw_data")
        held.data_location = TensorProto.EXTERNAL
        paths = ("../../../etc/passwd", "/etc/passwd", "gone.bin", "", "/dev/zero", ".", "tiny_fp32.onnx", "a\0b")
        facts = {
            "location": rng.choice(paths),
            "offset": rng.choice(("0", "-1", "x", str(2**62))),
            "length": rng.choice(("4", "-1", "x", str(2**40))),
        }
        for key, value in facts.items():
            if rng.random() < 0.7:
                held.external_data.add(key=key, value=value)
    elif kind in ("subgraph", "if"):
        inner = helper.make_graph([], "inner", [], [])
        for _ in range(rng.choice((1, 5, 60))):
            inner = helper.make_graph(
                [helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner)]
                if len(inner.SerializeToString()) < 1 << 16
                else [],
                "inner",
                [],
                [],
            )
        node.attribute.append(helper.make_attribute("body", inner))
        if kind == "if":
            node.op_type = "If"
    elif kind == "metadata" and model.metadata_props:
        entry = rng.choice(model.metadata_props)
        choice = rng.random()
        if choice < 0.2:
            model.metadata_props.remove(entry)
        elif choice < 0.4:
            entry.value = rng.choice(STRINGS)
        else:
            try:
                entry.value = to_text(spoiled(json.loads(entry.value), rng))
            except ValueError:
                entry.value = entry.value * 2
    elif kind == "twice":
        graph.node.append(node) if rng.random() < 0.5 else graph.initializer.append(held)
    elif kind == "name":
        node.name = rng.choice(STRINGS)
    elif kind == "function":
        model.functions.append(
            helper.make_function(
                "",
                node.op_type or "x",
                ["a"],
                ["b"],
                [helper.make_node(node.op_type or "x", ["a"], ["b"])],
                list(model.opset_import),
            )
        )
    elif kind == "sparse":
        values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
        indices = helper.make_tensor("i", TensorProto.INT64, [1], [rng.choice((0, 99, -1))])
        graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [rng.choice((2, 2**40))]))
    elif kind == "info":
        graph.value_info.append(helper.make_tensor_value_info(rng.choice(graph.node).output[0], 1, [2**40]))


def xml_file(data: bytes, rng: Random) -> bytes:
    """OpenVINO's XML: bytes, attributes, or elements."""
    kind = rng.choice(("bytes", "attribute", "attribute", "attribute", "number", "number", "element", "bomb"))
    text = data.decode()
    if kind == "bytes":
        return damaged(data, rng)
    if kind == "bomb":
        entities = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))
        head = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">{entities}]><net name="&a9;">'
        return (head + text[text.index("<net") :]).encode()
    pattern = {
        "attribute": r'(?<==)"[^"]*"',
        "number": r"(?<=>)\d+(?=<)|(?<=\")\d+(?=\")",
        "element": r"<(\w+)[^<>]*/>",
    }[kind]
    places = list(re.finditer(pattern, text))
    for _ in range(rng.choice((1, 1, 3))):
        found = rng.choice(places)
        new = str(rng.choice((0, -1, 1, 2**31, 2**40, 2**63, 99))) if kind == "number" else ""
        if kind == "attribute":
            new = f'"{rng.choice((*STRINGS[:12], "0", "-1", "99999999999", "f32", "i64", "Convolution", "Parameter"))}"'
        if kind == "element":
            new = rng.choice(("", found[0] * 2, "<x>"))
        if text[found.start() : found.end()] == found[0]:
            text = text[: found.start()] + new + text[found.end() :]
    return text.encode("utf-8", "surrogatepass")


def csv_file(data: bytes, rng: Random) -> bytes:
    """A table: bytes, or cells, rows and the header."""
    if rng.random() < 0.25:
        return damaged(data, rng)
    rows = [line.split(",") for line in data.decode().splitlines()]
    for _ in range(rng.choice((1, 1, 2))):
        row = rng.choice(rows)
        column = rng.randrange(len(row))
        kind = rng.choice(("cell", "cell", "cell", "drop", "row", "twice", "quote", "wide", "header"))
        if kind == "cell":
            labels = (
                "-1",
                "1e3",
                "999999999",
                "99999",
                "1.0",
                "٣",
                "²",
                " 1 ",
                "9" * 17,
                "0x1",
                "true",
                "label",
                "file",
            )
            row[column] = rng.choice((*STRINGS, *labels))
        elif kind == "drop":
            del row[column]
            row or row.append("")
        elif kind == "row":
            rows.remove(row)
            rows or rows.append([""])
        elif kind == "twice":
            rows.insert(rng.randrange(len(rows)), list(row))
        elif kind == "quote":
            row[column] = rng.choice(('"', '"a', 'a"b', "'", '"""'))
        elif kind == "wide":
            row[column] = "x" * 200_000
        else:
            rows[0] = rng.choice(
                (
                    ["label", "file"],
                    ["a", "b"],
                    ["file", "file"],
                    ["", ""],
                    ["file"],
                    ["file", "label", "label"],
                    ["FILE ", " Label"],
                )
            )
    text = "\n".join(",".join(row) for row in rows) + "\n"
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig")), "surrogatepass")


TOML = (
    "0", "-1", "1e308", "nan", "inf", "-inf", "true", '""', '"x"', "[]", "[[1]]", "{}", "{ a = 1 }", "1979-05-27",
    "07:32:00", "1" * 30, "9" * 5000,
    "0x7fffffffffffffff", '"../../x"', '"/dev/zero"', '"[/red]"', '"\\u0000"', "[0.5]",
    "[nan, 0, 1]", "[1e-320, 1, 1]", "0.5", '"50%"', '"0%"', '"nan%"', '"1e999%"', '"-5%"', '"4 ms"', '"inf ms"',
    '"1e400M"',
    "[" * 2000 + "]" * 2000, '"' + "x" * 10_000 + '"', "8192", "100000",
    '["*"]', '["[", "a"]', '"os:system"', '"cifar_resnet20"', "1e-9",
    '"openvino"', '"tensorrt"', '"cuda"', '"digits"', '"cifar10"',
)  # fmt: skip


def toml_file(data: bytes, rng: Random) -> bytes:
    """A configuration: bytes, or keys, sections and values."""
    if rng.random() < 0.25:
        return damaged(data, rng)
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        kind = rng.choice(("value", "value", "value", "value", "drop", "twice", "key", "section", "deep"))
        key, equals, _ = lines[at].partition(" = ")
        if kind == "value" and equals:
            lines[at] = f"{key} = {rng.choice(TOML)}"
        elif kind == "drop":
            del lines[at]
            lines or lines.append("")
        elif kind == "twice":
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif kind == "key" and equals:
            lines[at] = f"{rng.choice((key + 'x', 'prune', 'a.b.c', chr(34) * 2))} = {rng.choice(TOML)}"
        elif kind == "section":
            lines[at] = rng.choice(("[run]", "[[run]]", "[x]", "[prune.x]", "[", "run = 1", "[target.tensorrt]"))
        elif kind == "deep":
            lines.append("a." * rng.choice((10, 3000)) + "b = 1")
    return "\n".join(lines).encode()


def override(rng: Random, keys: list[str]) -> str:
    """A ``--set``."""
    key = rng.choice((*keys, *keys, *keys, "prune", "", "=", "a.b.c", "prune.x.y", "model.args.a", ".", "run.dir.x"))
    return rng.choice((f"{key}={rng.choice(TOML)}", f"{key}={rng.choice(STRINGS)}", key, f"{key} = {rng.choice(TOML)}"))


def image_file(data: bytes, rng: Random) -> bytes:
    """An image: mostly damage, and files that say they are very large."""
    if rng.random() < 0.9:
        return damaged(data, rng) if rng.random() < 0.5 else _early(data, rng)
    return rng.choice(
        (
            b"P6\n1000000 1000000\n255\n" + data,
            b"P5\n99999999999999999999 1\n255\n",
            b"GIF89a" + b"\xff" * 20,
            b"BM" + b"\xff" * 100,
            b"II*\0\x08\0\0\0" + b"\xff" * 200,
            b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 40,
        )
    )


SPECIAL = ("folder", "gone", "dangling", "loop", "zero", "fifo", "sparse", "huge")


def special(path: Path, kind: str) -> None:
    """Something else than a file in the place of ``path``, or one that says it is very large."""
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "dangling":
            path.symlink_to("nothing-here")
        case "loop":
            path.symlink_to(path.name)
        case "zero":
            path.symlink_to("/dev/zero")
        case "fifo":
            os.mkfifo(path)
        case "sparse" | "huge":
            path.touch()
            os.truncate(path, (100 << 20) if kind == "sparse" else (6 << 30))
