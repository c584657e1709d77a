"""The constant behind a tensor, whatever only changes its layout or type on the way.

initializer or Constant  ->  Identity | Transpose | Cast  ->  ...  ->  tensor

Where it is asked for, the constant may be quantized:

integers           ->  DequantizeLinear                    ->  Identity | Transpose | Cast  ->
float initializer  ->  QuantizeLinear -> DequantizeLinear  ->  Identity | Transpose | Cast  ->
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from onnx import NodeProto, TensorProto

from lora_quant.graph.attach.dequantization import Dequantization, dequantization_of, have_same_grid
from lora_quant.graph.files.element_types import FLOAT_TYPES, type_name
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.files.node_attributes import attributes

LAYOUT_OPERATORS = frozenset({"Identity", "Transpose", "Cast"})

# Exporters write two or three. A long chain in front of many readers would take quadratic time.
_LONGEST = 16


@dataclass(frozen=True)
class FloatConstant:
    """A constant of type float32, float16 or bfloat16.

    `initializer` names the tensor that stores it. `shape` and `dtype` are those of the tensor that
    was asked for; `transposed` tells whether its two axes are stored the other way round. `casts`
    are the element types that it passes through on the way, in this order; `stored` holds it, and
    `dequantization` tells how a quantized one becomes float before that.
    """

    initializer: str
    shape: tuple[int, ...]
    dtype: str
    transposed: bool
    casts: tuple[int, ...]
    stored: TensorProto = field(repr=False, compare=False)
    dequantization: Dequantization | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class NoConstant:
    """Why there is none: "its weight is ..."; `tensor` is where the search ended."""

    reason: str
    tensor: str


def constant_behind(
    tensor: str, index: GraphIndex, what: str = "its weight", *, may_be_quantized: bool = False
) -> FloatConstant | NoConstant:
    """The float constant behind `tensor`, or the reason why there is none; `what` begins it."""
    transposed = False
    casts: list[int] = []
    for _ in range(_LONGEST + 1):
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
            if not may_be_quantized:
                return NoConstant(f"{what} is quantized (DequantizeLinear)", node.input[0])
            found = _dequantized(node, index, what)
            if isinstance(found, NoConstant):
                return found
            shape = tuple(reversed(found.shape)) if transposed else found.shape
            return _cast(replace(found, shape=shape, transposed=transposed), casts, what)
        elif node.op_type != "Identity":
            return NoConstant(f"{what} is computed by {node.op_type}, not constant", tensor)
        tensor = node.input[0]
    return _too_far(tensor, what)


def _too_far(tensor: str, what: str) -> NoConstant:
    reason = f"{what} passes through more than {_LONGEST} nodes that only move or cast it"
    return NoConstant(reason, tensor)


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


def _cast(found: FloatConstant, casts: list[int], what: str) -> FloatConstant | NoConstant:
    """What a dequantized constant is after casts, the last one first."""
    if not casts:
        return found
    if casts[0] not in FLOAT_TYPES:
        reason = f"{what} is of type {type_name(casts[0])}, expected float32, float16 or bfloat16"
        return NoConstant(reason, found.initializer)
    return replace(found, dtype=FLOAT_TYPES[casts[0]], casts=(*found.casts, *reversed(casts)))


def _dequantized(node: NodeProto, index: GraphIndex, what: str) -> FloatConstant | NoConstant:
    """The constant that a DequantizeLinear reads."""
    tensor, quantize, stored = node.input[0], None, None
    for _ in range(_LONGEST + 1):
        stored = index.constant(tensor)
        if stored is not None:
            break
        reader = index.producers.get(tensor)
        if reader is None:
            return NoConstant(f"{what} is a graph input", tensor)
        if reader.op_type == "QuantizeLinear" and quantize is None:
            quantize = reader
        elif reader.op_type != "Identity":
            before = "is computed by" if quantize is None else "is quantized from the output of"
            return NoConstant(f"{what} {before} {reader.op_type}, not constant", tensor)
        tensor = reader.input[0]
    if stored is None:
        return _too_far(tensor, what)
    shape = tuple(stored.dims)
    if 0 in shape:
        return NoConstant(f"{what} is empty, of shape {list(shape)}", tensor)
    if quantize is not None and not have_same_grid(quantize, node, index):
        reason = f"{what} is quantized by another grid than it is dequantized by"
        return NoConstant(reason, tensor)
    if (quantize is None) == (stored.data_type in (*FLOAT_TYPES, TensorProto.DOUBLE)):
        reason = f"{what} is stored as {type_name(stored.data_type)} and then dequantized"
        return NoConstant(reason, tensor)
    found = dequantization_of(node, stored, index, quantize)
    if isinstance(found, str):
        return NoConstant(f"{what} {found}", tensor)
    element = int(attributes(node).get("output_dtype", 0)) or found.scale.data_type
    if element not in FLOAT_TYPES:
        reason = f"{what} is of type {type_name(element)}, expected float32, float16 or bfloat16"
        return NoConstant(reason, tensor)
    casts = () if element == found.scale.data_type else (element,)
    return FloatConstant(tensor, shape, FLOAT_TYPES[element], False, casts, stored, found)
