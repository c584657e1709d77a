"""The second factor of a product of two activations, on a signed grid.

    a, b uint16    MatMul(a, b)    =>    b -> Q -> b_signed_quantized int16 -> DQ -> b_signed
                                         MatMul(a, b_signed)

The HTP multiplies 16-bit activations by a second operand of int16 around 0, or, given another grid,
by 8 bits of it: attention then keeps 46 dB of its scores, of 84. The highest code of b_signed that
is used stands for the end of b's grid. Architectures before 73 have no products of 16 by 16 bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.files.graph_index import GraphIndex, build_index
from lora_quant.graph.quantized.qdq_records import quantized_name, scale_name, zero_point_name

HIGHEST_SIGNED = 0x7F7F
"""The HTP multiplies codes byte by byte, both signed: it takes any above this one for this one."""

_ENDS = np.iinfo(np.uint16)


def sign_operands(proto: ModelProto, where: Where) -> tuple[str, ...]:
    """Edit a Q/DQ graph in place; returns the tensors that got a signed grid, in graph order.

    Weights keep their grids. Raises GraphError for a name that is taken.
    """
    index = build_index(proto)
    behind: dict[int, list[NodeProto]] = {}
    signed: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type != "MatMul" or _wide(index, node.input[0]) is None:
            continue
        name = node.input[1]
        pair = _wide(index, name)
        if pair is None or not _is_activation(index, pair):
            continue
        if name not in signed:
            signed[name] = f"{name}_signed"
            behind[index.positions[name]] = _requantize(proto, index, pair, where)
        node.input[1] = signed[name]
    _place(proto, behind)
    return tuple(signed)


def _wide(index: GraphIndex, tensor: str) -> NodeProto | None:
    """The DequantizeLinear that makes a tensor of 16 unsigned bits on a constant grid."""
    node = index.producers.get(tensor)
    if node is None or node.op_type != "DequantizeLinear" or len(node.input) < 3:
        return None
    scale, zero = (index.constant(name) for name in node.input[1:3])
    if scale is None or zero is None or zero.data_type != TensorProto.UINT16:
        return None
    is_stored = TensorProto.EXTERNAL not in (scale.data_location, zero.data_location)
    is_one = all(size == 1 for size in scale.dims)
    return node if is_stored and is_one else None


def _is_activation(index: GraphIndex, pair: NodeProto) -> bool:
    """Whether codes are computed, and are no constant or graph input."""
    maker = index.producers.get(pair.input[0])
    return maker is not None and maker.op_type != "Constant"


def _requantize(
    proto: ModelProto, index: GraphIndex, pair: NodeProto, where: Where
) -> list[NodeProto]:
    """Add the signed grid to the graph; returns the nodes that bring `pair`'s tensor onto it."""
    tensor = pair.output[0]
    signed = f"{tensor}_signed"
    step, zero = (
        numpy_helper.to_array(value).item()
        for value in map(index.constant, pair.input[1:3])
        if value is not None
    )
    reach = step * max(zero - int(_ENDS.min), int(_ENDS.max) - zero)
    constants: dict[str, NDArray[Any]] = {
        scale_name(signed): np.array(reach / HIGHEST_SIGNED, np.float32),
        zero_point_name(signed): np.array(0, np.int16),
    }
    codes = quantized_name(signed)
    quantize, dequantize = f"{signed}_QuantizeLinear", f"{signed}_DequantizeLinear"
    for name in (signed, codes, *constants, quantize, dequantize):
        if name in index.names:
            raise GraphError(
                f"its signed Q/DQ needs the name {name!r}, which the graph has already",
                where=replace(where, tensor=tensor),
                hint="rename that tensor or node in the base graph",
            )
    proto.graph.initializer.extend(
        numpy_helper.from_array(values, name) for name, values in constants.items()
    )
    made = [
        helper.make_node(
            "QuantizeLinear", [tensor, *constants], [codes], name=quantize, domain=pair.domain
        ),
        helper.make_node(
            "DequantizeLinear", [codes, *constants], [signed], name=dequantize, domain=pair.domain
        ),
    ]
    return made


def _place(proto: ModelProto, behind: dict[int, list[NodeProto]]) -> None:
    # Added at the end and sorted into place: protobuf would copy the others to make room.
    nodes = proto.graph.node
    places = [float(position) for position in range(len(nodes))]
    for position, added in behind.items():
        nodes.extend(added)
        places += [position + 0.5] * len(added)
    keys = iter(places)
    nodes.sort(key=lambda _node: next(keys))
