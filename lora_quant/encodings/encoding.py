"""The quantization grid of one tensor, free of any file dialect.

Real and quantized values are tied by the unsigned form that AIMET 0.6.1 and 1.0.0 store,

    x = (q + offset) * scale,    q in [0, 2**bits - 1],    offset <= 0,

also for symmetric grids (offset -128 for int8). The signed form of 2.0.0 and of ONNX,
x = (q - zero_point) * scale, is the same grid with q and zero_point shifted by 2**(bits - 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_quant.encodings.encoding_checks import check
from lora_quant.encodings.kinds import Granularity, NumberKind
from lora_quant.encodings.structure import Structure
from lora_quant.errors import EncodingsError

FloatArray = NDArray[np.float64]

__all__ = ["Encoding", "FloatArray", "Granularity", "NumberKind"]


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
        check(self)

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
        return cls(NumberKind.INT, bits, granularity, symmetric, scale, _read_only(offset), **more)

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
    def stored_scale(self) -> FloatArray:
        """`scale` of an integer encoding; EncodingsError for a float one."""
        if self.scale is None:
            raise EncodingsError("a float encoding has no grid")
        return self.scale

    @property
    def stored_offset(self) -> FloatArray:
        """`offset` of an integer encoding; EncodingsError for a float one."""
        if self.offset is None:
            raise EncodingsError("a float encoding has no grid")
        return self.offset

    @property
    def zero_point(self) -> FloatArray:
        """ONNX's zero point, shape of `offset`: signed if the grid is symmetric, else unsigned."""
        middle = 2.0 ** (self.bits - 1) if self.symmetric else 0.0
        return 0.0 - (self.stored_offset + middle)

    @property
    def step_scale(self) -> FloatArray:
        """The real size of one step: `scale`, for LPBQ block_scale * scale `[channels, blocks]`."""
        if self.block_scale is not None:
            return self.block_scale * self.stored_scale[:, np.newaxis]
        return self.stored_scale

    @property
    def step_offset(self) -> FloatArray:
        """The offset in steps that belongs to `step_scale`, same shape."""
        if self.compressed_bits is not None:
            return np.full(self.step_scale.shape, -(2.0 ** (self.compressed_bits - 1)))
        return self.stored_offset

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
