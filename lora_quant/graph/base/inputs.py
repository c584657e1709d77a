"""The inputs of a graph, as records."""

from __future__ import annotations

from onnx import TensorProto, ValueInfoProto

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.records import TensorRecord


def graph_inputs(base: BaseGraph) -> tuple[TensorRecord, ...]:
    """Every input that is no initializer, in order; a size that the graph leaves open is -1.

    The shape of an input that tells none is empty.
    """
    graph = base.model.proto.graph
    return tuple(
        _record(value) for value in graph.input if value.name not in base.index.initializers
    )


def _record(value: ValueInfoProto) -> TensorRecord:
    tensor = value.type.tensor_type
    known = tensor.elem_type in TensorProto.DataType.values()
    dtype = TensorProto.DataType.Name(tensor.elem_type).lower() if known else "undefined"
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return TensorRecord(value.name, sizes, "float32" if dtype == "float" else dtype)
