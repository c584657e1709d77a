"""Which tensors of a graph are activations that can carry an encoding."""

from __future__ import annotations

from onnx import AttributeProto, NodeProto, TensorProto

from lora_quant.graph.base.base_graph import BaseGraph

_FLOAT = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)
# Operators whose outputs are constants, or never float.
_NO_ACTIVATION = frozenset(
    {
        "And",
        "ArgMax",
        "ArgMin",
        "Constant",
        "ConstantOfShape",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "NonZero",
        "Not",
        "Or",
        "QuantizeLinear",
        "Shape",
        "Size",
        "Xor",
    }
)


def float_activations(base: BaseGraph) -> frozenset[str]:
    """Graph inputs and node outputs that are float, or whose type the graph does not tell."""
    graph = base.model.proto.graph
    found = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type not in _NO_ACTIVATION and _cast_type(node) in _FLOAT:
            found.update(name for name in node.output if name)
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    return frozenset(
        name
        for name in found
        if name not in base.index.initializers
        and types.get(name, TensorProto.UNDEFINED) in _FLOAT | {TensorProto.UNDEFINED}
    )


def _cast_type(node: NodeProto) -> int:
    """The type that a Cast gives; float for any other node, whose operator does not tell."""
    for attribute in node.attribute if node.op_type == "Cast" else ():
        if attribute.name == "to" and attribute.type == AttributeProto.INT:
            return int(attribute.i)
    return TensorProto.FLOAT
