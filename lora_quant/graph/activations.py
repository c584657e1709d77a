"""Which tensors of a graph are activations that can carry an encoding."""

from __future__ import annotations

from onnx import TensorProto

from lora_quant.graph.base import BaseGraph

_FLOAT = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_NO_ACTIVATION = frozenset({"Constant", "ConstantOfShape", "Shape", "Size"})


def float_activations(base: BaseGraph) -> frozenset[str]:
    """Graph inputs and node outputs that are float, or whose type the graph does not tell."""
    graph = base.model.proto.graph
    found = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type not in _NO_ACTIVATION:
            found.update(name for name in node.output if name)
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    return frozenset(
        name
        for name in found
        if name not in base.index.initializers
        and types.get(name, TensorProto.FLOAT) in _FLOAT | {0}
    )
