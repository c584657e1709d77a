"""Encodings as grids of QuantizeLinear and DequantizeLinear.

    2 to 8 bits          symmetric int8, else uint8
    9 to 16 bits         symmetric int16, else uint16
    17 to 32 bits        int32 with a zero point of 0: DequantizeLinear alone (a bias)

A code of fewer bits than its container stands for the same real value, so weights fit containers
that are wider; activations do not, since QuantizeLinear saturates where the container ends.
Half-step offsets (2-bit weights) become exact on half the scale:

    (q + offset) * scale = (2 q + 2 offset) * (scale / 2)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.block_layout import to_tensor_axes
from lora_quant.encodings.encoding import Encoding, FloatArray
from lora_quant.encodings.kinds import Granularity, NumberKind
from lora_quant.encodings.quantize import grid_over
from lora_quant.errors import NOWHERE, EncodingsError, Where
from lora_quant.graph.quantized.grid import Grid

SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)
"""Below it float32 loses digits, and engines may take a scale for zero."""


def onnx_grid(encoding: Encoding, shape: tuple[int, ...], *, where: Where = NOWHERE) -> Grid | None:
    """The grid of a weight of `shape`; None for a float encoding, which needs no Q/DQ.

    Scales are rounded to float32, those of LPBQ after the product. Raises EncodingsError for a grid
    that does not fit the shape, a scale that float32 cannot hold without loss of digits, and more
    than 16 bits with a zero point.
    """
    if encoding.kind is NumberKind.FLOAT:
        return None
    with located(where):
        grid_over(encoding, shape)  # for what it refuses: axes and sizes that do not fit
    factor = code_factor(encoding)
    dtype = container(encoding, where)
    scale = _scale(encoding.step_scale / factor, where)
    zero = zero_points(encoding)
    if encoding.granularity is Granularity.PER_TENSOR:
        return Grid(dtype, scale.reshape(1), _zero(zero.reshape(1), dtype))
    if encoding.axis is None:
        raise TypeError("grid_over lets no encoding pass whose axis is not known")
    axis = encoding.axis % len(shape)
    if encoding.granularity is Granularity.PER_CHANNEL:
        return Grid(dtype, scale, _zero(zero, dtype), axis=axis)
    if encoding.block_axis is None or encoding.block_size is None:
        raise TypeError("grid_over lets no blocks pass whose axis is not known")
    block_axis = encoding.block_axis % len(shape)
    sizes = list(shape)
    sizes[block_axis] //= encoding.block_size

    def spread(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(
            np.broadcast_to(to_tensor_axes(array, axis, block_axis, len(shape)), sizes)
        )

    return Grid(
        dtype,
        spread(scale),
        _zero(spread(zero), dtype),
        axis=block_axis,
        block_size=encoding.block_size,
    )


def activation_grid(encoding: Encoding, *, where: Where = NOWHERE) -> Grid | None:
    """The grid of an activation, per tensor; None for a float encoding.

    Raises EncodingsError, besides what `onnx_grid` does, for grids that QuantizeLinear does not
    clip where they end: other widths than 8 and 16 bits, and more than one scale.
    """
    if encoding.kind is NumberKind.FLOAT:
        return None
    if encoding.granularity is not Granularity.PER_TENSOR:
        raise EncodingsError(
            f"the encoding of an activation is {encoding.granularity.value}, expected PER_TENSOR",
            where=where,
            hint="calibrate activations per tensor",
        )
    if encoding.bits not in (8, 16) or code_factor(encoding) != 1:
        raise EncodingsError(
            f"an activation is quantized to {encoding.bits} bits, expected whole steps of 8 or 16",
            where=where,
            hint="calibrate activations with 8 or 16 bits",
        )
    return onnx_grid(encoding, (), where=where)


def container(encoding: Encoding, where: Where = NOWHERE) -> str:
    """The dtype that codes of an integer encoding are stored in.

    Raises EncodingsError for more than 16 bits that are asymmetric or have a zero point.
    """
    bits = (encoding.compressed_bits or encoding.bits) + code_factor(encoding) - 1
    if bits > 16:
        if encoding.symmetric and not encoding.zero_point.any():
            return "int32"
        raise EncodingsError(
            f"{bits} bits with a zero point, expected at most 16, or a symmetric grid around 0",
            where=where,
            hint="no Q/DQ operator has such codes; calibrate with 16 bits",
        )
    return ("int" if encoding.symmetric else "uint") + ("8" if bits <= 8 else "16")


def code_factor(encoding: Encoding) -> int:
    """2 where an offset is a half, and codes and zero points count half steps; else 1."""
    offset = encoding.step_offset
    return 1 if np.array_equal(offset, np.floor(offset)) else 2


def zero_points(encoding: Encoding) -> FloatArray:
    """The codes of 0, float64, in the shape of `step_scale`: signed where the container is."""
    bits = encoding.compressed_bits or encoding.bits
    middle = 2.0 ** (bits - 1) if encoding.symmetric else 0.0
    return 0.0 - (encoding.step_offset + middle) * code_factor(encoding)


@contextlib.contextmanager
def located(where: Where) -> Iterator[None]:
    """Errors of encodings that do not tell a place tell `where`."""
    try:
        yield
    except EncodingsError as error:
        place = error.where or where
        raise EncodingsError(error.message, where=place, hint=error.hint) from None


def _scale(scale: FloatArray, where: Where) -> NDArray[np.float32]:
    smallest, largest = float(scale.min()), float(scale.max())
    if smallest < SMALLEST_SCALE or largest > float(np.finfo(np.float32).max):
        wrong = smallest if smallest < SMALLEST_SCALE else largest
        raise EncodingsError(
            f"a scale is {wrong:.4g}, expected one that float32 holds in full precision, from "
            f"{SMALLEST_SCALE:.4g} on",
            where=where,
            hint="calibrate with a least range, such as max - min of at least 1e-5",
        )
    return scale.astype(np.float32)


def _zero(zero: FloatArray, dtype: str) -> NDArray[Any]:
    return zero.astype(dtype)
