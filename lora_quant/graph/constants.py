"""The constant behind a tensor, whatever only changes its layout or type on the way.

initializer or Constant  ->  Identity | Transpose | Cast  ->  ...  ->  tensor
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnx import NodeProto, TensorProto, helper

from lora_quant.graph.index import GraphIndex

FLOAT_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
LAYOUT_OPERATORS = frozenset({"Identity", "Transpose", "Cast"})


@dataclass(frozen=True)
class FloatConstant:
    """A constant of type float32, float16 or bfloat16.

    `initializer` names the tensor that stores it. `shape` and `dtype` are those of the tensor that
    was asked for; `transposed` tells whether its two axes are stored the other way round. `casts`
    are the element types that it passes through on the way, in this order; `stored` holds it.
    """

    initializer: str
    shape: tuple[int, ...]
    dtype: str
    transposed: bool
    casts: tuple[int, ...]
    stored: TensorProto = field(repr=False, compare=False)


@dataclass(frozen=True)
class NoConstant:
    """Why there is none: "its weight is ..."; `tensor` is where the search ended."""

    reason: str
    tensor: str


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def constant_behind(
    tensor: str, index: GraphIndex, what: str = "its weight"
) -> FloatConstant | NoConstant:
    """The float constant behind `tensor`, or the reason why there is none; `what` begins it."""
    transposed = False
    casts: list[int] = []
    while True:
        constant = index.constant(tensor)
        if constant is not None:
            return _float_constant(tensor, constant, tuple(reversed(casts)), transposed, what)
        node = index.producers.get(tensor)
        if node is None:
            return NoConstant(f"{what} is a graph input", tensor)
        if node.op_type == "Transpose":
            permutation = attributes(node).get("perm")
            if permutation is not None and list(permutation) != [1, 0]:
                reason = f"{what} passes through a Transpose with perm {list(permutation)}"
                return NoConstant(reason, node.input[0])
            transposed = not transposed
        elif node.op_type == "Cast":
            casts.append(int(attributes(node)["to"]))
        elif node.op_type == "DequantizeLinear":
            return NoConstant(f"{what} is quantized (DequantizeLinear)", node.input[0])
        elif node.op_type != "Identity":
            return NoConstant(f"{what} is computed by {node.op_type}, not constant", tensor)
        tensor = node.input[0]


def type_name(element: int) -> str:
    """An ONNX element type in words; the number itself for one that is not known."""
    known = element in TensorProto.DataType.values()
    return TensorProto.DataType.Name(element).lower() if known else str(element)


def _float_constant(
    tensor: str, constant: TensorProto, casts: tuple[int, ...], transposed: bool, what: str
) -> FloatConstant | NoConstant:
    element = casts[-1] if casts else constant.data_type
    if element not in FLOAT_TYPES:
        reason = f"{what} is of type {type_name(element)}, expected float32, float16 or bfloat16"
        return NoConstant(reason, tensor)
    shape = tuple(constant.dims)
    if 0 in shape:
        return NoConstant(f"{what} is empty, of shape {list(shape)}", tensor)
    return FloatConstant(
        initializer=tensor,
        shape=tuple(reversed(shape)) if transposed else shape,
        dtype=FLOAT_TYPES[element],
        transposed=transposed,
        casts=casts,
        stored=constant,
    )
