"""Cores of CP and Tucker decomposed convolutions, which LOHA and LOKR store beside two factors.

t [r, r, *kernel],  b [r, in]          ->  [r, in, *kernel]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def core_kernel(dims: tuple[int, ...]) -> tuple[int, ...] | None:
    """The kernel that a core of this shape tells; None if it fits two kinds of convolution.

    A convolution over one axis has a core with an additional axis of 1, as one over two axes with
    a kernel of `[k, 1]` has.
    """
    kernel = dims[2:]
    return None if kernel[-1] == 1 else kernel


def with_core(t: Array, b: Array) -> Array:
    """`t [r, r, *kernel]`, `b [r, in]` -> `[r, in * kernel]`."""
    product: Array = np.einsum("pj...,ji->pi...", t, b)
    return product.reshape(len(t), -1)
