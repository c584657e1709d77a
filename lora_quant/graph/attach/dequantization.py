"""The grid by which a DequantizeLinear makes floats of a stored tensor, checked against its shape.

scale of one value       one grid for all
scale [n], axis          one for each slice of that axis, of size n
scale, block_size        one for each run of `block_size` values along the axis
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from lora_quant.graph.files.element_types import FLOAT_TYPES, type_name
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.files.node_attributes import attributes


@dataclass(frozen=True, eq=False)
class Dequantization:
    """(q - zero_point) * scale, over the axes of the stored tensor.

    scale: `[1]` or no axes, `[channels]` along `axis`, or with `block_size` the stored shape with
    `axis` divided by it, rounded up. zero_point: of the shape of scale, None for 0. `codes` is the
    element type of q, and `rounds` whether the stored values are floats that are quantized first.
    """

    scale: TensorProto
    zero_point: TensorProto | None
    axis: int
    block_size: int
    codes: int
    rounds: bool


def dequantization_of(
    node: NodeProto, stored: TensorProto, index: GraphIndex, quantize: NodeProto | None
) -> Dequantization | str:
    """What a DequantizeLinear makes of `stored`, or why it cannot: "has ...".

    `quantize` is the QuantizeLinear between them, None without one.
    """
    scale = index.constant(node.input[1])
    zero_name = node.input[2] if len(node.input) > 2 else ""
    zero_point = index.constant(zero_name) if zero_name else None
    if scale is None or (zero_name and zero_point is None):
        return "has a scale or zero point that is not constant"
    if scale.data_type not in FLOAT_TYPES:
        return f"has scales of type {type_name(scale.data_type)}, expected floats"
    given = attributes(node)
    shape, sizes = list(stored.dims), list(scale.dims)
    axis, block_size = int(given.get("axis", 1)), int(given.get("block_size", 0))
    axis += len(shape) if axis < 0 else 0
    if math.prod(sizes) == 1 and block_size <= 0:
        wanted = sizes
    elif not 0 <= axis < len(shape):
        return f"of shape {shape} has scales along axis {axis}"
    elif block_size > 0:
        wanted = [*shape[:axis], -(-shape[axis] // block_size), *shape[axis + 1 :]]
    else:
        wanted = [shape[axis]]
    if sizes != wanted or (zero_point is not None and list(zero_point.dims) != sizes):
        return f"of shape {shape} has scales of shape {sizes}, expected {wanted}"
    codes = stored.data_type
    if quantize is not None:
        codes = int(attributes(quantize).get("output_dtype", 0)) or TensorProto.UINT8
        codes = codes if zero_point is None else zero_point.data_type
    return Dequantization(scale, zero_point, axis, block_size, codes, quantize is not None)


def have_same_grid(one: NodeProto, other: NodeProto, index: GraphIndex) -> bool:
    """Whether QuantizeLinear and DequantizeLinear nodes certainly have the same grid."""
    first, second = list(one.input[1:]), list(other.input[1:])
    if len(first) != len(second) or one.domain != other.domain:
        return False
    layouts = [(a.get("axis", 1), a.get("block_size", 0)) for a in map(attributes, (one, other))]
    same = (
        a == b or _equal(index.constant(a), index.constant(b))
        for a, b in zip(first, second, strict=True)
    )
    return layouts[0] == layouts[1] and all(same)


def _equal(one: TensorProto | None, other: TensorProto | None) -> bool:
    """Whether two tensors certainly hold the same: nothing is read from data files."""
    if one is None or other is None:
        return False
    first, second = TensorProto(), TensorProto()
    for copy, tensor in ((first, one), (second, other)):
        copy.CopyFrom(tensor)
        copy.ClearField("name")
        copy.ClearField("doc_string")
    return first == second
