"""Along which axis of a stored weight the output channels of its linear node lie.

MatMul(x, W [in, out])            1          Gemm(x, W), transB        1, or 0
Conv(x, W [out, in, ...])         0          ConvTranspose             1

W may pass through Identity, Cast, Transpose, QuantizeLinear and DequantizeLinear on its way, some
of them: exporters write two or three.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, NodeProto

from lora_quant.graph.files.node_attributes import attributes

_DOMAINS = ("", "ai.onnx")
_SAME_LAYOUT = frozenset({"Identity", "Cast", "QuantizeLinear", "DequantizeLinear"})
_LONGEST = 16  # a longer chain before many readers would take quadratic time
_AXES = {"MatMul": 1, "Gemm": 1, "Conv": 0, "ConvTranspose": 1}


def weight_axes(
    graph: GraphProto, producers: Mapping[str, NodeProto], axes: Mapping[str, int]
) -> dict[str, int]:
    """Stored tensor -> axis. `axes`: how many axes every stored tensor has.

    A tensor that two linear nodes read in different ways has none, nor has one behind a chain
    of more than 16 nodes. Linear in the nodes.
    """
    found: dict[str, int] = {}
    split: set[str] = set()
    for node in graph.node:
        axis = _AXES.get(node.op_type)
        if axis is None or node.domain not in _DOMAINS or len(node.input) < 2:
            continue
        if node.op_type == "Gemm" and attributes(node).get("transB", 0):
            axis = 0
        placed = _stored(node.input[1], axis, producers, axes)
        if placed is None:
            continue
        name, axis = placed
        if found.setdefault(name, axis) != axis:
            split.add(name)
    return {name: axis for name, axis in found.items() if name not in split}


def _stored(
    tensor: str, axis: int, producers: Mapping[str, NodeProto], axes: Mapping[str, int]
) -> tuple[str, int] | None:
    """The stored tensor behind `tensor`, and where its `axis` lies there."""
    turns: list[list[int] | None] = []
    for _ in range(_LONGEST):
        if tensor in axes:
            break
        node = producers.get(tensor)
        if node is None or not node.input:
            return None
        if node.op_type == "Transpose":
            order = attributes(node).get("perm")
            turns.append(None if order is None else list(order))
        elif node.op_type not in _SAME_LAYOUT:
            return None
        tensor = node.input[0]
    if tensor not in axes:
        return None
    count = axes[tensor]
    for order in turns:
        turned = list(range(count))[::-1] if order is None else order
        if sorted(turned) != list(range(count)) or axis >= count:
            return None
        axis = turned[axis]
    return (tensor, axis) if axis < count else None
