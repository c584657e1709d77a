"""The weights and biases of the base's modules, as the modules of the source model have them.

    stored W, Transpose, Cast, rows of a fused projection  ->  tiles of [out, in, ...]
    quantized W                                            ->  the same, dequantized
    Gemm's C, Conv's third input, a bias Add               ->  [out]

The `alpha` of a Gemm multiplies all that a module computes, what adapters add to it included: it is
no part of the module. A weight comes in tiles of a few megabytes, in the order of its storage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from lora_quant.errors import GraphError, Where
from lora_quant.graph.attach.bias import bias_inputs, bias_problem
from lora_quant.graph.attach.constants import FloatConstant, NoConstant, constant_behind
from lora_quant.graph.attach.packed_linear import packed_weight
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.element_types import DTYPES
from lora_quant.graph.files.stored_values import stored_values
from lora_quant.graph.records import AttachPoint, Form, LinearNode, ModulePart, Storage
from lora_quant.graph.values.dequantized import Dequantizer
from lora_quant.graph.values.packed_values import packed_rows

Array = NDArray[Any]

TILE_BYTES = 2 << 20


@dataclass(frozen=True, eq=False)
class WeightTile:
    """Rows and columns of a module's weight: `values` is `[rows, columns, *kernel]`.

    float32, or the base's own 16-bit type. For an embedding rows are those of `[dim, vocabulary]`.
    """

    rows: slice
    columns: slice
    values: Array


class GraphWeights:
    """Reads weights and biases of one graph, each time anew; nothing is kept."""

    def __init__(self, base: BaseGraph) -> None:
        self._model = base.model
        self._index = base.index

    def tiles(self, point: AttachPoint, part: ModulePart) -> Iterator[WeightTile]:
        """The weight `[out, in / groups, *kernel]` of one part; the tiles cover it once.

        Raises GraphError or InputMissingError if the values cannot be read.
        """
        linear = point.linear
        node = self._index.producers[linear.product]
        if linear.storage is Storage.PACKED:
            yield from self._packed_tiles(node, linear, part)
            return
        source = node.input[0 if linear.form is Form.EMBEDDING else 1]
        weight, where = self._constant(source, "its weight", part)
        first, second, *kernel = weight.stored.dims
        lines = rows = slice(part.offset, part.offset + part.size)
        across = slice(0, second)
        if linear.weight_is_in_out:
            lines, across = slice(0, first), rows
        inner = math.prod(kernel)
        dequantize = self._dequantizer(weight, where)
        with stored_values(self._model, weight.stored, where) as read:
            for block, columns in _blocks(lines, across, second, inner * _width(weight)):
                count, start = block.stop - block.start, block.start * second
                if count == 1:
                    size = columns.stop - columns.start
                    values = read((start + columns.start) * inner, size * inner)
                    values = values.reshape(1, size, *kernel)
                else:
                    values = read(start * inner, count * second * inner)
                    values = values.reshape(count, second, *kernel)[:, columns]
                if dequantize is not None:
                    rest = (slice(0, size) for size in kernel)
                    values = dequantize(values, (block, columns, *rest))
                values = _as_computed(values, weight)
                if linear.weight_is_in_out:
                    yield WeightTile(_moved(columns, part), block, values.swapaxes(0, 1))
                else:
                    yield WeightTile(_moved(block, part), columns, values)

    def _packed_tiles(
        self, node: NodeProto, linear: LinearNode, part: ModulePart
    ) -> Iterator[WeightTile]:
        where = Where(file=self._model.path, module=part.module, tensor=linear.weight)
        rows = slice(part.offset, part.offset + part.size)
        packed = packed_weight(node, self._index)
        if isinstance(packed, str):
            raise GraphError(
                f"the values of module {part.module!r} cannot be read: {packed}",
                where=where,
                hint="give the graph that the attach points were resolved on",
            )
        step = TILE_BYTES // (linear.in_features * np.dtype(np.float32).itemsize)
        for block, values in packed_rows(self._model, packed, rows, step, where):
            yield WeightTile(_moved(block, part), slice(0, linear.in_features), values)

    def _dequantizer(self, constant: FloatConstant, where: Where) -> Dequantizer | None:
        how = constant.dequantization
        return None if how is None else Dequantizer(self._model, constant.stored, how, where)

    def bias(self, point: AttachPoint, part: ModulePart) -> NDArray[np.float64]:
        """The bias `[out]` of one part, zeros without one: all that the attach point's output adds.

        Divided by the factor of a Gemm, which multiplies all that the module computes. Raises
        GraphError for a bias that is computed, or is not one value per output feature.
        """
        total = np.zeros(point.linear.out_features)
        for tensor, factor in bias_inputs(point.linear, self._index):
            total += factor * self._bias(tensor, point.linear, part)
        rows = slice(part.offset, part.offset + part.size)
        return total[rows] if point.linear.gain == 1.0 else total[rows] / point.linear.gain

    def _bias(self, tensor: str, linear: LinearNode, part: ModulePart) -> NDArray[np.float64]:
        bias, where = self._constant(tensor, "its bias", part)
        problem = bias_problem(bias, linear)
        if problem is not None:
            hint = "export the graph with a bias of one axis"
            raise GraphError(problem, where=where, hint=hint)
        with stored_values(self._model, bias.stored, where) as read:
            values = read(0, math.prod(bias.shape))
        dequantize = self._dequantizer(bias, where)
        if dequantize is not None:
            ranges = [slice(0, count) for count in bias.stored.dims]
            values = dequantize(values.reshape(bias.stored.dims), ranges).reshape(-1)
        return _as_computed(values, bias).astype(np.float64)

    def _constant(self, tensor: str, what: str, part: ModulePart) -> tuple[FloatConstant, Where]:
        where = Where(file=self._model.path, module=part.module, tensor=tensor)
        found = constant_behind(tensor, self._index, what, may_be_quantized=True)
        if isinstance(found, FloatConstant) and set(found.casts) <= DTYPES.keys():
            return found, where
        reason = f"{what} is cast to a type that cannot be read"
        raise GraphError(
            f"the values of module {part.module!r} cannot be read: "
            f"{found.reason if isinstance(found, NoConstant) else reason}",
            where=where,
            hint="export the graph with constant float weights and biases",
        )


def _width(weight: FloatConstant) -> int:
    """Bytes of one value as a tile holds it; one for a type that reading refuses."""
    if weight.dequantization is not None:
        return np.dtype(np.float32).itemsize
    dtype = DTYPES.get(weight.stored.data_type)
    return 1 if dtype is None else dtype.itemsize


def _blocks(
    lines: slice, columns: slice, line_length: int, width: int
) -> Iterator[tuple[slice, slice]]:
    """Cut stored lines into blocks of TILE_BYTES; a longer line is cut across."""
    step = TILE_BYTES // (line_length * width)
    for start in range(lines.start, lines.stop, max(step, 1)):
        block = slice(start, min(start + max(step, 1), lines.stop))
        across = columns.stop - columns.start if step else max(TILE_BYTES // width, 1)
        for first in range(columns.start, columns.stop, across):
            yield block, slice(first, min(first + across, columns.stop))


def _as_computed(values: Array, constant: FloatConstant) -> Array:
    """What the node computes with, after the casts on the way."""
    with np.errstate(over="ignore"):
        for element in constant.casts:
            values = values.astype(DTYPES[element])
    return values


def _moved(rows: slice, part: ModulePart) -> slice:
    return slice(rows.start - part.offset, rows.stop - part.offset)
