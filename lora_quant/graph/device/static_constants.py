"""Computing what depends on constants and shapes only, once all shapes are known.

    Shape(x) -> Slice -> Concat -> Reshape        Reshape by a constant
    Trilu(mask of constants)                      the mask
    Cast(x) of a float to the same type           x
    Where(IsNaN(x), 0, x)                         x

Compilers of devices have no operators for most of it. Weights are left alone: they are initializers
that the caller names, those in data files, and everything above a size.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lora_quant.errors import Where
from lora_quant.graph.device.static_shapes import element_types, infer_shapes, is_static
from lora_quant.graph.files.graph_index import build_index
from lora_quant.graph.files.walk import iter_graphs

_MOST_VALUES = 1 << 22
_NEVER = frozenset(
    {
        "Bernoulli",
        "DequantizeLinear",
        "Multinomial",
        "QuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
_FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)


def fold_constants(proto: ModelProto, keep: Collection[str], where: Where) -> None:
    """Replace nodes whose result is known by initializers of that value, in place.

    `keep` are initializers that stay what they are. The graph has static shapes. Raises GraphError
    as infer_shapes does.
    """
    while _Folding(proto, keep).run():
        infer_shapes(proto, where)
    _drop_unread(proto, keep)


def drop_identities(proto: ModelProto) -> dict[str, str]:
    """Remove what does nothing to numbers on a grid; returns each output and what it is a copy of.

    That is a cast of a float to its own type, and what an exporter puts in place of NaN: a grid
    holds none. A node that makes a graph output, or what a subgraph reads, stays.
    """
    graph = proto.graph
    types = element_types(proto)
    index = build_index(proto)
    outputs = index.outputs | index.captured
    checks = {node.output[0] for node in graph.node if node.op_type == "IsNaN"}
    source: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = source.get(name, name)
        copied = None if outputs.intersection(node.output) else _copied(node, types, checks)
        if copied is None:
            kept.append(node)
        else:
            source[node.output[0]] = copied
    read = {name for node in kept for name in node.input} | outputs
    kept = [n for n in kept if n.op_type != "IsNaN" or n.output[0] in read]
    if source:
        del graph.node[:]
        graph.node.extend(kept)
        values = [value for value in graph.value_info if value.name not in source]
        del graph.value_info[:]
        graph.value_info.extend(values)
    return source


def _copied(node: NodeProto, types: dict[str, int], checks: set[str]) -> str | None:
    """The input that a node gives on as it is, if it is one of these."""
    if node.op_type == "Where" and node.input[0] in checks:
        return str(node.input[2])
    if node.op_type == "Cast":
        to = next(a.i for a in node.attribute if a.name == "to")
        if to in _FLOATS and types.get(node.input[0]) == to:
            return str(node.input[0])
    return None


class _Folding:
    """One walk over the nodes."""

    def __init__(self, proto: ModelProto, keep: Collection[str]) -> None:
        self._proto = proto
        graph = proto.graph
        given = {value.name for value in graph.input}
        self._constants: dict[str, TensorProto] = {
            tensor.name: tensor
            for tensor in graph.initializer
            if tensor.name not in keep
            and tensor.name not in given
            and tensor.data_location != TensorProto.EXTERNAL
            and math.prod(tensor.dims) <= _MOST_VALUES
        }
        self._shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.value_info, *graph.input)
            if is_static(value)
        }
        self._shapes.update((tensor.name, list(tensor.dims)) for tensor in graph.initializer)
        self._outputs = {value.name for value in graph.output}

    def run(self) -> bool:
        """Whether anything was folded."""
        graph = self._proto.graph
        kept: list[NodeProto] = []
        for node in graph.node:
            made = self._values(node)
            if made is None:
                kept.append(node)
                continue
            for name, value in zip(node.output, made, strict=True):
                tensor = numpy_helper.from_array(value, name)
                self._constants[name] = tensor
                graph.initializer.append(tensor)
        if len(kept) == len(graph.node):
            return False
        del graph.node[:]
        graph.node.extend(kept)
        return True

    def _values(self, node: NodeProto) -> list[np.ndarray] | None:
        if (
            node.domain not in ("", "ai.onnx")
            or node.op_type in _NEVER
            or self._outputs.intersection(node.output)
            or not all(node.output)
            or any(a.HasField("g") or a.graphs for a in node.attribute)
        ):
            return None
        if node.op_type == "Constant":
            stored = next((a.t for a in node.attribute if a.name == "value"), None)
            if stored is not None:
                return [numpy_helper.to_array(stored)]
        if node.op_type in ("Shape", "Size") and node.input[0] in self._shapes:
            return [_shape_value(node, self._shapes[node.input[0]])]
        if not all(name in self._constants for name in node.input if name):
            return None
        size = sum(math.prod(self._shapes.get(name, [0])) for name in node.output)
        if size > _MOST_VALUES:
            return None
        return _evaluated(node, self._constants, list(self._proto.opset_import))


def _shape_value(node: NodeProto, shape: list[int]) -> np.ndarray:
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    ends = {a.name: a.i for a in node.attribute}
    return np.array(shape[ends.get("start", 0) : ends.get("end", len(shape))], np.int64)


def _evaluated(
    node: NodeProto, constants: dict[str, TensorProto], opsets: list[object]
) -> list[np.ndarray] | None:
    """What one node computes; None where the reference implementation cannot tell."""
    names = list(dict.fromkeys(name for name in node.input if name))
    inputs = [
        helper.make_tensor_value_info(name, constants[name].data_type, None) for name in names
    ]
    outputs = [helper.make_tensor_value_info(name, 0, None) for name in node.output]
    graph = helper.make_graph([node], "folded", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets)
    try:
        found = ReferenceEvaluator(model).run(
            None, {name: numpy_helper.to_array(constants[name]) for name in names}
        )
    except Exception:  # the kernels of the reference implementation raise whatever they run into
        return None
    return (
        [np.asarray(value) for value in found]
        if all(isinstance(value, (np.ndarray, np.generic)) for value in found)
        else None
    )


def _drop_unread(proto: ModelProto, keep: Collection[str]) -> None:
    """Initializers that nothing reads any more."""
    graph = proto.graph
    read = {name for one in iter_graphs(graph) for node in one.node for name in node.input}
    read.update(value.name for value in (*graph.output, *graph.input))
    stored = [t for t in graph.initializer if t.name in read or t.name in keep]
    if len(stored) != len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(stored)
    values = {n for node in graph.node for n in node.output}
    kept = [value for value in graph.value_info if value.name in values]
    del graph.value_info[:]
    graph.value_info.extend(kept)
