"""The quantization grid of one tensor, free of any file dialect.

Real and quantized values are tied by the unsigned form that AIMET 0.6.1 and 1.0.0 store,

    x = (q + offset) * scale,    q in [0, 2**bits - 1],    offset <= 0,

also for symmetric grids (offset -128 for int8). The signed form of 2.0.0 and of ONNX,
x = (q - zero_point) * scale, is the same grid with q and zero_point shifted by 2**(bits - 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_quant.encodings.structure import Structure
from lora_quant.errors import EncodingsError

FloatArray = NDArray[np.float64]

MIN_BITS, MAX_BITS = 2, 32
FLOAT32_SMALLEST = 2.0**-149
FLOAT32_LARGEST = (2.0 - 2.0**-23) * 2.0**127


class Granularity(Enum):
    """Over which part of a tensor one scale reaches; the values are the names of AIMET 1.0.0."""

    PER_TENSOR = "PER_TENSOR"
    PER_CHANNEL = "PER_CHANNEL"
    PER_BLOCK = "PER_BLOCK"
    LPBQ = "LPBQ"


BLOCKWISE = (Granularity.PER_BLOCK, Granularity.LPBQ)


class NumberKind(Enum):
    """Integer grids have scale and offset; float encodings only name a bit width."""

    INT = "int"
    FLOAT = "float"


@dataclass(frozen=True, eq=False)
class Encoding:
    """One grid. Arrays are float64 and read-only; equality is `same_grid`, never `==`.

    scale, offset, by granularity:

    - PER_TENSOR: shape `[]`.
    - PER_CHANNEL: `[channels]`, also when there is one channel.
    - PER_BLOCK: `[channels, blocks]` whatever the order of the weight's axes; `[channels * blocks]`
      as long as the dialect (1.0.0) did not tell how many channels there are.
    - LPBQ: `[channels]`, and `block_scale` `[channels, blocks]` with integers in
      [1, 2**(bits - compressed_bits)], so that x = q * block_scale * scale with q signed in
      `compressed_bits` bits. `bits` is the width after decompression.

    A float encoding has neither scale nor offset. Offsets are whole numbers or, for the half-step
    grids of 2-bit weights, halves.

    symmetric: AIMET's `is_sym`: the grid is stored signed; it does not promise a zero point of 0.
    axis: the channel axis of the tensor; block_axis: the axis that blocks divide, `block_size`
    values each; ndim: the number of axes of a blockwise tensor. None where the dialect does not
    store it.

    Raises EncodingsError if the parts do not fit each other or the grid does not contain 0.
    """

    kind: NumberKind
    bits: int
    granularity: Granularity
    symmetric: bool
    scale: FloatArray | None
    offset: FloatArray | None
    axis: int | None = None
    block_size: int | None = None
    block_axis: int | None = None
    block_scale: FloatArray | None = None
    compressed_bits: int | None = None
    ndim: int | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "offset", "block_scale"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _read_only(value))
        _check(self)

    @classmethod
    def floating(cls, bits: int) -> Encoding:
        """A tensor that stays in floating point of `bits` bits."""
        return cls(NumberKind.FLOAT, bits, Granularity.PER_TENSOR, False, None, None)

    @classmethod
    def per_tensor(
        cls, scale: ArrayLike, offset: ArrayLike | None = None, *, bits: int, symmetric: bool
    ) -> Encoding:
        """One scale for the whole tensor; no offset means the symmetric one, -2**(bits - 1)."""
        return cls._integer(Granularity.PER_TENSOR, scale, offset, bits, symmetric)

    @classmethod
    def per_channel(
        cls,
        scale: ArrayLike,
        offset: ArrayLike | None = None,
        *,
        bits: int,
        symmetric: bool,
        axis: int | None = None,
    ) -> Encoding:
        """One scale per channel, `[channels]`."""
        return cls._integer(Granularity.PER_CHANNEL, scale, offset, bits, symmetric, axis=axis)

    @classmethod
    def per_block(
        cls,
        scale: ArrayLike,
        offset: ArrayLike | None = None,
        *,
        bits: int,
        symmetric: bool,
        block_size: int,
        axis: int | None = None,
        block_axis: int | None = None,
        ndim: int | None = None,
    ) -> Encoding:
        """One scale per channel and block, `[channels, blocks]` or flat."""
        return cls._integer(
            Granularity.PER_BLOCK,
            scale,
            offset,
            bits,
            symmetric,
            axis=axis,
            block_size=block_size,
            block_axis=block_axis,
            ndim=ndim,
        )

    @classmethod
    def lpbq(
        cls,
        scale: ArrayLike,
        block_scale: ArrayLike,
        *,
        compressed_bits: int,
        bits: int,
        block_size: int,
        axis: int | None = None,
        block_axis: int | None = None,
        ndim: int | None = None,
    ) -> Encoding:
        """A float scale `[channels]` times an integer scale `[channels, blocks]`; symmetric."""
        return cls._integer(
            Granularity.LPBQ,
            scale,
            None,
            bits,
            True,
            axis=axis,
            block_size=block_size,
            block_axis=block_axis,
            block_scale=_read_only(block_scale),
            compressed_bits=compressed_bits,
            ndim=ndim,
        )

    @classmethod
    def _integer(
        cls,
        granularity: Granularity,
        scale: ArrayLike,
        offset: ArrayLike | None,
        bits: int,
        symmetric: bool,
        **more: Any,
    ) -> Encoding:
        scale = _read_only(scale)
        if offset is None:
            if not symmetric:
                raise EncodingsError("an asymmetric encoding needs an offset")
            offset = np.full(scale.shape, -(2.0 ** (bits - 1)))
        return cls(
            NumberKind.INT, bits, granularity, symmetric, scale, _read_only(offset), **more
        )

    @property
    def structure(self) -> Structure:
        """What may never differ between the use cases of one graph."""
        return Structure(
            kind=self.kind.value,
            bits=self.bits,
            symmetric=self.symmetric,
            granularity=self.granularity.value,
            axis=self.axis,
            block_size=self.block_size,
            block_axis=self.block_axis,
            compressed_bits=self.compressed_bits,
        )

    @property
    def channels(self) -> int | None:
        """The number of channels, None per tensor or where the dialect did not tell."""
        if self.scale is None or self.granularity is Granularity.PER_TENSOR:
            return None
        if self.granularity is Granularity.PER_BLOCK and self.scale.ndim == 1:
            return None
        return int(self.scale.shape[0])

    @property
    def steps(self) -> int:
        """The number of steps of the grid, 2**bits - 1 (of the stored bits for LPBQ)."""
        return int(2 ** (self.compressed_bits or self.bits) - 1)

    @property
    def step_scale(self) -> FloatArray:
        """The real size of one step: `scale`, for LPBQ `block_scale * scale` `[channels, blocks]`."""
        if self.scale is None:
            raise EncodingsError("a float encoding has no grid")
        if self.block_scale is not None:
            return self.block_scale * self.scale[:, np.newaxis]
        return self.scale

    @property
    def step_offset(self) -> FloatArray:
        """The offset in steps that belongs to `step_scale`, same shape."""
        if self.offset is None:
            raise EncodingsError("a float encoding has no grid")
        if self.compressed_bits is not None:
            return np.full(self.step_scale.shape, -(2.0 ** (self.compressed_bits - 1)))
        return self.offset

    @property
    def minimum(self) -> FloatArray:
        """The smallest value of the grid, real units: offset * scale, as AIMET 0.6.1 stores it."""
        return self.step_offset * self.step_scale

    @property
    def maximum(self) -> FloatArray:
        """The largest value of the grid, real units: (offset + 2**bits - 1) * scale."""
        return (self.step_offset + self.steps) * self.step_scale

    def same_grid(self, other: Encoding) -> bool:
        """Whether both name the same real values for every element of the tensor.

        True if the structures do not differ and scale, offset and block scale are equal bit for
        bit. An axis that one of the two does not know does not make a difference.
        """
        return self.structure.first_difference(other.structure) is None and all(
            _equal(getattr(self, name), getattr(other, name))
            for name in ("scale", "offset", "block_scale")
        )


def _read_only(value: ArrayLike) -> FloatArray:
    array = np.asarray(value)
    if array.dtype != np.float64 or array.flags.writeable:
        array = array.astype(np.float64)
        array.flags.writeable = False
    return array


def _equal(one: FloatArray | None, other: FloatArray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


_DIMENSIONS = {
    Granularity.PER_TENSOR: (0,),
    Granularity.PER_CHANNEL: (1,),
    Granularity.PER_BLOCK: (1, 2),
    Granularity.LPBQ: (1,),
}


def _check(encoding: Encoding) -> None:
    if encoding.kind is NumberKind.FLOAT:
        if encoding.scale is not None or encoding.offset is not None:
            raise EncodingsError("a float encoding with a scale is not supported")
        if encoding.bits not in (16, 32):
            raise EncodingsError(f"a float encoding of {encoding.bits} bits, expected 16 or 32")
        return
    if not MIN_BITS <= encoding.bits <= MAX_BITS:
        raise EncodingsError(f"{encoding.bits} bits, expected {MIN_BITS} to {MAX_BITS}")
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
            f"{_element('scale', scale, wrong)}, expected a finite number > 0 that float32 can hold",
            hint="a tensor of zeros still needs a valid range: max - min of at least 1e-5",
        )


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
