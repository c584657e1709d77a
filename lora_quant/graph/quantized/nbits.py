"""Weights of 4 bits for ONNX Runtime: a MatMul reads them packed.

    MatMul(x, w [K, N])  =>  com.microsoft MatMulNBits(x, w_quantized, w_scale)

    w[k, n] = (code - 8) * scale of its block        code 0 to 15, blocks along K

Two codes are one byte, the one of the lower k in the lower nibble. Both inputs are graph inputs
with defaults of zeros (0x88), so that an adapter replaces them. The node multiplies floats
(accuracy_level 1): it differs from MatMul with the real values in the order of sums alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import NOWHERE, GraphError, Where
from lora_quant.graph.files.element_types import ELEMENTS, type_name
from lora_quant.graph.files.graph_index import GraphIndex, build_index
from lora_quant.graph.quantized.qdq_operators import (
    MICROSOFT,
    fill_tensor,
    import_microsoft,
    input_value,
)
from lora_quant.graph.quantized.qdq_records import OverridableInput, quantized_name, scale_name
from lora_quant.graph.records import TensorRecord

ZERO_BYTE = 0x88
SMALLEST_BLOCK = 16

_FLOAT32_LEVEL = 1
# The value of largest magnitude divided by its code - 8, or by a little more than that.
_DIVISORS = (-8.0, 7.0, -8.5, 7.5, -9.0, 8.0, -9.5, 8.5, -10.0, 9.0)
_DTYPES = {ELEMENTS[name]: name for name in ("float32", "float16")}


@dataclass(frozen=True)
class NBitsLayout:
    """How W `[k, n]` is packed: blocks of `block_size` along k, the last one padded with zeros.

    Raises ValueError for a block size that is no power of 2 from 16 on, which the operator needs.
    """

    k: int
    n: int
    block_size: int = 32

    def __post_init__(self) -> None:
        size = self.block_size
        if size < SMALLEST_BLOCK or size & (size - 1):
            raise ValueError(f"blocks of {size} values, expected a power of 2 from 16 on")

    @property
    def packed_shape(self) -> tuple[int, int, int]:
        """`[n, blocks, block_size / 2]` of uint8."""
        return self.n, -(-self.k // self.block_size), self.block_size // 2

    @property
    def scales_shape(self) -> tuple[int, int]:
        """`[n, blocks]`, in the float type of the graph."""
        return self.packed_shape[:2]


@dataclass(frozen=True, eq=False)
class NBitsValues:
    """One weight: `packed` as `packed_shape`, `scales` as `scales_shape` of its layout."""

    packed: NDArray[np.uint8]
    scales: NDArray[Any]


def pack_values(values: NDArray[Any], layout: NBitsLayout) -> NBitsValues:
    """Symmetric 4 bits of W `[k, n]`, float32 or float16; the scale has the dtype of `values`.

    Each block has the scale of the least squared error among a few: its value of largest magnitude
    / -8 has the code 0 exactly, whatever its sign (scales may be negative), and smaller ones clip
    that value to be nearer to the others. A block of zeros, or of values too small for a scale in
    that dtype, has scale 1.
    """
    n, blocks, half = layout.packed_shape
    padded = np.zeros((blocks * half * 2, n))
    padded[: layout.k] = values
    wide = padded.T.reshape(n, blocks, half * 2)
    at = np.abs(wide).argmax(axis=2)[..., np.newaxis]
    extreme = np.take_along_axis(wide, at, axis=2)[..., 0]
    best = np.full(extreme.shape, np.inf)
    scales = np.ones(extreme.shape, values.dtype)
    codes = np.full(wide.shape, 8, np.uint8)
    for divisor in _DIVISORS:
        scale = (extreme / divisor).astype(values.dtype)
        scale[scale == 0] = 1
        step = scale.astype(np.float64)[..., np.newaxis]
        steps = np.clip(np.rint(wide / step), -8, 7)
        error = ((steps * step - wide) ** 2).sum(axis=2)
        better = error < best
        best[better] = error[better]
        scales[better] = scale[better]
        codes[better] = (steps[better] + 8).astype(np.uint8)
    return NBitsValues(_packed(codes), scales)


def _packed(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    low, high = blocks[..., 0::2], blocks[..., 1::2]
    return np.ascontiguousarray(low | high << 4)


def use_nbits(
    proto: ModelProto, weights: Mapping[str, NBitsLayout], *, where: Where = NOWHERE
) -> tuple[OverridableInput, ...]:
    """Make the change for each of these initializers, in place; all become zeros of the layout.

    Returns the graph inputs that they became, in order. Raises GraphError, the graph being as it
    was, for a weight that is not float32 or float16, or that anything but the second input of one
    MatMul reads.
    """
    index = build_index(proto)
    for name in weights:
        _check(index, name, replace(where, tensor=name))
    made: list[OverridableInput] = []
    for name, layout in weights.items():
        stored = index.initializers[name]
        dtype = _DTYPES[stored.data_type]
        node = index.consumers[name][0]
        fill_tensor(
            stored,
            quantized_name(name),
            "uint8",
            np.full(layout.packed_shape, ZERO_BYTE, np.uint8),
        )
        scale = TensorProto()
        fill_tensor(scale, scale_name(name), dtype, np.ones(layout.scales_shape, dtype))
        proto.graph.initializer.append(scale)
        records = (
            TensorRecord(stored.name, layout.packed_shape, "uint8"),
            TensorRecord(scale.name, layout.scales_shape, dtype),
        )
        for record in records:
            proto.graph.input.append(input_value(record.name, record.dtype, record.shape))
        made += [
            OverridableInput(records[0], name, "values"),
            OverridableInput(records[1], name, "scale"),
        ]
        packed = helper.make_node(
            "MatMulNBits",
            [node.input[0], *(record.name for record in records)],
            list(node.output),
            name=node.name,
            domain=MICROSOFT,
            K=layout.k,
            N=layout.n,
            bits=4,
            block_size=layout.block_size,
            accuracy_level=_FLOAT32_LEVEL,
        )
        packed.metadata_props.extend(node.metadata_props)
        node.CopyFrom(packed)
    if weights:
        import_microsoft(proto)
        _drop_declarations(proto, weights)
    return tuple(made)


def _check(index: GraphIndex, name: str, where: Where) -> None:
    stored = index.initializers.get(name)
    if stored is None:
        raise GraphError("the graph has no initializer of this name to pack", where=where)
    if stored.data_type not in _DTYPES:
        raise GraphError(
            f"a weight of type {type_name(stored.data_type)} cannot be packed to 4 bits, expected "
            "float32 or float16",
            where=where,
            hint="choose --lora-weights int8",
        )
    node = index.sole_consumer(name)
    if node is None or node.op_type != "MatMul" or list(node.input).index(name) != 1:
        raise GraphError(
            "only the second input of a single MatMul can be packed to 4 bits",
            where=where,
            hint="choose --lora-weights int8, which every kind of branch takes",
        )
    for new in (quantized_name(name), scale_name(name)):
        if new in index.names or new in index.values:
            raise GraphError(
                f"its packed form needs the name {new!r}, which the graph has already",
                where=where,
                hint="rename that tensor or node in the base graph",
            )


def _drop_declarations(proto: ModelProto, weights: Mapping[str, NBitsLayout]) -> None:
    for declared in (proto.graph.input, proto.graph.value_info):
        kept = [value for value in declared if value.name not in weights]
        if len(kept) < len(declared):
            del declared[:]
            declared.extend(kept)
