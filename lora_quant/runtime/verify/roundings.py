"""Whether a graph rounds what it computes with, so that no bound of float arithmetic fits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import GraphProto, NodeProto

from lora_quant.config.manifest_records import OverridableRecord

_ROUNDING = frozenset(
    {
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "ConvInteger",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
_FOUR = 4
_INT8_COMPUTATION = 4  # accuracy_level of MatMulNBits: its input is rounded to 8 bits


def rounds_activations(graph: GraphProto) -> bool:
    """Whether a node rounds to integers what it is given at run time."""
    return any(_rounds(node) for node in _nodes(graph))


def has_quantized_weights(inputs: Iterable[OverridableRecord]) -> bool:
    """Whether any weight of the adapters is stored as integers."""
    return any("int" in one.dtype for one in inputs)


def has_four_bit_weights(graph: GraphProto, inputs: Iterable[OverridableRecord]) -> bool:
    """Whether a weight of the adapters is packed, 4 bits each."""
    names = {one.name for one in inputs}
    return any(
        node.op_type == "MatMulNBits" and node.input[1] in names and _FOUR in _values(node, "bits")
        for node in _nodes(graph)
    )


def _rounds(node: NodeProto) -> bool:
    if node.op_type == "MatMulNBits":
        return _INT8_COMPUTATION in _values(node, "accuracy_level")
    return node.op_type in _ROUNDING


def _values(node: NodeProto, attribute: str) -> list[int]:
    return [a.i for a in node.attribute if a.name == attribute]


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
