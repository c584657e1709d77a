"""Some values of a weight, and how far a quantizer may have moved each of them.

    W [out, in, *kernel]  ->  up to four patches of 32 outputs by 32 inputs, along the diagonal

The same patches are read of every weight of one shape, however it is stored. A value of the
quantized weight may be off by a step of its grid, and by the rounding of the types on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import GraphError, Where
from lora_quant.graph.attach.constants import FloatConstant, NoConstant, constant_behind
from lora_quant.graph.attach.packed_linear import PackedWeight, packed_weight
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.files.element_types import DTYPES, FLOAT_TYPES
from lora_quant.graph.files.stored_values import stored_values
from lora_quant.graph.records import Form, LinearNode, Storage
from lora_quant.graph.values.dequantized import Dequantizer
from lora_quant.graph.values.packed_values import packed_rows

Array = NDArray[Any]

_PATCHES, _SIDE = 4, 32
# Zeros have to be zeros, relative to the other values, in sums of squares of float32.
_LEAST, _LEAST_OF_ZEROS = 1e-12, 1e-18


@dataclass(frozen=True, eq=False)
class Sample:
    """Values of one weight `[n]` and the steps of its grid there `[n]`, zeros without a grid.

    `spacing` is the relative distance of neighbours in the coarsest float type on the way to them.
    """

    values: NDArray[np.float32]
    steps: NDArray[np.float32]
    spacing: float

    def tolerances(self, spacing: float) -> NDArray[np.float64]:
        """How far each value may be from one of that spacing which it was made from `[n]`."""
        coarser = max(self.spacing, spacing)
        magnitudes = np.abs(self.values.astype(np.float64))
        least = max(_LEAST * float(magnitudes.max()), _LEAST_OF_ZEROS)
        return self.steps + coarser * magnitudes + least


def sample_of(graph: BaseGraph, linear: LinearNode) -> Sample:
    """The sample of a weight; GraphError or InputMissingError if it cannot be read."""
    where = Where(file=graph.path, tensor=linear.weight, node=linear.node or None)
    node = graph.index.producers[linear.product]
    if linear.storage is Storage.PACKED:
        packed = packed_weight(node, graph.index)
        if isinstance(packed, str):
            raise _unreadable(packed, where)
        spacing = _spacing(packed.scales.data_type)
        read = _packed_patches(graph, linear, packed, where)
    else:
        source = node.input[0 if linear.form is Form.EMBEDDING else 1]
        weight = constant_behind(source, graph.index, may_be_quantized=True)
        if isinstance(weight, NoConstant) or not set(weight.casts) <= DTYPES.keys():
            raise _unreadable("it is cast to a type that is not known", where)
        how = weight.dequantization
        types = [weight.stored.data_type, *weight.casts]
        types += [] if how is None else [how.scale.data_type]
        spacing = max(map(_spacing, types))
        read = _stored_patches(graph, linear, weight, where)
    values, steps = zip(*read, strict=True)
    return Sample(np.concatenate(values), np.concatenate(steps), spacing)


def _patches(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Outputs and inputs of every patch."""
    height, width = min(rows, _SIDE), min(columns, _SIDE)
    count = _PATCHES if rows > height or columns > width else 1
    for number in range(count):
        share = number / max(count - 1, 1)
        top, left = round(share * (rows - height)), round(share * (columns - width))
        yield slice(top, top + height), slice(left, left + width)


def _stored_patches(
    graph: BaseGraph, linear: LinearNode, weight: FloatConstant, where: Where
) -> Iterator[tuple[Array, Array]]:
    first, second, *kernel = weight.stored.dims
    rows, columns = (second, first) if linear.weight_is_in_out else (first, second)
    inner = int(np.prod(kernel, dtype=np.int64))
    how = weight.dequantization
    dequantize = None
    if how is not None:
        dequantize = Dequantizer(graph.model, weight.stored, how, where)
    with stored_values(graph.model, weight.stored, where) as read:
        for outputs, inputs in _patches(rows, columns):
            lines, across = (inputs, outputs) if linear.weight_is_in_out else (outputs, inputs)
            width = across.stop - across.start
            values = np.stack(
                [
                    read((line * second + across.start) * inner, width * inner)
                    for line in range(lines.start, lines.stop)
                ]
            ).reshape(-1, width, *kernel)
            steps = np.zeros(values.shape, np.float32)
            if dequantize is not None:
                ranges = (lines, across, *(slice(0, size) for size in kernel))
                values = dequantize(values, ranges)
                steps = np.broadcast_to(dequantize.steps(ranges), values.shape)
            with np.errstate(over="ignore"):
                for element in weight.casts:
                    values = values.astype(DTYPES[element])
            if linear.weight_is_in_out:
                values, steps = values.swapaxes(0, 1), steps.swapaxes(0, 1)
            yield values.astype(np.float32).reshape(-1), steps.reshape(-1)


def _packed_patches(
    graph: BaseGraph, linear: LinearNode, packed: PackedWeight, where: Where
) -> Iterator[tuple[Array, Array]]:
    layout = packed.layout
    for outputs, inputs in _patches(linear.out_features, linear.in_features):
        count = outputs.stop - outputs.start
        ((_, values),) = packed_rows(graph.model, packed, outputs, count, where)
        with stored_values(graph.model, packed.scales, where) as read:
            scales = read(outputs.start * layout.blocks, count * layout.blocks)
        blocks = np.arange(inputs.start, inputs.stop) // layout.block_size
        steps = np.abs(scales.astype(np.float32).reshape(count, -1)[:, blocks])
        yield values[:, inputs].astype(np.float32).reshape(-1), steps.reshape(-1)


def _unreadable(reason: str, where: Where) -> GraphError:
    return GraphError(
        f"the values of a weight cannot be read: {reason}",
        where=where,
        hint="name the nodes in `attach_point_onnx_mapping` instead",
    )


def _spacing(element: int) -> float:
    """Relative distance of neighbours in a float type, 0 for codes, whose grid has steps."""
    if element not in FLOAT_TYPES:
        return 0.0
    return float(ml_dtypes.finfo(DTYPES[element]).eps)  # type: ignore[no-untyped-call]
