"""What holds for every Encoding; a file, a conversion or a merge that breaks it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.kinds import BLOCKWISE, Granularity, NumberKind
from lora_quant.errors import EncodingsError

if TYPE_CHECKING:
    from lora_quant.encodings.encoding import Encoding, FloatArray

MIN_BITS, MAX_BITS = 2, 32
FLOAT32_SMALLEST = 2.0**-149
FLOAT32_LARGEST = (2.0 - 2.0**-23) * 2.0**127

_DIMENSIONS = {
    Granularity.PER_TENSOR: (0,),
    Granularity.PER_CHANNEL: (1,),
    Granularity.PER_BLOCK: (1, 2),
    Granularity.LPBQ: (1,),
}


def check(encoding: Encoding) -> None:
    """EncodingsError unless the parts fit each other and the grid contains 0."""
    if encoding.kind is NumberKind.FLOAT:
        if encoding.scale is not None or encoding.offset is not None:
            raise EncodingsError("a float encoding with a scale is not supported")
        if encoding.bits not in (16, 32):
            raise EncodingsError(f"a float encoding of {encoding.bits} bits, expected 16 or 32")
        return
    check_bits(encoding.bits)
    scale, offset = encoding.scale, encoding.offset
    if scale is None or offset is None:
        raise EncodingsError("an integer encoding needs both scale and offset")
    if scale.ndim not in _DIMENSIONS[encoding.granularity]:
        raise EncodingsError(
            f"a scale of shape {list(scale.shape)} does not fit {encoding.granularity.value}"
        )
    if scale.shape != offset.shape:
        raise EncodingsError(
            f"scale has shape {list(scale.shape)} but offset has {list(offset.shape)}"
        )
    if scale.size == 0:
        raise EncodingsError("an integer encoding needs at least one scale")
    _check_scale(scale)
    _check_offset(offset, encoding.bits)
    _check_blocks(encoding)


def _check_scale(scale: FloatArray) -> None:
    wrong = ~((scale >= FLOAT32_SMALLEST) & (scale <= FLOAT32_LARGEST))
    if wrong.any():
        raise EncodingsError(
            f"{_element('scale', scale, wrong)}, expected a number > 0 that float32 can hold",
            hint="a tensor of zeros still needs a valid range: max - min of at least 1e-5",
        )


def check_bits(bits: int) -> None:
    """Raise EncodingsError unless an integer grid can have so many bits."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise EncodingsError(f"{bits} bits, expected {MIN_BITS} to {MAX_BITS}")


def _check_offset(offset: FloatArray, bits: int) -> None:
    lowest = -(2.0**bits - 1)
    # With NaN every comparison is False, so NaN counts as wrong.
    wrong = ~((offset >= lowest) & (offset <= 0))
    if wrong.any():
        raise EncodingsError(
            f"{_element('offset', offset, wrong)}, expected {lowest:.0f} to 0 for {bits} bits",
            hint="x = (q + offset) * scale with q from 0 on: other offsets leave 0 off the grid",
        )
    wrong = (2 * offset) % 1 != 0
    if wrong.any():
        raise EncodingsError(
            f"{_element('offset', offset, wrong)}, expected a whole number (or a half)"
        )


def _check_blocks(encoding: Encoding) -> None:
    if encoding.granularity not in BLOCKWISE:
        if encoding.block_size is not None or encoding.block_axis is not None:
            raise EncodingsError(f"a {encoding.granularity.value} encoding has no blocks")
        return
    if encoding.block_size is None or encoding.block_size < 1:
        raise EncodingsError(f"block_size is {encoding.block_size}, expected a positive integer")
    if encoding.block_axis is not None and encoding.block_axis == encoding.axis:
        raise EncodingsError(f"axis {encoding.axis} cannot be both the channel and the block axis")
    if encoding.granularity is Granularity.LPBQ:
        _check_lpbq(encoding)


def _check_lpbq(encoding: Encoding) -> None:
    compressed, blocks, scale = encoding.compressed_bits, encoding.block_scale, encoding.scale
    if compressed is None or blocks is None or scale is None:
        raise EncodingsError("an LPBQ encoding needs compressed bits and a block scale")
    if not MIN_BITS <= compressed < encoding.bits:
        raise EncodingsError(
            f"{compressed} compressed bits do not fit {encoding.bits} decompressed bits"
        )
    if blocks.ndim != 2 or blocks.shape[0] != scale.shape[0] or blocks.shape[1] < 1:
        raise EncodingsError(
            f"a block scale of shape {list(blocks.shape)} does not fit {scale.shape[0]} channels"
        )
    highest = 2.0 ** (encoding.bits - compressed)
    wrong = ~((blocks >= 1) & (blocks <= highest) & (blocks % 1 == 0))
    if wrong.any():
        raise EncodingsError(
            f"{_element('block scale', blocks, wrong)}, expected an integer from 1 to {highest:.0f}"
        )


def _element(name: str, array: FloatArray, wrong: NDArray[np.bool_]) -> str:
    if array.ndim == 0:
        return f"{name} is {float(array)!r}"
    index = [int(i) for i in np.argwhere(wrong)[0]]
    return f"{name}{index} is {float(array[tuple(index)])!r}"
