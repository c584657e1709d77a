"""Operators that the HTP gets wrong, in terms of others that it gets right; and some it has not.

    Reciprocal(x)    ->    Div(1, x)
    GroupQueryAttention, SkipSimplifiedLayerNormalization, ...    refused

As ONNX Runtime's QNN provider 2.7 compiles it, a quantized Reciprocal is off by half of its value;
the Div is as exact as its grids. Attention or a norm with its sum in one node of com.microsoft has
tensors inside that no encoding tells the grid of.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.quantized.qdq_operators import MICROSOFT

_FUSED = frozenset(
    {
        "Attention",
        "DecoderMaskedMultiHeadAttention",
        "EmbedLayerNormalization",
        "GroupQueryAttention",
        "MoE",
        "MultiHeadAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "QMoE",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "SparseAttention",
    }
)


def refuse_fused_operators(proto: ModelProto, where: Where) -> None:
    """Raises GraphError for operators that compute in one node what has to be quantized apart."""
    found = Counter(
        node.op_type
        for node in proto.graph.node
        if node.domain == MICROSOFT and node.op_type in _FUSED
    )
    if found:
        told = [f"{name} ({count})" for name, count in sorted(found.items())]
        raise GraphError(
            "the graph has operators that ONNX Runtime fused, and that cannot be quantized for the "
            f"device: {', '.join(told)}",
            where=where,
            hint="export the base graph with torch.onnx, without these operators: the builder of "
            "ONNX Runtime GenAI writes them for its own engine",
        )


def replace_operators(proto: ModelProto) -> None:
    """Edit a graph in place; names of nodes and of what they give stay."""
    for node in proto.graph.node:
        if node.op_type != "Reciprocal" or node.domain not in ("", "ai.onnx"):
            continue
        one = numpy_helper.from_array(np.ones((), np.float32), f"{node.output[0]}_one")
        proto.graph.initializer.append(one)
        made = helper.make_node("Div", [one.name, *node.input], list(node.output), name=node.name)
        node.CopyFrom(made)
