"""The grid of what is computed from a tensor and values of a known range.

    x * v, v in [low, high]    between the outermost products of both ranges
    x + v, v in [low, high]    both ends moved outwards
    x + v, v on a grid         the same, with the ends of that grid
    a grid that holds 1        what multiplies by 1 must not change anything

Whatever x and v are within their ranges, the result is within the new one, but for the rounding of
an asymmetric grid's offset, which is half a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.algebra import common_structure, scaled
from lora_quant.encodings.calibrate import from_range
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import BLOCKWISE, Granularity
from lora_quant.errors import EncodingsError


def times(grid: Encoding, low: float, high: float) -> Encoding:
    """The per-tensor grid of x * v; where no v is negative, it is `grid` with a larger step."""
    if grid.scale is None or low == high == 1.0:
        return grid
    if low >= 0 and high > 0 and grid.scale.ndim == 0:
        return scaled(grid, high)
    ends = [float(x) * v for x in (grid.minimum.min(), grid.maximum.max()) for v in (low, high)]
    return from_range(min(ends), max(ends), bits=grid.bits, symmetric=grid.symmetric)


def plus(grid: Encoding, low: float, high: float) -> Encoding:
    """The per-tensor grid of x + v; `grid` itself where v is 0."""
    if grid.scale is None or low == high == 0.0:
        return grid
    ends = (float(grid.minimum.min()) + low, float(grid.maximum.max()) + high)
    return from_range(*ends, bits=grid.bits, symmetric=grid.symmetric)


def sum_of(grids: Sequence[Encoding]) -> Encoding:
    """The per-tensor grid of x1 + x2 + ..., from the sum of the minima to that of the maxima.

    Raises EncodingsError if the structures differ, or a grid is not per tensor.
    """
    structure = common_structure(grids)
    if len(grids) == 1 or grids[0].scale is None:
        return grids[0]
    if structure.granularity != Granularity.PER_TENSOR.value:
        raise EncodingsError(f"a sum needs grids per tensor, got {structure.granularity}")
    low, high = sum(float(g.minimum) for g in grids), sum(float(g.maximum) for g in grids)
    return from_range(low, high, bits=grids[0].bits, symmetric=grids[0].symmetric)


def holding_one(grid: Encoding) -> Encoding:
    """The smallest grid of the same structure that covers `grid` and has 1 on it.

    `grid` itself if it has. Else the step is 1 / n, rounded to float32, and covers `grid` but for a
    millionth of the range, since float32 scales are not exact either. A grid whose steps are too
    coarse for n = 1 stays as it is, and so does one per block.
    """
    if grid.scale is None or grid.offset is None or grid.granularity in BLOCKWISE:
        return grid
    is_held = _holds_one(grid)
    if is_held.all():
        return grid
    low, high = np.minimum(grid.minimum, 0.0), np.maximum(grid.maximum, 1.0)
    half, steps = 2.0 ** (grid.bits - 1), float(grid.steps)
    # A quotient that is whole but for the rounding of a scale must not lose a step.
    slack = 1 + 2.0**-20
    with np.errstate(divide="ignore"):
        if grid.symmetric:
            count = np.floor(np.minimum(half / -low, (half - 1) / high) * slack)
            offset = np.full(low.shape, -half)
        else:
            count = np.floor(steps / (high - low) * slack)
            below = np.ceil(-low * count / slack)
            # Rounding the lower end outwards may take a step that the upper one needs.
            is_short = below + np.ceil(high * count / slack) > steps
            count = np.where(is_short, count - 1, count)
            offset = -np.ceil(-low * count / slack) + 0.0
    fits = (count >= 1) & ~is_held
    step = (1.0 / np.where(fits, count, 1.0)).astype(np.float32).astype(np.float64)
    return replace(
        grid,
        scale=np.where(fits, step, grid.scale),
        offset=np.where(fits, offset, grid.offset),
    )


def holds_one(grid: Encoding) -> bool:
    """Whether 1 is on the grid everywhere, within what float32 loses of a scale."""
    return grid.scale is None or bool(_holds_one(grid).all())


def _holds_one(grid: Encoding) -> NDArray[np.bool_]:
    step = grid.step_scale
    lost = np.abs(np.rint(1.0 / step) * step - 1.0)
    result: NDArray[np.bool_] = (lost <= 2.0**-24) & (grid.maximum >= 1.0 - 2.0**-24)
    return result


def in_structure(grid: Encoding, known: Encoding) -> Encoding:
    """The per-tensor grid of the same range with the bits and the symmetry of `known`.

    `known` itself where one of the two stays in float, or `known` is not per tensor.
    """
    if grid.structure.first_difference(known.structure) is None:
        return grid
    if grid.scale is None or known.scale is None or known.scale.ndim:
        return known
    ends = float(grid.minimum.min()), float(grid.maximum.max())
    return from_range(*ends, bits=known.bits, symmetric=known.symmetric)
