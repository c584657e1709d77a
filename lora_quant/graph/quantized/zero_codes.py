"""The codes that stand for zeros: a zero point for every element of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.graph.quantized.grid import Grid


def zero_codes(grid: Grid, shape: Sequence[int]) -> NDArray[Any]:
    """Codes of real zeros in `shape`, of the grid's dtype."""
    zero = grid.zero_point
    if grid.block_size is not None and grid.axis is not None:
        zero = np.repeat(zero, grid.block_size, axis=grid.axis)
    elif grid.axis is not None:
        layout = [1] * len(shape)
        layout[grid.axis] = -1
        zero = zero.reshape(layout)
    return np.ascontiguousarray(np.broadcast_to(zero, shape), dtype=grid.dtype)
