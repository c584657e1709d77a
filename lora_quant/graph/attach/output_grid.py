"""The Q/DQ pair that a quantizer put behind a tensor, if rounding to its grid twice is as once.

    source -> QuantizeLinear -> codes -> DequantizeLinear -> output, others

Then what is added to `output` can be rounded to the same grid, and nothing changes where zero is
added. For codes q of n bits, scale * q is off by a rounding of float32, and divided by the scale
again by another: less than 2 ** n units of roundoff together, which rounds back to q for up to 16
bits. In half precision, ONNX Runtime before 1.30 rounds q to a neighbour.
"""

from __future__ import annotations

from onnx import NodeProto, TensorProto

from lora_quant.graph.attach.dequantization import have_same_grid
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.files.node_attributes import attributes
from lora_quant.graph.records import OutputGrid

_DOMAINS = ("", "ai.onnx", "com.microsoft")
_SAFE_CODES: frozenset[int] = frozenset(
    {
        TensorProto.INT4,
        TensorProto.UINT4,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT16,
        TensorProto.UINT16,
    }
)


def grid_behind(tensor: str, index: GraphIndex) -> tuple[str, OutputGrid] | None:
    """The output of the pair behind `tensor` and the pair, None without one that is safe.

    The QuantizeLinear alone reads the tensor, and nothing but DequantizeLinear nodes of the same
    grid reads its codes.
    """
    quantize = index.sole_consumer(tensor)
    if quantize is None or not _is(quantize, "QuantizeLinear"):
        return None
    codes = quantize.output[0]
    readers = index.consumers.get(codes, [])
    if not readers or codes in index.captured or codes in index.outputs:
        return None
    if not all(_is(n, "DequantizeLinear") and have_same_grid(quantize, n, index) for n in readers):
        return None
    if not all(_is_safe(quantize, reader, index) for reader in readers):
        return None
    first, *others = (reader.output[0] for reader in readers)
    scale, zero_point = [*quantize.input[1:3], ""][:2]
    return first, OutputGrid(tensor, codes, scale, zero_point, tuple(others))


def _is(node: NodeProto, op: str) -> bool:
    return node.op_type == op and node.domain in _DOMAINS


def _is_safe(quantize: NodeProto, dequantize: NodeProto, index: GraphIndex) -> bool:
    """Whether rounding twice is certainly as once."""
    scale = _type_of(quantize.input[1], index)
    if attributes(dequantize).get("output_dtype", 0) not in (0, scale):
        return False
    if len(quantize.input) > 2 and quantize.input[2]:
        codes = _type_of(quantize.input[2], index)
    else:
        codes = int(attributes(quantize).get("output_dtype", 0)) or TensorProto.UINT8
    return scale == TensorProto.FLOAT and codes in _SAFE_CODES


def _type_of(tensor: str, index: GraphIndex) -> int:
    """The element type of a tensor, UNDEFINED if the graph does not tell it."""
    constant = index.constant(tensor)
    if constant is not None:
        return constant.data_type
    value = index.values.get(tensor)
    return TensorProto.UNDEFINED if value is None else value.type.tensor_type.elem_type
