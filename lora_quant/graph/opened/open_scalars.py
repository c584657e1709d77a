"""Scale and zero point as scalars, for the branches that are added to quantized outputs.

    h -> DQ --------.                      h -> DQ --------.
    l -> Q -> DQ -- Add -> Q       =>      l -> Q -> DQ -- Add -> Q
          scale [1]                              scale [1] -> Squeeze -> []

ONNX Runtime fuses DQ, Add and Q to one operator that takes no scale but a scalar. An input that an
adapter file replaces cannot be one. Other activations are read by operators that take both, and
keep a scale without a node of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import NodeProto, helper

from lora_quant.graph.opened.open_graph import OpenGraph
from lora_quant.graph.quantized.qdq_records import scale_name, zero_point_name
from lora_quant.graph.records import Branch


def scalar_grids(graph: OpenGraph, branches: Iterable[Branch]) -> None:
    """Let Q/DQ of l read scalars where h is dequantized; their inputs have to be `[1]`.

    To be called with Q/DQ in place. Raises GraphError if a name is taken.
    """
    nodes = graph.proto.graph.node
    dequantized = {
        name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output
    }
    inputs = {value.name for value in graph.proto.graph.input}
    scalars: dict[str, str] = {}
    added: list[NodeProto] = []
    for branch in branches:
        for name in (scale_name(branch.l), zero_point_name(branch.l)):
            if branch.h in dequantized and name in inputs:
                scalars[name] = graph.claim(f"{name}_scalar")
                node = graph.claim(f"{name}_Squeeze")
                added.append(helper.make_node("Squeeze", [name], [scalars[name]], name=node))
    for node in nodes:
        for position, name in enumerate(node.input):
            if name in scalars:
                node.input[position] = scalars[name]
    graph.front(added)
    graph.apply()
