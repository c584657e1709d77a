"""What quantized constants are worth, from the layouts that ONNX and ONNX Runtime document.

    DequantizeLinear     (q - zero_point) * scale, a scale for all, per slice or per block
    QuantizeLinear       saturate(round(x / scale) + zero_point), to the nearest even number
    MatMulNBits          W [out, in] in blocks of packed integers, the low bits first

A second reader beside the one of `lora_quant.graph`, with which it shares no code.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lora_quant.engines.onnxruntime import Array
from lora_quant.errors import VerificationError, Where


def dequantized(q: Array, scale: Array, zero: Array | None, axis: int, block_size: int) -> Array:
    """`q` as floats of the type of `scale`; `block_size` is 0 without blocks."""
    factor = _spread(scale.astype(np.float32), q.shape, axis, block_size)
    start = 0 if zero is None else _spread(zero.astype(np.int32), q.shape, axis, block_size)
    result: Array = (q.astype(np.int32) - start).astype(np.float32) * factor
    return result.astype(scale.dtype)


def rounded(
    x: Array, scale: Array, zero: Array | None, codes: np.dtype[Any], axis: int, block_size: int
) -> NDArray[np.int32]:
    """The integers that `x` is quantized to, within the range of the type `codes`."""
    limits = ml_dtypes.iinfo(codes)  # type: ignore[no-untyped-call]  # numpy's knows no 4 bits
    factor = _spread(scale.astype(np.float32), x.shape, axis, block_size)
    start = 0 if zero is None else _spread(zero.astype(np.int32), x.shape, axis, block_size)
    values = np.rint(x.astype(np.float32) / factor) + start
    return np.clip(values, int(limits.min), int(limits.max)).astype(np.int32)


def from_blocks(attributes: dict[str, Any], inputs: list[Array | None], where: Where) -> Array:
    """The weight `[out, in]` of a MatMulNBits; `inputs` are its second to fifth, None if absent.

    Raises VerificationError for inputs in another order (g_idx), and for what is not 2, 4 or 8
    bits.
    """
    weight, scales, zero, order = (*inputs, None, None, None, None)[:4]
    bits = int(attributes.get("bits", 4))
    if weight is None or scales is None or order is not None or bits not in (2, 4, 8):
        raise VerificationError(
            "the weight of a MatMulNBits cannot be read: expected constants of 2, 4 or 8 bits "
            "without g_idx",
            where=where,
            hint="the pack was built from another base graph",
        )
    rows, columns, block = (int(attributes[name]) for name in ("N", "K", "block_size"))
    blocks = -(-columns // block)
    codes = _unpacked(weight.reshape(rows, -1), bits).reshape(rows, blocks, block)
    factor = scales.reshape(rows, blocks, 1).astype(np.float32)
    start: Array = np.full((rows, blocks), 2 ** (bits - 1))
    if zero is not None:
        packed = zero.reshape(rows, -1)
        start = _unpacked(packed, bits) if zero.dtype == np.uint8 else packed
    start = start[:, :blocks, None].astype(np.float32)
    values: Array = (codes.astype(np.float32) - start) * factor
    return values.reshape(rows, -1)[:, :columns].astype(scales.dtype)


def _unpacked(data: Array, bits: int) -> Array:
    """Rows of bytes as rows of integers."""
    ones = np.unpackbits(data, axis=1, bitorder="little").reshape(len(data), -1, bits)
    weights = 2 ** np.arange(bits)
    values: Array = (ones * weights).sum(axis=2)
    return values


def _spread(values: Array, shape: tuple[int, ...], axis: int, block_size: int) -> Array:
    """Scales or zero points, one for each element of `shape` or broadcast to it."""
    if values.size == 1:
        return values.reshape((1,) * len(shape))
    axis %= len(shape)
    if block_size > 0:
        size = shape[axis]
        return np.repeat(values, block_size, axis=axis).take(range(size), axis=axis)
    return values.reshape([-1 if number == axis else 1 for number in range(len(shape))])
