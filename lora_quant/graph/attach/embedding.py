"""Recognising the nodes that look rows of a constant table up.

    Gather(table [vocabulary, dim], indices), axis 0

It is W applied to the indices written as one-hot vectors, with W `[dim, vocabulary]`. The table may
be shared with an output layer (tied embeddings) and passes through Transpose, Identity or Cast.
"""

from __future__ import annotations

from onnx import AttributeProto, NodeProto, TensorProto

from lora_quant.graph.attach.constants import NoConstant, constant_behind
from lora_quant.graph.attach.linear import NotLinear
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.records import Form, LinearNode

# What a Gather also picks from: shapes, indices, flags.
_NO_TABLE = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.STRING})


def is_lookup(node: NodeProto) -> bool:
    """Whether the operator looks rows up if what it reads is a constant table."""
    if node.op_type != "Gather" or node.domain not in ("", "ai.onnx"):
        return False
    if len(node.input) < 2 or not all(node.input[:2]) or not any(node.output[:1]):
        return False
    return all(
        a.type == AttributeProto.INT and a.i == 0 for a in node.attribute if a.name == "axis"
    )


def recognise_embedding(node: NodeProto, index: GraphIndex) -> LinearNode | NotLinear | None:
    """The embedding that `node` computes, why it is none, or None for any other node."""
    if node.op_type == "GatherBlockQuantized":
        reason = "its weight is quantized (GatherBlockQuantized)"
        return NotLinear(node.name, node.op_type, reason, *node.input[:1])
    if not is_lookup(node):
        return None
    table = constant_behind(node.input[0], index)
    if isinstance(table, NoConstant):
        stored = index.constant(table.tensor)
        if stored is None or len(stored.dims) != 2 or stored.data_type in _NO_TABLE:
            return None
        return NotLinear(node.name, node.op_type, table.reason, table.tensor)
    if len(table.shape) != 2:
        return None
    return LinearNode(
        node=node.name,
        op=node.op_type,
        form=Form.EMBEDDING,
        x=node.input[1],
        weight=table.initializer,
        product=node.output[0],
        in_features=table.shape[0],
        out_features=table.shape[1],
        dtype=table.dtype,
        weight_is_in_out=not table.transposed,
    )
