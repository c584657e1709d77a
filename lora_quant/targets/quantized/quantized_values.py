"""A weight's values as codes on a grid, and subsets of its ranks.

    values, encoding  ->  codes = quantized steps, counted as the container counts them, and Grid
    codes, ranks      ->  codes of these ranks alone, with the scales that lie along the ranks

Codes stay within the bits of the encoding, however wide their container is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_quant.encodings.calibrate import from_values
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity
from lora_quant.encodings.quantize import quantize
from lora_quant.errors import NOWHERE, EncodingsError, Where
from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.quantized.zero_codes import zero_codes
from lora_quant.targets.quantized.grids import code_factor, located, onnx_grid


@dataclass(frozen=True, eq=False)
class QuantizedValues:
    """One weight: x = (codes - zero_point) * scale. `codes` are of `grid.dtype`."""

    codes: NDArray[Any]
    grid: Grid


def quantize_values(
    values: ArrayLike, encoding: Encoding, *, where: Where = NOWHERE
) -> QuantizedValues:
    """Codes of a weight on the grid of an integer encoding, rounded half to even and clipped.

    On a half-step grid, which has no 0, values of exactly 0 stay 0: they are ranks and blocks that
    belong to no module. Raises EncodingsError for what `onnx_grid` refuses, and a float encoding.
    """
    real = np.asarray(values, dtype=np.float64)
    grid = onnx_grid(encoding, real.shape, where=where)
    if grid is None:
        raise EncodingsError(
            f"the encoding keeps the tensor in floating point of {encoding.bits} bits",
            where=where,
            hint="store its values as they are",
        )
    factor = code_factor(encoding)
    bits = encoding.compressed_bits or encoding.bits
    middle = 2.0 ** (bits - 1) if encoding.symmetric else 0.0
    codes = (quantize(encoding, real) - middle) * factor
    if factor != 1:
        codes = np.where(real == 0, zero_codes(grid, real.shape), codes)
    return QuantizedValues(codes.astype(grid.dtype), grid)


def computed_values(
    values: ArrayLike,
    dtype: Literal["int8", "int16"],
    channel_axis: int,
    *,
    where: Where = NOWHERE,
) -> QuantizedValues:
    """Codes on the symmetric min-max grid of each channel (`lora_weights` int8 and int16).

    Raises EncodingsError for values that are not finite, and for none at all.
    """
    real = np.asarray(values, dtype=np.float32)
    with located(where):
        encoding = from_values(
            real,
            granularity=Granularity.PER_CHANNEL,
            bits=np.dtype(dtype).itemsize * 8,
            axis=channel_axis,
        )
    return quantize_values(real, encoding, where=where)


def take_ranks(quantized: QuantizedValues, axis: int, ranks: Sequence[int]) -> QuantizedValues:
    """Only these ranks, in this order, of those that lie on `axis`; their scales go along.

    Raises EncodingsError where the grid has blocks of ranks and `ranks` cut one.
    """
    axis %= quantized.codes.ndim
    codes = np.ascontiguousarray(np.take(quantized.codes, ranks, axis=axis))
    return QuantizedValues(codes, take_grid_ranks(quantized.grid, axis, ranks))


def take_grid_ranks(grid: Grid, axis: int, ranks: Sequence[int]) -> Grid:
    """The grid of a weight that has only these ranks on `axis` >= 0; errors as `take_ranks`."""
    if grid.axis is None or (grid.block_size is None and grid.axis != axis):
        return grid
    if grid.block_size is None:
        return _taken(grid, 0, ranks)
    if grid.axis != axis:
        return _taken(grid, axis, ranks)
    size = grid.block_size
    starts = list(ranks[::size])
    whole = [rank for start in starts for rank in range(start, start + size)]
    if any(start % size for start in starts) or whole != list(ranks):
        raise EncodingsError(
            f"{len(ranks)} ranks cut the blocks of {size} ranks that share a scale",
            hint="start slots at multiples of the block size, and take whole blocks",
        )
    return _taken(grid, axis, [start // size for start in starts])


def _taken(grid: Grid, axis: int, index: Sequence[int]) -> Grid:
    return replace(
        grid,
        scale=np.ascontiguousarray(np.take(grid.scale, index, axis=axis)),
        zero_point=np.ascontiguousarray(np.take(grid.zero_point, index, axis=axis)),
    )
