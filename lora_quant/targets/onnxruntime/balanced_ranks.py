"""A and B with ranks of one size, where their grids are computed from the values.

    A_r, B_r   ->   f A_r, B_r / f        f: how far max |B_r| is above the geometric mean of all

A has a grid for each rank, but the grids of B lie across the ranks: beside large ones, such as
those of a strong adapter in the same use case, small ones would be left with few steps. Then an
adapter is worth less the stronger the others are trained, also where their strength is 0.
l = B (s * (A x)) stays as it is, but for two roundings of A and B.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]

_MOST = 64.0
"""By more, what A gives could leave the range of float16 on its way to B."""


def balance_ranks(a: Values, b: Values, axis_of_a: int, axis_of_b: int) -> tuple[Values, Values]:
    """A and B, whose ranks lie on these axes, in their dtypes. Ranks of zeros stay."""
    sizes = np.abs(b.astype(np.float64)).max(axis=_others(b, axis_of_b))
    filled = sizes > 0
    if not filled.any():
        return a, b
    logs = np.log(sizes, where=filled, out=np.zeros_like(sizes))
    factors = np.where(filled, np.exp(logs - logs[filled].mean()), 1.0)
    factors = np.clip(factors, 1 / _MOST, _MOST)
    return _scaled(a, factors, axis_of_a), _scaled(b, 1 / factors, axis_of_b)


def _others(array: Values, axis: int) -> tuple[int, ...]:
    return tuple(one for one in range(array.ndim) if one != axis)


def _scaled(array: Values, factors: NDArray[np.float64], axis: int) -> Values:
    along = np.expand_dims(factors, _others(array, axis))
    scaled: Values = (array.astype(np.float64) * along).astype(array.dtype)
    return scaled
