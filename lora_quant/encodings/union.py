"""The smallest grid that covers several grids.

Per element, with lo and hi the ends of all ranges together and N = 2**bits - 1: the grid with
offset -k covers [lo, hi] from the scale max(-lo / k, hi / (N - k)) on, which is smallest at one of
the two integers around k = N * -lo / (hi - lo). A grid that covers the others already is returned
as it is, so the union is idempotent and does not depend on the order; it is not associative,
because rounding the offset widens a range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.algebra import common_structure
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity, NumberKind
from lora_quant.errors import EncodingsError

FloatArray = NDArray[np.float64]


def union(encodings: Sequence[Encoding]) -> Encoding:
    """The smallest grid of the same structure whose range covers all ranges, per channel or block.

    Zero stays on the grid and the offset whole; a symmetric grid gets the offset -2**(bits - 1)
    unless one of the grids covers the others. The range covers the others in double precision:
    minimum <= every minimum and maximum >= every maximum.

    Raises EncodingsError if the structures or the numbers of channels differ, or for different
    LPBQ or half-step grids, which have no such grid.
    """
    common_structure(encodings)
    first = encodings[0]
    if first.kind is NumberKind.FLOAT or all(first.same_grid(other) for other in encodings[1:]):
        return first
    if first.granularity is Granularity.LPBQ:
        raise EncodingsError(
            "different LPBQ grids have no union: a compressed scale cannot cover them exactly",
            hint="calibrate one encoding for all use cases",
        )
    shapes = {encoding.stored_scale.shape for encoding in encodings}
    if len(shapes) > 1:
        raise EncodingsError(
            f"the encodings have different numbers of scales: {sorted(shapes)}",
            hint="pad them to the max rank first",
        )
    scale = np.stack([encoding.stored_scale for encoding in encodings])
    offset = np.stack([encoding.stored_offset for encoding in encodings])
    low, high = offset * scale, (offset + first.steps) * scale
    lowest, highest = low.min(axis=0), high.max(axis=0)

    covers = (low == lowest) & (high == highest)
    chosen = np.where(covers, scale, np.inf).argmin(axis=0)[np.newaxis]
    best_scale = np.take_along_axis(scale, chosen, axis=0)[0]
    best_offset = np.take_along_axis(offset, chosen, axis=0)[0]
    covered = covers.any(axis=0)
    if covered.all():
        return replace(first, scale=best_scale, offset=best_offset)
    if (offset % 1 != 0).any():
        raise EncodingsError("different half-step grids have no union that keeps their steps")
    new_scale, new_offset = _cover(lowest, highest, first.bits, symmetric=first.symmetric)
    return replace(
        first,
        scale=np.where(covered, best_scale, new_scale),
        offset=np.where(covered, best_offset, new_offset),
    )


def _cover(
    low: FloatArray, high: FloatArray, bits: int, *, symmetric: bool
) -> tuple[FloatArray, FloatArray]:
    steps = 2.0**bits - 1
    if symmetric:
        below = np.full(low.shape, 2.0 ** (bits - 1))
        scale = _scale_for(low, high, below, steps)
    else:
        ideal = steps * (-low / (high - low))
        fewest, most = np.where(low < 0, 1.0, 0.0), np.where(high > 0, steps - 1, steps)
        down = np.clip(np.floor(ideal), fewest, most)
        up = np.clip(np.ceil(ideal), fewest, most)
        scale_down, scale_up = _scale_for(low, high, down, steps), _scale_for(low, high, up, steps)
        below = np.where(scale_up < scale_down, up, down)
        scale = np.minimum(scale_up, scale_down)
    # Rounding of the quotient can leave the end of the range one unit in the last place short.
    short = (-below * scale > low) | ((steps - below) * scale < high)
    while short.any():
        scale = np.where(short, np.nextafter(scale, np.inf), scale)
        short = (-below * scale > low) | ((steps - below) * scale < high)
    return scale, -below + 0.0


def _scale_for(low: FloatArray, high: FloatArray, below: FloatArray, steps: float) -> FloatArray:
    """max(-low / below, high / (steps - below)); an empty side has no values to cover."""
    above = steps - below
    left = np.divide(-low, below, out=np.zeros_like(low), where=below > 0)
    right = np.divide(high, above, out=np.zeros_like(high), where=above > 0)
    return np.maximum(left, right)
