"""The float values of the packed weight of a MatMulNBits, a few outputs at a time.

w = (q - zero_point) * scale      q, zero_point: integers in bytes, the low bits first
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.errors import Where
from lora_quant.graph.attach.packed_linear import PackedLayout, PackedWeight
from lora_quant.graph.files.model_file import ModelFile
from lora_quant.graph.files.stored_values import ReadRange, stored_values, unpacked

Array = NDArray[Any]


def packed_rows(
    model: ModelFile, packed: PackedWeight, rows: slice, step: int, where: Where
) -> Iterator[tuple[slice, Array]]:
    """Outputs `rows`, `step` at a time: `[outputs, in]`, in the type of the scales.

    Raises GraphError or InputMissingError if values cannot be read.
    """
    layout = packed.layout
    with ExitStack() as stack:
        read = stack.enter_context(stored_values(model, packed.weight, where))
        read_scales = stack.enter_context(stored_values(model, packed.scales, where))
        read_zeros = None
        if packed.zeros is not None:
            read_zeros = stack.enter_context(stored_values(model, packed.zeros, where))
        for start in range(rows.start, rows.stop, max(step, 1)):
            block = slice(start, min(start + max(step, 1), rows.stop))
            count = block.stop - start
            size = layout.blocks * layout.block_bytes
            codes = unpacked(read(start * size, count * size), layout.bits)
            scales = read_scales(start * layout.blocks, count * layout.blocks)
            values = codes.astype(np.float32).reshape(count, layout.blocks, -1)
            values = values - _zeros(layout, read_zeros, block)
            values = values * scales.astype(np.float32).reshape(count, layout.blocks, 1)
            yield block, values.reshape(count, -1)[:, : layout.inputs].astype(scales.dtype)


def _zeros(layout: PackedLayout, read: ReadRange | None, rows: slice) -> Array:
    """Zero points `[outputs, blocks, 1]`; without any they are the middle of the codes."""
    count = rows.stop - rows.start
    if read is None:
        return np.full((count, layout.blocks, 1), 1 << (layout.bits - 1), np.float32)
    is_packed = read(0, 1).dtype == np.uint8
    size = layout.zero_values(is_packed=is_packed)
    zeros = read(rows.start * size, count * size).reshape(count, size)
    if is_packed:
        zeros = unpacked(zeros, layout.bits)[:, : layout.blocks]
    return zeros.astype(np.float32)[..., None]
