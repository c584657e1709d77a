"""The change of W and b that a scaled module amounts to, for kinds that give it as g and h.

y = g * (W (h * x) + b) + B (s * (A x)) + c
  = (W + delta) x + b + c'        delta = g W h - W + B s A        c' = (g - 1) b + c
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import BaseSizes
from lora_quant.adapters.lowered import Dense, Lowered

Matrix = NDArray[np.float64]


def dense_update(lowered: Lowered, weight: Matrix, bias: Matrix, sizes: BaseSizes) -> Dense:
    """delta `[out, in / groups, *kernel]` and c' `[out]`, float64.

    `weight` is the base's, of the shape of delta, `bias` `[out]`. A and B must be those of a matrix
    `[out, in / groups * kernel]`, as they are for every kind but a grouped LoRA.
    """
    delta = weight.copy()
    axes = (1,) * (weight.ndim - 2)
    if lowered.h is not None:
        per_group = lowered.h.astype(np.float64).reshape(sizes.groups, -1)
        by_row = per_group.repeat(len(weight) // sizes.groups, axis=0)
        delta *= by_row.reshape(*by_row.shape, *axes)
    g = np.ones(len(weight)) if lowered.g is None else lowered.g.astype(np.float64)
    delta *= g.reshape(-1, 1, *axes)
    delta -= weight
    if lowered.rank:
        A = lowered.A.astype(np.float64).reshape(lowered.rank, -1)
        delta += ((lowered.B.astype(np.float64) * lowered.s) @ A).reshape(delta.shape)
    c = (g - 1.0) * bias
    if lowered.c is not None:
        c += lowered.c
    return Dense(delta, c if c.any() else None)
