"""MatMulNBits of ONNX Runtime: y = x W^T (+ bias) with W [out, in] in blocks of packed integers.

x, W, scales, zero points, g_idx, bias       K = in, N = out, bits, block_size

W            uint8 [out, blocks, block_size * bits / 8], the low bits first
scales       [out, blocks], of the type that the node computes in
zero points  like W, packed along the blocks [out, blocks * bits / 8], or of the type of scales
             [out, blocks]; 2 ** (bits - 1) without any
g_idx        another order of the inputs; such a node takes no branch
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from lora_quant.graph.files.element_types import FLOAT_TYPES, type_name
from lora_quant.graph.files.graph_index import GraphIndex
from lora_quant.graph.files.node_attributes import attributes
from lora_quant.graph.records import Form, LinearNode, Storage

BIAS = 5
_BITS = (2, 4, 8)
_LEAST_BLOCK = 16
_ATTRIBUTES = {"K": 0, "N": 0, "bits": 4, "block_size": 0}
"""With what they are without one."""


@dataclass(frozen=True)
class PackedLayout:
    """How many integers of how many bits are packed, and in which blocks."""

    inputs: int
    outputs: int
    bits: int
    block_size: int

    @property
    def blocks(self) -> int:
        """Blocks of one output, the last one filled up."""
        return -(-self.inputs // self.block_size)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.block_size * self.bits // 8

    def zero_values(self, *, is_packed: bool) -> int:
        """Stored values of the zero points of one output: bytes, or one per block."""
        return -(-self.blocks * self.bits // 8) if is_packed else self.blocks


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """The constants of one node; `zeros` is None without zero points."""

    layout: PackedLayout
    weight: TensorProto
    scales: TensorProto
    zeros: TensorProto | None


def is_packed(node: NodeProto) -> bool:
    """Whether the node is a MatMulNBits with its three inputs."""
    if node.op_type != "MatMulNBits" or node.domain != "com.microsoft":
        return False
    return len(node.input) > 2 and all(node.input[:3]) and any(node.output[:1])


def recognise_packed(node: NodeProto, index: GraphIndex) -> LinearNode | str:
    """The linear that a MatMulNBits computes, or why it takes no branch."""
    found = packed_weight(node, index)
    if isinstance(found, str):
        return found
    return LinearNode(
        node=node.name,
        op=node.op_type,
        form=Form.MATMUL,
        x=node.input[0],
        weight=node.input[1],
        product=node.output[0],
        in_features=found.layout.inputs,
        out_features=found.layout.outputs,
        dtype=FLOAT_TYPES[found.scales.data_type],
        weight_is_in_out=False,
        storage=Storage.PACKED,
    )


def packed_weight(node: NodeProto, index: GraphIndex) -> PackedWeight | str:
    """The weight of a MatMulNBits, or why it cannot be one: "its ..."."""
    layout = _layout(node)
    if isinstance(layout, str):
        return layout
    if len(node.input) > 4 and node.input[4]:
        return "it reads its inputs in another order (g_idx)"
    weight, scales = index.constant(node.input[1]), index.constant(node.input[2])
    if weight is None or scales is None:
        return "its weight is not constant"
    zeros = None
    if len(node.input) > 3 and node.input[3]:
        zeros = index.constant(node.input[3])
        if zeros is None:
            return "its zero points are not constant"
    reason = _reason_against(layout, weight, scales, zeros)
    return PackedWeight(layout, weight, scales, zeros) if reason is None else reason


def _layout(node: NodeProto) -> PackedLayout | str:
    given = attributes(node)
    found = {name: given.get(name, default) for name, default in _ATTRIBUTES.items()}
    if not all(isinstance(value, int) and value > 0 for value in found.values()):
        told = ", ".join(f"{name} {value}" for name, value in found.items())
        return f"its attributes are {told}; expected whole numbers above 0"
    inputs, outputs, bits, block_size = (int(value) for value in found.values())
    if bits not in _BITS:
        return f"its weight has {bits} bits, expected 2, 4 or 8"
    if block_size < _LEAST_BLOCK or block_size & (block_size - 1):
        return f"its weight has blocks of {block_size}, expected a power of two from 16 on"
    if given.get("weight_prepacked", 0):
        return "its weight is packed for one kind of device (weight_prepacked)"
    return PackedLayout(inputs, outputs, bits, block_size)


def _reason_against(
    layout: PackedLayout, weight: TensorProto, scales: TensorProto, zeros: TensorProto | None
) -> str | None:
    """Why the tensors are not those of the layout."""
    wanted = [layout.outputs, layout.blocks, layout.block_bytes]
    if weight.data_type != TensorProto.UINT8 or math.prod(weight.dims) != math.prod(wanted):
        return (
            f"its weight is {type_name(weight.data_type)} of shape {list(weight.dims)}, expected "
            f"uint8 of {wanted}"
        )
    if math.prod(scales.dims) != layout.outputs * layout.blocks:
        wanted = [layout.outputs, layout.blocks]
        return f"its scales have shape {list(scales.dims)}, expected {wanted}"
    if scales.data_type not in FLOAT_TYPES:
        given = type_name(scales.data_type)
        return f"its scales are of type {given}, expected float32, float16 or bfloat16"
    if zeros is None:
        return None
    if zeros.data_type not in (TensorProto.UINT8, scales.data_type):
        given = type_name(zeros.data_type)
        return f"its zero points are of type {given}, expected uint8 or the type of its scales"
    wanted = [layout.outputs, layout.zero_values(is_packed=zeros.data_type == TensorProto.UINT8)]
    if math.prod(zeros.dims) != math.prod(wanted):
        return f"its zero points have shape {list(zeros.dims)}, expected {wanted}"
    return None
